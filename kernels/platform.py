"""Selects the implementation of an op, by name or by the platform that a program is built for."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

PLATFORMS = ("cpu", "gpu", "tpu")
# JAX's caches include this context: a function traced for one platform is traced again for another.
_target = jax.make_user_context(default_value=None)
# XLA's options for training steps, by JAX's device kind; docs/design/kernels.md has their gains.
# The SparseCores move what devices exchange, while the TensorCore works.
_SPARSE_CORES: dict[str, int | bool] = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
  "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
}
# Kibibytes of its own memory that a core gives to one operation: half of v6e's, all of TPU7x's.
_ON_CHIP = "xla_tpu_scoped_vmem_limit_kib"
_OPTIONS: dict[str, dict[str, int | bool]] = {
  "TPU v6 lite": {_ON_CHIP: 65536, **_SPARSE_CORES},
  "TPU7x": {_ON_CHIP: 65536, **_SPARSE_CORES},
}


class _Unkept:
  """Keeps what is compiled out of JAX's persistent cache.

  JAX (0.10.2) writes programs for devices that are not attached into it, and then warns that it
  cannot read them.
  """

  _OPTION = "jax_persistent_cache_min_compile_time_secs"

  def __init__(self):
    self._lock = threading.Lock()
    self._depth = 0
    self._seconds = 0.0

  @contextlib.contextmanager
  def active(self) -> Iterator[None]:
    """Context manager; threads may enter and leave it in any order."""
    with self._lock:
      self._depth += 1
      if self._depth == 1:
        self._seconds = getattr(jax.config, self._OPTION)
        jax.config.update(self._OPTION, math.inf)
    try:
      yield
    finally:
      with self._lock:
        self._depth -= 1
        if self._depth == 0:
          jax.config.update(self._OPTION, self._seconds)


_unkept = _Unkept()


class Implementation(NamedTuple):
  """The module and the platforms of an implementation.

  Attributes:
    module: name of the module; it has a function with the op's name, and may have
      `unavailable_reason() -> str | None`, and `refusal(*arguments) -> str | None` for arguments
      that it cannot take.
    platforms: the platforms on which it runs.
    default_on: the platforms on which it is the default, if it is available.
    dtypes: names of the dtypes that it is made for; empty for all. That it does not take others is
      no reason for a warning: a model in float32 is meant to be in float32.
  """

  module: str
  platforms: tuple[str, ...] = PLATFORMS
  default_on: tuple[str, ...] = ()
  dtypes: tuple[str, ...] = ()


def target() -> str:
  """Returns the platform that programs are being built for: 'cpu', 'gpu' or 'tpu'."""
  return _target.value[0] if _target.value else jax.default_backend()


def device_kind() -> str:
  """Returns the device kind that programs are being built for, such as 'TPU v5 lite'.

  Empty if it is not known.
  """
  return _target.value[1] if _target.value else jax.devices()[0].device_kind


def compiler_options() -> dict[str, int | bool]:
  """Returns XLA's options for training steps on the target platform."""
  return dict(_OPTIONS.get(device_kind(), {})) if target() == "tpu" else {}


def cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def targeting(platform: str, kind: str = "") -> Iterator[None]:
  """Builds programs for another platform: ahead-of-time compilation without the device.

      with targeting("tpu", devices[0].device_kind):
        program = jax.jit(step).lower(*arguments_on_a_topology).compile()

  Args:
    platform: 'cpu', 'gpu' or 'tpu': the platform of programs that are traced in this context.
    kind: JAX's `device_kind` of the devices; without it, kernels suit any kind of the platform.
  """
  if platform not in PLATFORMS:
    raise ValueError(f"platform {platform!r} is unknown; choose from {', '.join(PLATFORMS)}.")
  with _target((platform, kind)), _unkept.active():
    yield


def resolve(
  op: str,
  implementation: str | None,
  table: Mapping[str, Implementation],
  arguments: tuple[Any, ...] = (),
) -> Callable[..., Any]:
  """Finds the function that implements an op on the target platform.

  Args:
    op: name of the op, and of the function in each module.
    implementation: a name in the table; None or 'auto' takes the platform's default, or the next
      available implementation if the default is not available.
    table: the op's implementations, best first.
    arguments: those of the op that an implementation may refuse (their types and shapes).

  Raises:
    ValueError: the name is unknown, or not available on the target platform or for these
      arguments; the message lists the available ones.
  """
  platform = target()
  reasons = availability(table, arguments)
  available = [name for name, reason in reasons.items() if reason is None]
  if implementation in (None, "auto"):
    preferred = [name for name, entry in table.items() if platform in entry.default_on]
    usable = [name for name in preferred if reasons[name] is None] or available
    refused = [name for name in preferred if reasons[name]]
    warn = not all(_is_for_other_dtypes(table[name], arguments) for name in refused)
    _say_once(op, platform, usable[0], tuple((name, reasons[name]) for name in refused), warn)
    implementation = usable[0]
  elif implementation not in table:
    raise ValueError(
      f"{op}: implementation {implementation!r} is unknown; available on {platform}: "
      f"{', '.join(available)}."
    )
  elif reasons[implementation] is not None:
    raise ValueError(
      f"{op}: implementation {implementation!r} {reasons[implementation]}; available on "
      f"{platform}: {', '.join(available)}."
    )
  return getattr(importlib.import_module(table[implementation].module), op)


def availability(
  table: Mapping[str, Implementation], arguments: tuple[Any, ...] = ()
) -> dict[str, str | None]:
  """Returns why each implementation cannot run on the target platform; None if it can."""
  platform = target()
  return {name: _reason(entry, platform, arguments) for name, entry in table.items()}


def cuda_refusal(least: int, family: str, most: int | None = None) -> str | None:
  """Returns why a kernel for NVIDIA GPUs cannot run on the GPUs of this process.

  None if it can, or if there are no GPUs: then a program is compiled for the caller's target.

  Args:
    least: the first major compute capability that can run it.
    family: name of the GPUs of that capability.
    most: the last one; None if all later ones can.
  """
  try:
    device = jax.devices("gpu")[0]
  except RuntimeError:
    return None
  capability = str(getattr(device, "compute_capability", ""))
  major = capability.split(".")[0]
  which = f"{least}.x" if most == least else f"{least}.0 or later"
  if not major.isdigit():
    return f"needs an NVIDIA GPU of compute capability {which}, this is {device.device_kind}"
  if int(major) < least or (most is not None and int(major) > most):
    return f"needs compute capability {which} ({family}), {device.device_kind} has {capability}"
  return None


def _reason(entry: Implementation, platform: str, arguments: tuple[Any, ...]) -> str | None:
  """Returns why an implementation cannot run on the platform; None if it can."""
  if platform not in entry.platforms:
    return f"runs on {' and '.join(entry.platforms)}, and this program is built for {platform}"
  if entry.platforms == PLATFORMS:
    return None  # plain XLA is always available: no import is needed
  try:
    module = importlib.import_module(entry.module)
  except ImportError as error:
    return f"cannot be imported ({error})"
  reason = getattr(module, "unavailable_reason", lambda: None)()
  if reason is None and arguments and hasattr(module, "refusal"):
    reason = module.refusal(*arguments)
  return reason


def _is_for_other_dtypes(entry: Implementation, arguments: tuple[Any, ...]) -> bool:
  return bool(entry.dtypes) and all(a.dtype.name not in entry.dtypes for a in arguments)


@functools.cache
def _say_once(
  op: str, platform: str, chosen: str, refused: tuple[tuple[str, str], ...], warn: bool
) -> None:
  why = "".join(f"; {name!r} {reason}" for name, reason in refused)
  level = logging.WARNING if warn else logging.INFO
  logging.getLogger(__name__).log(level, "%s on %s: %s%s", op, platform, chosen, why)
