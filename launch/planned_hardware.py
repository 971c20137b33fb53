"""Chooses hardware that need not be attached, and makes this process compile for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from base.errors import UserError

if TYPE_CHECKING:
  from planning.hardware.chip import Hardware

HELP = "a TPU slice or GPUs: v3-32, v4-64, v5e-256, v5p-128, v6e-64, tpu7x-128, v5p:4x4x8, h200-8"


def choose(name: str) -> Hardware:
  """Returns the hardware, once JAX's environment is set for its compiler; before JAX starts.

  Raises:
    UserError: there is no such hardware, or no compiler for it.
  """
  from planning.hardware import catalogue

  try:
    hardware = catalogue.hardware(name)
  except ValueError as error:
    raise UserError(str(error)) from None
  # This process runs on the CPU; the compiler is loaded by name.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # The cache cannot load programs for devices that are not attached.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  flags = [os.environ.get("XLA_FLAGS", ""), hardware.environment.get("XLA_FLAGS", "")]
  os.environ.update({**hardware.environment, **os.environ, "XLA_FLAGS": " ".join(flags).strip()})
  try:
    hardware.devices  # noqa: B018 - what the compiler does not know is refused here
  except ValueError as error:
    raise UserError(str(error)) from None
  return hardware
