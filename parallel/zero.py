"""ZeRO: splits the train state over devices with copies of it (Rajbhandari et al. 2020).

ZeRO is a transformation of shardings. Stage 1 splits the optimizer's state, stage 2 also the
gradients (by a reduce-scatter), stage 3 also the parameters (each layer gathers its own just before
use). Layers do not know the stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jax.sharding import PartitionSpec

from parallel.rules import named_axes

# The first stage that splits each kind of array.
OPTIMIZER, GRADIENTS, PARAMETERS = 1, 2, 3
# The axis of the scan over layers: if it were split, every step would fetch its layer from one
# device.
_SCANNED = "layers"


def check_stage(stage: int) -> None:
  """Raises ValueError for an unknown stage."""
  if stage not in range(4):
    raise ValueError(
      f"ZeRO stage {stage} does not exist. Choose 0 (nothing split over data), 1 (optimizer "
      "state), "
      "2 (gradients too) or 3 (parameters too)."
    )


def split_dimension(
  axes: tuple[str | None, ...], shape: tuple[int, ...], shards: int
) -> int | None:
  """Chooses the dimension of a parameter for ZeRO to split.

  Args:
    axes: its logical axes.
    shape: the shape of a device's part by the rules.
    shards: number of shards.

  Returns:
    the first dimension that divides; None if none does, and for vectors, which are far below 0.1%
    of a model and would cost a collective each. The first, because TPUs reduce-scatter along the
    last dimension by computing the whole sum on every device.
  """
  dimensions = [index for index, axis in enumerate(axes) if axis != _SCANNED]
  if len(dimensions) < 2 or shards == 1:
    return None
  return next((index for index in dimensions if shape[index] % shards == 0), None)


def placement(
  spec: PartitionSpec,
  axes: tuple[str | None, ...],
  shape: tuple[int, ...],
  sizes: Mapping[str, int],
  over: tuple[str, ...],
) -> PartitionSpec:
  """Splits a parameter's sharding further.

  Args:
    spec: its sharding by the rules.
    axes: its logical axes.
    shape: its global shape.
    sizes: sizes of the mesh axes.
    over: the mesh axes to split over.
  """
  entries = [*spec] + [None] * (len(shape) - len(spec))
  held = tuple(
    size // math.prod(sizes[name] for name in named_axes((entry,)))
    for size, entry in zip(shape, entries, strict=True)
  )
  shards = math.prod(sizes[name] for name in over)
  dimension = split_dimension(axes, held, shards)
  if dimension is not None:
    names = (*named_axes((entries[dimension],)), *over)
    entries[dimension] = names[0] if len(names) == 1 else names
  return PartitionSpec(*entries)
