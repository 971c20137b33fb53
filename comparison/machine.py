"""Describes the machine and the software versions of a comparison."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

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


def comparable(depends: Any) -> Any:
  """Leaves only the versions that a measurement depends on in what a result depends on.

  Times depend on XLA, whose larger changes come with JAX's minor versions. Patch releases, Python
  and the other packages are not expected to change times or losses by more than their noise.

  Args:
    depends: JSON values with the result of `versions` under 'versions'.
  """
  if not isinstance(depends, dict) or not isinstance(depends.get("versions"), dict):
    return depends
  jax_version = str(depends["versions"].get("jax", ""))
  return {**depends, "versions": {"jax": ".".join(jax_version.split(".")[:2])}}


def change(name: str, was: Any, now: Any) -> str:
  """Says what changed since a result was stored.

  Args:
    name: a name in what the result depends on.
    was, now: its old and new value.
  """
  if name == "versions" and isinstance(was, dict):
    return f"JAX was {was.get('jax')} and is {now['jax']}"
  if name == "on" and isinstance(was, dict):
    other = [what for what in sorted(was | now) if was.get(what) != now.get(what)]
    return "; ".join(f"{what} were {was.get(what)} and are {now.get(what)}" for what in other)
  if name == "text":
    return "the files of the held-out text changed"
  return "its options changed" if name == "part" else "a model's configuration changed"


def _cpu_name() -> str:
  """Returns the processor's name from Linux, or its architecture."""
  try:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
  except OSError:
    lines = []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.machine()
