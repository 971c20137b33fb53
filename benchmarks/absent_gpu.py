"""An H200 that need not be attached: XLA compiles for it anyway, with the `gpu` extra.

Importing this module sets what XLA reads from the environment, so it must come before the first use
of JAX.
"""

from __future__ import annotations

import os

from planning.hardware import catalogue

H200 = catalogue.hardware("h200-1")
os.environ.update(H200.environment, JAX_PLATFORMS="cpu")


def device():
  """The GPU to compile for.

  Raises:
    SystemExit: the CUDA plugin is not installed.
  """
  try:
    return H200.devices[0]
  except ValueError as error:
    raise SystemExit(f"error: {error}") from None
