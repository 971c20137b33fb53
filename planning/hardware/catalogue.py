"""Finds hardware by name, to compile for and to estimate on; it need not be attached."""

from __future__ import annotations

from typing import cast

from planning.hardware import gpu, tpu
from planning.hardware.chip import Hardware


def hardware(name: str) -> Hardware:
  """Finds a TPU slice or GPU nodes: 'v5e-256', 'v5p-128' (128 cores), 'v5p:4x4x8', 'h200-8'.

  Raises:
    ValueError: the name is unknown.
  """
  found = tpu.slice_of(name) or gpu.nodes_of(name)
  if found is None:
    raise ValueError(
      f"hardware {name!r} is not known: name a slice of {', '.join(tpu.GENERATIONS)}, such as "
      f"v5e-256 or v5p:4x4x4, or a number of {' or '.join(gpu.CHIPS)}, such as h200-8."
    )
  return cast(Hardware, found)  # pyright rejects `cached_property` here
