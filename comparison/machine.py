"""Describes the machine and the software versions of a comparison."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import jax

from kernels.platform import cores

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "libtpu")


def hardware() -> dict[str, str]:
  """Describes the devices and the host."""
  devices = jax.devices()
  facts = {"devices": f"{len(devices)} x {devices[0].device_kind}"}
  if devices[0].platform == "cpu":
    facts["devices"] = f"{cores()} cores of {_cpu_name()}"
  else:
    facts["host"] = f"{cores()} cores of {_cpu_name()}"
  if jax.process_count() > 1:
    facts["processes"] = str(jax.process_count())
  return facts


def versions() -> dict[str, str]:
  """Returns the versions of Python and the main packages."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def _cpu_name() -> str:
  """Returns the processor's name from Linux, or its architecture."""
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    lines = []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()
