"""Freed memory goes back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest

from training import host_memory

PIECE, COUNT = 2**16, 2000


def resident() -> int:
  """Bytes of the process that are in memory."""
  return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_pieces_below_one_in_use_go_back():
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  pieces = [libc.malloc(PIECE) for _ in range(COUNT)]
  above = ctypes.c_void_p(libc.malloc(PIECE))
  for piece in pieces:
    ctypes.memset(piece, 1, PIECE)
  for piece in pieces:
    libc.free(ctypes.c_void_p(piece))
  before = resident()
  host_memory.release_free_memory()
  assert before - resident() > 0.8 * PIECE * COUNT
  libc.free(above)
