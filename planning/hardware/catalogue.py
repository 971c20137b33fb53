"""Finds hardware by name, to compile for and to estimate on; it need not be attached."""

from __future__ import annotations

from typing import cast

from planning.hardware import gpu, tpu
from planning.hardware.chip import Chip, Hardware


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


# JAX's names of TPUs (`device_kind`).
_TPU_KINDS = {
  "TPU v3": "v3",
  "TPU v4": "v4",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
}


def chip_of(device_kind: str) -> Chip | None:
  """Finds the figures of an attached device by JAX's name of it; None if they are not known.

  GPUs on PCIe boards have other rates than those on the SXM boards of the table.
  """
  if device_kind in _TPU_KINDS:
    return tpu.GENERATIONS[_TPU_KINDS[device_kind]].chip
  if device_kind.endswith(("PCIe", "NVL")):
    return None
  found = [chip for name, chip in gpu.CHIPS.items() if f"NVIDIA {name.upper()}" in device_kind]
  return found[0] if found else None
