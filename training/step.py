"""One optimizer step as a pure function."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from base.ranges import Count, CountFromZero, Factor, NotNegative, Share
from kernels import platform
from layers.initial_state import OPTION as LEARNED
from models.accounting import list_parameters
from models.language_model import DecodeState, LanguageModel
from parallel import shards
from parallel.sharding_plan import TOKENS, ShardingPlan, on_one_device
from parallel.tree_paths import by_path, joined
from training import carried_state, passed_state, rounding, time_chunks
from training import rates as learning_rates
from training.gradient_sums import GradientSums
from training.losses import MAX_LOGIT_BYTES, Batch, token_losses

# Separates the key of the rounding from the models' keys.
_ROUNDING = 0x524E44
INITIAL_STATES = "zero", "passed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
  """Options of a training step, apart from the optimizer's.

  Attributes:
    grad_accum_steps: microbatches that a batch is cut into; their gradients are added up.
    z_loss: weight of the squared logarithm of the softmax's sum.
    spike_factor: a step whose gradient norm exceeds this many medians of recent norms is skipped.
    spike_window: number of recent norms in the median, including those of spikes, so that a lasting
      rise becomes normal after half of them; no spike is detected before the window is full.
    max_skips: steps skipped in a row after which the run stops. A spike that would be the last of
      them is taken: only values that are not finite stop a run.
    rounding: rounding of bfloat16 parameters, 'nearest' or 'stochastic'; see `training.rounding`.
    max_logit_bytes: bytes of logits per device; more are computed in pieces of the time axis, and
      recomputed in the backward pass.
    carry_state: documents that are longer than a row go on in the next batch, from the state that
      the row left; see `training.carried_state` and `data.lanes`.
    initial_state: what rows begin with: 'zero' is what documents do, nothing or a learned state
      (`Backbone.learned_states`); 'passed' is the states that rows of the step before left; see
      `training.passed_state`.
    passed_share: with 'passed', the share of the rows that do; the others begin with nothing.
    passed_after: steps before the first with passed states.
  """

  grad_accum_steps: Count = 1
  z_loss: NotNegative = 0.0
  spike_factor: Factor = 10.0
  spike_window: Count = 64
  max_skips: Count = 20
  rounding: str = "nearest"
  max_logit_bytes: Count = MAX_LOGIT_BYTES
  carry_state: bool = False
  initial_state: str = "zero"
  passed_share: Share = 0.5
  passed_after: CountFromZero = 0

  def __post_init__(self):
    rounding.check(self.rounding)
    if self.initial_state == "learned":
      raise ValueError(
        "learned initial states are parameters, and so an option of the model: add "
        f"gin/train/learned_state.gin, or set {LEARNED}=True."
      )
    if self.initial_state not in INITIAL_STATES:
      raise ValueError(
        f"initial_state={self.initial_state!r} must be one of {', '.join(INITIAL_STATES)}."
      )
    if self.carry_state and self.initial_state != "zero":
      raise ValueError(
        f"with carry_state=True, rows go on from their own documents: initial_state="
        f"{self.initial_state!r} has no place. Set one of the two."
      )
    for name in ("grad_accum_steps", "spike_window", "max_skips", "max_logit_bytes"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
    if self.spike_factor <= 1:
      raise ValueError(f"spike_factor={self.spike_factor} must be above 1 (it scales a median).")

  @property
  def keeps_states(self) -> bool:
    """Whether the states behind the rows of a step are kept for the next."""
    return self.carry_state or self.initial_state == "passed"


class SpikeDetector(NamedTuple):
  """Decides whether a step is taken, by the gradient norms before it.

  Attributes:
    norms: [spike_window] float32, the last gradient norms that were finite, the newest last.
    taken: [] int32, steps taken; the argument of the learning-rate schedule.
    skipped: [] int32, steps skipped.
    in_a_row: [] int32, steps skipped since the last one taken.
  """

  norms: jax.Array
  taken: jax.Array
  skipped: jax.Array
  in_a_row: jax.Array


class TrainState(NamedTuple):
  """The state of a run between steps.

  Attributes:
    step: [] int32, batches seen.
    params: the model's parameters.
    opt_state: the optimizer's state, float32 for any dtype of the parameters.
    spike_detector: see `SpikeDetector`.
    rng: key data of the run's random key, for models with randomness.
    carried: the model's state behind each row of the last batch, with `StepOptions.keeps_states`;
      else None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  spike_detector: SpikeDetector
  rng: jax.Array
  carried: DecodeState | None = None


def abstract_batch(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of a batch; see `data.loader.batch_of_rows`."""
  ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
  weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
  names = "inputs", "targets", "segment_ids", "positions"
  return {**dict.fromkeys(names, ids), "loss_weights": weights}


def initial_state(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
  seed: int,
  given: Any = None,
  *,
  rows: int | None = None,
) -> TrainState:
  """Makes the state before the first step.

  Args:
    model: a language model of the zoo.
    optimizer, options, seed: the run's.
    given: initial parameters; missing ones are initialised randomly.
    rows: of a batch; only `StepOptions.keeps_states` needs it.
  """
  init_key, run_key = jax.random.split(jax.random.key(seed))
  params = nn.unbox(model.init(init_key, jnp.zeros((1, 1), jnp.int32))["params"])
  found = by_path(given)
  params = jax.tree_util.tree_map_with_path(lambda path, x: found.get(joined(path), x), params)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    opt_state=optimizer.init(_float32(split(model, params)[0])),
    spike_detector=SpikeDetector(jnp.zeros(options.spike_window, jnp.float32), zero, zero, zero),
    rng=jax.random.key_data(run_key),
    carried=_carried(model, options, rows),
  )


def _carried(model: LanguageModel, options: StepOptions, rows: int | None) -> DecodeState | None:
  if not options.keeps_states:
    return None
  if rows is None:
    raise ValueError("states that steps keep need the number of rows of a batch.")
  return carried_state.initial_state(model, rows)


def state_shardings(model: LanguageModel, sharding_plan: ShardingPlan, state: TrainState) -> Any:
  """Returns the shardings of a train state, with those of its carried states."""
  found = sharding_plan.state(state._replace(carried=None))
  if state.carried is None:
    return found
  rows = len(state.carried.position)
  return found._replace(carried=carried_state.shardings(model, sharding_plan, rows))


def split(model: LanguageModel, params: Any) -> tuple[Any, Any]:
  """Splits parameters into trained and frozen ones, each with None in place of the others."""

  def part(trained: bool) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf if model.trains(joined(path)) == trained else None, params
    )

  return part(True), part(False)


def join(trained: Any, frozen: Any) -> Any:
  """Merges the two trees of `split`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
  )


def jit_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
  sharding_plan: ShardingPlan | None = None,
) -> jax.stages.Wrapped:
  """Returns `make_train_step`'s function jitted with the target's options; it donates the state."""
  step = make_train_step(model, optimizer, options, sharding_plan)
  return jax.jit(step, donate_argnums=0, compiler_options=platform.compiler_options() or None)


def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  options: StepOptions,
  sharding_plan: ShardingPlan | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `step(state, batch, rates) -> (state, metrics)`, sharded; by default on one device.

  Only the optimizers of `training.rates.transformation` need `rates`.
  A step with a loss or gradient that is not finite, or with a spike of the gradient norm, changes
  only the spike detector and the number of the step, not the optimizer's count and the schedule.
  Carried states follow the data in every step; those that are not finite, or behind padding, start
  afresh.
  Metrics are scalars: loss (nats per target), grad_norm, targets, skipped (total),
  skipped_in_a_row.
  """

  sharding_plan = sharding_plan or on_one_device(list_parameters(model))

  def differentiate(state: TrainState, batch: Batch, rng: jax.Array):
    """The loss and targets, the gradient, and the states behind the rows."""
    before, key = state.carried, jax.random.key_data(rng)
    others, specs = (key,), None
    if before is not None:
      if options.initial_state == "passed":
        share = jnp.where(state.step < options.passed_after, 0.0, float(options.passed_share))
        before = passed_state.drawn(model, before, rng, share)
      others = key, before
      specs = carried_state.specs(model, sharding_plan, len(before.position))
    run = sharding_plan.gradient(
      functools.partial(loss_and_gradient, model, options),
      trained=lambda params: split(model, params)[0],
      carried=specs,
    )
    scalars, gradient, *after = run(state.params, batch, *others)
    return scalars, gradient, carried_state.restarted(model, after[0], batch) if after else None

  def step(
    state: TrainState, batch: Batch, rates: learning_rates.Rates | None = None
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    (loss, targets), gradient, carried = differentiate(state, batch, rng)
    params, frozen = split(model, state.params)
    gradient, params = (
      sharding_plan.split_for_update(gradient),
      sharding_plan.split_for_update(params),
    )
    with jax.named_scope("spike_detector"):
      norm = optax.global_norm(gradient)
      take, detector = _decide(state.spike_detector, loss, norm, options)
    with jax.named_scope("optimizer"), learning_rates.given(rates):
      updates, opt_state = optimizer.update(gradient, state.opt_state, _float32(params))
      # From the run's key and the step, so that a resumed run rounds identically.
      new_params = rounding.apply_updates(
        params, updates, mode=options.rounding, key=jax.random.fold_in(rng, _ROUNDING)
      )

    def choose(new, old):
      return jnp.where(take, new, old)

    new_state = TrainState(
      step=state.step + 1,
      params=jax.tree.map(choose, new_params, params),
      opt_state=jax.tree.map(choose, opt_state, state.opt_state),
      spike_detector=detector,
      rng=state.rng,
      carried=carried,
    )
    # Parameters are gathered once, after the choice.
    chosen = sharding_plan.split_for_update(new_state.params)
    new_state = new_state._replace(params=join(chosen, frozen))
    where = state_shardings(model, sharding_plan, new_state)
    new_state = jax.lax.with_sharding_constraint(new_state, where)
    metrics = {
      "loss": loss,
      "grad_norm": norm,
      "targets": targets,
      "skipped": detector.skipped,
      "skipped_in_a_row": detector.in_a_row,
    }
    return new_state, metrics

  return step


def _decide(
  detector: SpikeDetector, loss: jax.Array, norm: jax.Array, options: StepOptions
) -> tuple[jax.Array, SpikeDetector]:
  """Decides whether to take a step; returns that and the spike detector after it.

  A skipped step does not change the parameters, so that the next norm is as large if the parameters
  caused it, not the batch. So the median includes spikes, and the last allowed spike is taken.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  full = detector.taken >= options.spike_window
  spike = full & (norm > float(options.spike_factor) * jnp.median(detector.norms))
  last_chance = detector.in_a_row >= options.max_skips - 1
  take = finite & (~spike | last_chance)
  norms = jnp.roll(detector.norms, -1).at[-1].set(norm)
  return take, SpikeDetector(
    norms=jnp.where(finite, norms, detector.norms),
    taken=detector.taken + take,
    skipped=detector.skipped + ~take,
    in_a_row=jnp.where(take, 0, detector.in_a_row + 1),
  )


def loss_and_gradient(
  model: LanguageModel,
  options: StepOptions,
  params: Any,
  batch: Batch,
  rng_data: jax.Array,
  carried: DecodeState | None = None,
) -> tuple[Any, ...]:
  """Computes the loss and gradient of a batch, a microbatch at a time.

  Args:
    model: a language model of the zoo.
    options: number of microbatches, and the z-loss.
    params: the model's parameters.
    batch: see `abstract_batch`.
    rng_data: key data for models with randomness.
    carried: the states that the rows go on from, as `training.carried_state` has them; the gradient
      ends there. None reads each row alone.

  Returns:
    (mean loss over the batch's targets, their number), and the float32 gradient of the trained
    parameters; with `carried` also the states behind the rows. Run per device, the numbers are of
    the global batch and the gradient is the contribution of this device's tokens.

  Raises:
    ValueError: the microbatches do not divide the batch, or the chunks of `time_chunk` the row.
  """
  time_chunks.check_length(model, batch)
  rng = jax.random.wrap_key_data(rng_data)
  pieces = options.grad_accum_steps
  size = batch["inputs"].shape[0]
  if size % pieces:
    raise ValueError(
      f"grad_accum_steps={pieces} does not divide the batch of {size} rows. Choose a divisor."
    )
  # Divided once, by the targets of all microbatches, so that each target has the same weight.
  targets = shards.total(jnp.sum(batch["loss_weights"]), *TOKENS)
  divisor = jnp.maximum(targets, 1)
  trained, frozen = split(model, params)

  def loss_of(trained, piece, before):
    params, limit, after = join(trained, frozen), options.max_logit_bytes, None
    if before is None:
      nll, z = token_losses(model, params, piece, rng, limit)
    else:
      (nll, z), after = carried_state.losses_from(before, model, params, piece, rng, limit)
    loss = jnp.sum(nll) / divisor
    return (jnp.sum(nll) + float(options.z_loss) * jnp.sum(z)) / divisor, (loss, after)

  gradient_of = jax.value_and_grad(loss_of, has_aux=True)
  if pieces == 1:
    (_, (loss, after)), gradient = gradient_of(trained, batch, carried)
    result = (shards.total(loss, *TOKENS), targets), _float32(gradient)
    return result if carried is None else (*result, after)

  sums = GradientSums(trained)

  def accumulate(total, inputs):
    piece, before = inputs
    run = functools.partial(loss_of, piece=piece, before=before)
    lost, pull_back, (loss, after) = jax.vjp(run, trained, has_aux=True)
    sums.add(pull_back, jnp.ones_like(lost))
    return total + loss, after

  cut = jax.tree.map(lambda x: x.reshape(pieces, size // pieces, *x.shape[1:]), batch)
  before = None if carried is None else carried_state.cut(model, carried, pieces)
  loss, after = jax.lax.scan(accumulate, jnp.zeros(()), (cut, before))
  result = (shards.total(loss, *TOKENS), targets), sums.total()
  return result if after is None else (*result, carried_state.joined(model, after))


def _float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
