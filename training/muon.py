"""Muon for matrices, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from base.ranges import Count, Decay, NotNegative, Positive
from training.optimizer import (
  clipping,
  decay_mask,
  is_decayed,
  names,
  with_master_copy,
)

# The last two axes are a matrix; earlier axes, such as the layers of a scanned stack, are batches.
_MATRIX = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
# The recurrence's gates are block-diagonal: a block maps only a part of the width.
_BLOCKS = ("gate_a", "gate_x")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
  """Muon for matrices; AdamW for vectors, gates, convolutions, norms, embedding and head.

  Updates of matrices have AdamW's root mean square (equation 4 of Liu et al.), so that one rate and
  one weight decay fit both.

  Attributes:
    learning_rate: schedule by steps taken; skipped steps do not count.
    momentum: Nesterov momentum of matrices.
    iterations: Newton-Schulz iterations.
    update_rms: root mean square of an update of a matrix before the rate.
    b1, b2, epsilon: AdamW's, for the rest.
    weight_decay: per unit of learning rate, for the parameters that `AdamW` decays.
    clip_norm: largest global norm of a gradient; None for no limit.
    master_copy: keep a float32 copy of lower-precision parameters in the state.
  """

  reads_rates: ClassVar[bool] = True  # See `training.rates.transformation`.

  learning_rate: optax.Schedule
  momentum: Decay = 0.95
  iterations: Count = 5
  update_rms: Positive = 0.2
  b1: Decay = 0.9
  b2: Decay = 0.95
  epsilon: Positive = 1e-8
  weight_decay: NotNegative = 0.1
  clip_norm: Positive | None = 1.0
  master_copy: bool = False

  @functools.cache  # noqa: B019 - equal optimizers are one transformation
  def transformation(self) -> optax.GradientTransformation:
    """See `training.optimizer.Optimizer`."""
    matrices = optax.chain(
      scale_by_muon(
        ns_steps=self.iterations, beta=self.momentum, weight_dimension_numbers=_dimensions
      ),
      optax.stateless(functools.partial(_scaled, self.update_rms)),
    )
    muon = optax.chain(
      *clipping(self.clip_norm),
      optax.partition(
        {"muon": matrices, "adamw": optax.scale_by_adam(self.b1, self.b2, float(self.epsilon))},
        _labels,
      ),
      optax.add_decayed_weights(float(self.weight_decay), mask=decay_mask),
      optax.scale_by_learning_rate(self.learning_rate),
    )
    return with_master_copy(muon) if self.master_copy else muon

  def treatment(self, path: tuple[str, ...]) -> str:
    """See `training.optimizer.Optimizer`."""
    rule = "Muon" if is_matrix(path) else "AdamW"
    return f"{rule}, decayed" if self.weight_decay and is_decayed(path) else rule


def is_matrix(path: tuple[str, ...]) -> bool:
  """Whether Muon orthogonalizes a parameter: a matrix, or a stack of them."""
  mixed = path[-1] == "kernel" and is_decayed(path)
  return mixed and path[0] != "head" and not any(name in _BLOCKS for name in path)


def _labels(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "muon" if is_matrix(names(path)) else "adamw", params
  )


def _dimensions(params: Any) -> Any:
  return jax.tree.map(lambda _: _MATRIX, params)


def _scaled(update_rms: float, updates: Any, params: Any) -> Any:
  """Scales orthogonal matrices [m, n], with RMS 1 / sqrt(max(m, n)), to a root mean square."""
  del params
  return jax.tree.map(lambda x: update_rms * math.sqrt(max(x.shape[-2:])) * x, updates)
