"""The processes of one program, one per host: who speaks for all, and what all must agree on."""

from __future__ import annotations

import hashlib

import jax
import numpy as np

# Of a text that every process can show the others.
_SHOWN_BYTES = 2**16


def count() -> int:
  """Number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this process writes and prints for all."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns once every process has come here; `what` names the place in errors."""
  if count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


def told_by_first(text: str) -> str:
  """The text of the first process, on every process; what the others pass is not looked at."""
  if count() == 1:
    return text
  from jax.experimental import multihost_utils

  shown = np.zeros(_SHOWN_BYTES, np.uint8)
  encoded = np.frombuffer(text.encode()[:_SHOWN_BYTES], np.uint8)
  shown[: len(encoded)] = encoded
  told = np.asarray(multihost_utils.broadcast_one_to_all(shown))
  return bytes(told.astype(np.uint8)).rstrip(b"\0").decode(errors="replace")


def require_same(text: str, what: str) -> None:
  """Compares a text between all processes.

  Raises:
    ValueError: on every process, if it differs on one: it says which, and the first line that does.
  """
  if count() == 1:
    return
  from jax.experimental import multihost_utils

  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  digests = np.asarray(multihost_utils.process_allgather(digest))
  if (digests == digests[0]).all():
    return
  shown = np.zeros(_SHOWN_BYTES, np.uint8)
  encoded = np.frombuffer(text.encode()[:_SHOWN_BYTES], np.uint8)
  shown[: len(encoded)] = encoded
  texts = [
    bytes(row).rstrip(b"\0").decode(errors="replace").splitlines()
    for row in np.asarray(multihost_utils.process_allgather(shown))
  ]
  other = int(np.argmax((digests != digests[0]).any(axis=1)))
  pairs = zip(texts[0] + [""], texts[other] + [""], strict=False)
  first, second = next(((a, b) for a, b in pairs if a != b), ("", "(beyond what is shown)"))
  raise ValueError(
    f"the processes disagree about {what}: process 0 has {first.strip()!r}, process {other} has "
    f"{second.strip()!r}. Start all of them with the same files and arguments."
  )
