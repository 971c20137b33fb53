"""Host memory of the process, apart from JAX's arrays."""

from __future__ import annotations

import ctypes


def release_free_memory() -> None:
  """Returns freed memory to the system, if the C library is glibc.

  XLA's compiler leaves some 200 MB of freed memory, which glibc would keep in addition to later
  arrays.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
