"""Adafactor: second moments of matrices as an outer product (Shazeer and Stern 2018, arXiv
1804.04235).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import optax

from base.ranges import Count, NotNegative, Positive
from training.optimizer import clipping, decay_mask, is_decayed, with_master_copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor:
  """Adafactor without momentum; weight decay as in `AdamW`.

  Its state for a matrix is a row and a column, in place of AdamW's two copies.

  Attributes:
    learning_rate: schedule by steps taken; skipped steps do not count.
    decay_exponent: the second moment's decay at step t is 1 - t ** -decay_exponent (section 7.2).
    update_clip: largest root mean square of an array's update before the rate (section 6); None for
      no limit.
    scale_by_parameter: whether the rate is relative to the root mean square of each array (section
      8).
    least_factored: matrices with a smaller side keep full second moments.
    weight_decay: per unit of learning rate.
    clip_norm: largest global norm of a gradient; None for no limit.
    master_copy: keep a float32 copy of lower-precision parameters in the state.
  """

  reads_rates: ClassVar[bool] = True  # See `training.rates.transformation`.

  learning_rate: optax.Schedule
  decay_exponent: Positive = 0.8
  update_clip: Positive | None = 1.0
  scale_by_parameter: bool = False
  least_factored: Count = 128
  weight_decay: NotNegative = 0.1
  clip_norm: Positive | None = 1.0
  master_copy: bool = False

  @functools.cache  # noqa: B019 - equal optimizers are one transformation
  def transformation(self) -> optax.GradientTransformation:
    """See `training.optimizer.Optimizer`."""
    clip = [] if self.update_clip is None else [optax.clip_by_block_rms(float(self.update_clip))]
    scale = [optax.scale_by_param_block_rms()] if self.scale_by_parameter else []
    adafactor = optax.chain(
      *clipping(self.clip_norm),
      optax.scale_by_factored_rms(
        decay_rate=self.decay_exponent, min_dim_size_to_factor=self.least_factored
      ),
      *clip,
      *scale,
      optax.add_decayed_weights(float(self.weight_decay), mask=decay_mask),
      optax.scale_by_learning_rate(self.learning_rate),
    )
    return with_master_copy(adafactor) if self.master_copy else adafactor

  def treatment(self, path: tuple[str, ...]) -> str:
    """See `training.optimizer.Optimizer`."""
    return "Adafactor, decayed" if self.weight_decay and is_decayed(path) else "Adafactor"
