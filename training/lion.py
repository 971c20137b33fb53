"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, algorithm 2)."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import optax

from base.ranges import Decay, NotNegative, Positive
from training.optimizer import (
  RateFactors,
  clipping,
  decay_mask,
  factors_of_rate,
  is_decayed,
  told_factor,
  with_master_copy,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion:
  """Lion after clipping of the gradient's global norm; weight decay as in `AdamW`.

  Every entry moves by the full rate, so the rate must be 3 to 10 times smaller than AdamW's and the
  weight decay as much larger (section 5 of the paper). It has one moment, half of AdamW's state.

  Attributes:
    learning_rate: schedule by steps taken; skipped steps do not count.
    b1: weight of the momentum in the update's sign.
    b2: decay of the momentum.
    weight_decay: per unit of learning rate.
    clip_norm: largest global norm of a gradient; None for no limit.
    master_copy: keep a float32 copy of lower-precision parameters in the state.
    rate_factors: as in `AdamW`.
  """

  reads_rates: ClassVar[bool] = True  # See `training.rates.transformation`.

  learning_rate: optax.Schedule
  b1: Decay = 0.9
  b2: Decay = 0.99
  weight_decay: NotNegative = 0.5
  clip_norm: Positive | None = 1.0
  master_copy: bool = False
  rate_factors: RateFactors = ()

  @functools.cache  # noqa: B019 - equal optimizers are one transformation
  def transformation(self) -> optax.GradientTransformation:
    """See `training.optimizer.Optimizer`."""
    lion = optax.chain(
      *clipping(self.clip_norm),
      optax.scale_by_lion(self.b1, self.b2),
      *factors_of_rate(self.rate_factors),
      optax.add_decayed_weights(float(self.weight_decay), mask=decay_mask),
      optax.scale_by_learning_rate(self.learning_rate),
    )
    return with_master_copy(lion) if self.master_copy else lion

  def treatment(self, path: tuple[str, ...]) -> str:
    """See `training.optimizer.Optimizer`."""
    decayed = ", decayed" if self.weight_decay and is_decayed(path) else ""
    return f"Lion{decayed}{told_factor(self.rate_factors, path)}"
