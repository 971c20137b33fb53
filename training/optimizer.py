"""The optimizer protocol, learning-rate schedules, and AdamW."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import optax

from base.ranges import Count, CountFromZero, Decay, NotNegative, Positive, Share


def warmup_cosine(
  *,
  peak: NotNegative,
  steps: Count,
  warmup_steps: CountFromZero,
  final_fraction: Share = 0.1,
) -> optax.Schedule:
  """Linear warm-up to `peak`, then a cosine decay to `final_fraction` of it at the last step.

  Raises:
    ValueError: the warm-up is not shorter than the run.
  """
  _check_warmup(steps, warmup_steps)
  # JAX does not convert integers beyond 32 bits to float.
  return _warmup_cosine(float(peak), steps, warmup_steps, final_fraction)


# Cached: an optimizer equals another only if their schedules are the same function.
@functools.lru_cache(maxsize=16)
def _warmup_cosine(
  peak: float, steps: int, warmup_steps: int, final_fraction: float
) -> optax.Schedule:
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, decay_steps=steps, end_value=final_fraction * peak
  )


def warmup_stable_decay(
  *,
  peak: NotNegative,
  steps: Count,
  warmup_steps: CountFromZero,
  decay_fraction: Share = 0.2,
  final_fraction: Share = 0.0,
) -> optax.Schedule:
  """Linear warm-up to `peak`, a constant rate, and a linear decay over the last `decay_fraction`.

  A run can be extended from any checkpoint before the decay (WSD; Hu et al. 2024).

  Raises:
    ValueError: the warm-up does not end before the decay begins.
  """
  decay_steps = round(decay_fraction * steps)
  _check_warmup(steps - decay_steps, warmup_steps)
  return _warmup_stable_decay(float(peak), steps, warmup_steps, decay_steps, final_fraction)


@functools.lru_cache(maxsize=16)
def _warmup_stable_decay(
  peak: float, steps: int, warmup_steps: int, decay_steps: int, final_fraction: float
) -> optax.Schedule:
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, warmup_steps),
      optax.constant_schedule(peak),
      optax.linear_schedule(peak, final_fraction * peak, decay_steps),
    ],
    [warmup_steps, steps - decay_steps],
  )


def rate_at(schedule: optax.Schedule, taken: float) -> float:
  """Returns the learning rate after `taken` steps."""
  return float(cast(jax.Array, schedule(taken)))


def _check_warmup(steps: int, warmup_steps: int) -> None:
  if not 0 <= warmup_steps < steps:
    raise ValueError(
      f"warmup_steps={warmup_steps} must be at least 0 and below the {steps} steps before the rate "
      "falls. Shorten the warm-up or prolong the run."
    )


# Factors of the learning rate that are not 1, by the parameter's path, joined by '/'.
RateFactors = tuple[tuple[str, float], ...]


class Optimizer(Protocol):
  """Protocol of optimizers: a frozen dataclass with the fields and methods below.

  Its state may have arrays of any shape. ZeRO shards an array like a parameter if its path ends in
  the parameter's path and it has the same shape; all others are replicated.

  Attributes:
    learning_rate: schedule by steps taken; skipped steps do not count. Where the class
      sets `reads_rates`, a training replaces it by one that reads an argument of the step
      (`training.rates`), so that other rates compile nothing: then call it in an update alone,
      with the number of updates.
    master_copy: whether the state has a float32 copy of the parameters.
  """

  @property
  def learning_rate(self) -> optax.Schedule: ...

  @property
  def master_copy(self) -> bool: ...

  def transformation(self) -> optax.GradientTransformation:
    """The optax transformation from float32 gradients and parameters to updates.

    Equal optimizers must return the same object, so that a step is compiled once.
    """
    ...

  def treatment(self, path: tuple[str, ...]) -> str:
    """Describes the update of the parameter at a path in a word or two, for tables."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
  """AdamW (Loshchilov and Hutter 2019) after clipping of the gradient's global norm.

  Weight decay is decoupled and applies only to matrices, not to norms' scales, biases, convolution
  kernels or the recurrence's decays (see `is_decayed`).

  Attributes:
    learning_rate: schedule by steps taken; skipped steps do not count.
    b1, b2, epsilon: decays of the gradient's moments, and the denominator's epsilon.
    weight_decay: per unit of learning rate.
    clip_norm: largest global norm of a gradient; None for no limit.
    master_copy: keep a float32 copy of lower-precision parameters in the state.
    rate_factors: factors of the learning rate; those of `models.maximal_update`.
  """

  reads_rates: ClassVar[bool] = True  # See `training.rates.transformation`.

  learning_rate: optax.Schedule
  b1: Decay = 0.9
  b2: Decay = 0.95
  epsilon: Positive = 1e-8
  weight_decay: NotNegative = 0.1
  clip_norm: Positive | None = 1.0
  master_copy: bool = False
  rate_factors: RateFactors = ()

  @functools.cache  # noqa: B019 - equal optimizers are one transformation, so that a step is compiled once
  def transformation(self) -> optax.GradientTransformation:
    """The optax transformation; its state and arithmetic have the dtype of its inputs."""
    adamw = optax.chain(
      *clipping(self.clip_norm),
      optax.scale_by_adam(self.b1, self.b2, float(self.epsilon)),
      *factors_of_rate(self.rate_factors),
      optax.add_decayed_weights(float(self.weight_decay), mask=decay_mask),
      optax.scale_by_learning_rate(self.learning_rate),
    )
    return with_master_copy(adamw) if self.master_copy else adamw

  def treatment(self, path: tuple[str, ...]) -> str:
    """See `Optimizer`."""
    decayed = ", decayed" if self.weight_decay and is_decayed(path) else ""
    return f"AdamW{decayed}{told_factor(self.rate_factors, path)}"


def clipping(norm: float | None) -> list[optax.GradientTransformation]:
  """Returns the part of a chain that clips the gradient's global norm; empty for None."""
  return [] if norm is None else [optax.clip_by_global_norm(float(norm))]


def factors_of_rate(factors: RateFactors) -> list[optax.GradientTransformation]:
  """Returns the part of a chain that multiplies updates by factors, by path; empty for none.

  It stands before weight decay, which stays per unit of the schedule's rate.
  """
  if not factors:
    return []
  by_path = dict(factors)

  def scale(path, update):
    factor = by_path.get("/".join(names(path)), 1.0)
    return update if factor == 1.0 else factor * update

  def update(updates, state, params=None):
    del params
    return jax.tree_util.tree_map_with_path(scale, updates), state

  return [optax.GradientTransformation(lambda params: optax.EmptyState(), update)]


def told_factor(factors: RateFactors, path: tuple[str, ...]) -> str:
  """Tells the factor of a parameter's rate, for tables; '' for 1."""
  factor = dict(factors).get("/".join(path), 1.0)
  return "" if factor == 1.0 else f", rate x {factor:.3g}"


class WithMasterCopy(NamedTuple):
  """The state of `with_master_copy`.

  Attributes:
    inner: the optimizer's state.
    master: the parameters in float32; the model's are rounded.
  """

  inner: Any
  master: Any


def with_master_copy(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Makes an optimizer update a float32 copy of lower-precision parameters.

  Micikevicius et al. 2018, section 3.1: updates below a parameter's last bit add up in the copy.
  The returned updates are the differences from the rounded parameters to the copy's new values:
  adding them in float32 and rounding gives the rounded copy.
  """

  def init(params):
    # Copied, because a float32 array would otherwise be in a donated state twice.
    return WithMasterCopy(inner.init(params), jax.tree.map(jnp.copy, params))

  def update(updates, state, params=None):
    updates, inner_state = inner.update(updates, state.inner, state.master)
    master = optax.apply_updates(state.master, updates)
    return jax.tree.map(jnp.subtract, master, params), WithMasterCopy(inner_state, master)

  return optax.GradientTransformation(init, update)


def decay_mask(params: Any) -> Any:
  """Returns a mask: True for parameters with weight decay."""
  return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(names(path)), params)


def names(path: Any) -> tuple[str, ...]:
  """Converts a path of a parameter tree to names."""
  return tuple(str(key.key) for key in path)


def is_decayed(path: tuple[str, ...]) -> bool:
  """Whether a parameter has weight decay: only kernels of linear maps and the embedding.

  Decided by name, not by rank, because parameters of scanned repeats have one more axis.
  """
  taps = any(name.startswith("conv1d") for name in path)
  return path[-1] in ("kernel", "embedding") and not taps
