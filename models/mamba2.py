"""Mamba-2 (Dao and Gu 2024): mixers alone, without MLPs."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from layers.mamba2 import Mamba2Mixer
from models.backbone import Backbone
from models.language_model import LanguageModel


def mamba2(
  backbone: Backbone,
  *,
  heads: int,
  expand: int = 2,
  state_size: int = 128,
  groups: int = 1,
  chunk: int = 128,
  ssd: str | None = None,
) -> LanguageModel:
  """Builds Mamba-2.

  A mixer and an MLP of the other models are two layers here, so that there are twice `backbone.depth`.

  Args:
    backbone: what all models share; what concerns MLPs and biases has no meaning here.
    heads: attention heads of this size. A head of Mamba-2 has half the channels: 64 where those have
      128, as in the paper.
    expand: channels of the mixer over D.
    state_size: N, rows of a head's state.
    groups: groups of heads that share what writes and reads the state.
    chunk: steps that are multiplied as one matrix.
    ssd: a name of `kernels.ssd.IMPLEMENTATIONS`; None picks by backend.
  """
  if backbone.width % (2 * heads):
    raise ValueError(
      f"heads={heads} does not halve width={backbone.width} evenly: a head of Mamba-2 has "
      "width / (2 heads) channels. Choose a number of heads whose double divides the width."
    )
  depth = 2 * backbone.depth
  mixer = partial(
    Mamba2Mixer,
    heads=2 * expand * heads,
    head_dim=backbone.width // (2 * heads),
    state_size=state_size,
    groups=groups,
    chunk=chunk,
    output_scale=1 / depth,
    implementation=ssd,
    dtype=jnp.dtype(backbone.dtype),
    param_dtype=jnp.dtype(backbone.param_dtype),
  )
  return backbone.model((mixer,)).clone(depth=depth, mlp=None)
