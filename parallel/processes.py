"""The processes of a program, one per host: the first one, exchanges and checks of agreement."""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path

import jax

from base import buckets, mounts
from parallel import coordination

# Longest text to exchange in full, and longest line in a message.
_SHOWN = 2**16
_SHOWN_LINE = 80
# A file that one host wrote may take seconds to appear in another's cache of a shared folder.
_SHARING_SECONDS = 10
# On a disk of one host, where it appears at once if the processes are on the same host.
_SHARING_SECONDS_OF_A_DISK = 0.5


def count() -> int:
  """Number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this process writes and prints for all."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Waits until every process has called this; `what` names the call in errors."""
  if count() > 1:
    coordination.exchange(what, "")


def gather(text: str, what: str) -> list[str]:
  """Returns the texts of all processes in order; `what` names the call in errors."""
  return coordination.exchange(what, text) if count() > 1 else [text]


def told_by_first(text: str) -> str:
  """Returns the first process's text on every process; the others' texts are ignored."""
  return gather(text if is_first() else "", "what the first process says")[0]


def require_same(text: str, what: str) -> None:
  """Compares a text between all processes.

  Raises:
    ValueError: on every process, if one differs; the message has that process and the first line.
  """
  digests = gather(hashlib.sha256(text.encode()).hexdigest(), f"digest of {what}")
  other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
  if other is None:
    return
  texts = [shown.splitlines() for shown in gather(text[:_SHOWN], what)]
  pairs = zip(texts[0] + [""], texts[other] + [""], strict=False)
  first, second = next(((a, b) for a, b in pairs if a != b), ("", "(beyond what is shown)"))
  raise ValueError(
    f"the processes disagree about {what}: {coordination.name(0)} has {_shown(first)}, "
    f"{coordination.name(other)} has {_shown(second)}. Start all of them with the same files and "
    "arguments."
  )


def _shown(line: str) -> str:
  line = line.strip()
  return repr(line if len(line) <= _SHOWN_LINE else line[:_SHOWN_LINE] + "...")


def require_shared(folder: Path) -> None:
  """Checks that a folder, which need not exist yet, is the same on every host.

  Process 0 writes a temporary file into it, or into its nearest existing parent.

  Raises:
    ValueError: on every process, if one does not see the file; the message names it.
  """
  if count() == 1:
    return
  # Hosts may have different paths to the folder, but the same number of levels above it.
  parents = [folder, *folder.absolute().parents]
  levels = next(i for i, parent in enumerate(parents) if parent.is_dir())
  token = f".shared-{uuid.uuid4().hex}"
  problem = ""
  if is_first():
    try:
      (parents[levels] / token).touch()
    except OSError as error:
      problem = f"cannot write there: {error.strerror}"
  told = gather(f"{levels} {token}", "a file in the folder")[0].split()
  levels, token = int(told[0]), told[1]
  if not is_first() and not _appears(parents[min(levels, len(parents) - 1)] / token):
    problem = "does not see what process 0 wrote there"
  problems = gather(problem, "whether the folder is shared")
  if is_first():
    (parents[levels] / token).unlink(missing_ok=True)
  for process, found in enumerate(problems):
    if found:
      raise ValueError(
        f"{folder} is not shared by all hosts: {coordination.name(process)} {found}. Give a "
        "folder on storage "
        "that every host sees under the same path."
      )


def _appears(file: Path) -> bool:
  of_one_host = not buckets.in_bucket(file) and mounts.is_of_one_host(file.parent)
  end = time.monotonic() + (_SHARING_SECONDS_OF_A_DISK if of_one_host else _SHARING_SECONDS)
  while not file.exists():
    if time.monotonic() > end:
      return False
    time.sleep(0.2)
  return True
