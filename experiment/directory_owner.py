"""Locks a directory that a command writes: a lock file with host, process and heartbeat.

Works on file systems that hosts share: the file is created by a hard link, which is atomic on NFS
as well, and the owner refreshes its time. No kernel lock is needed. In a bucket the service creates
the object unless it exists, in one request; the owner then rewrites another object, which has its
token in its name, so that a late heartbeat cannot replace the lock of a successor.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from base import buckets, paths, small_files
from base.errors import UserError
from experiment import lock_owner
from experiment.lock_owner import Owner

LOCK_FILE = ".owner.json"
BEAT_SECONDS = 5.0
# Without a heartbeat for so long, an owner on another host is dead. NFS shows times up to a minute
# late.
DEAD_SECONDS = 90.0
# A process that was killed takes a moment to end: its memory is taken back first.
DYING_SECONDS = 5.0
# How long an unreadable lock file may be in the middle of a write.
_LOOKS = 20


class Ownership:
  """A lock file that is held and refreshed until `release`."""

  def __init__(self, directory: Path, owner: Owner, made: bool):
    """Starts the heartbeat; `made`: the directory is new, and is removed if it stays empty."""
    self._directory, self._owner, self._made = directory, owner, made
    self._released = threading.Event()
    self._ending = threading.Lock()
    self._beat = threading.Thread(target=self._refresh, name="directory owner", daemon=True)
    self._beat.start()

  def release(self) -> None:
    """Releases the directory."""
    self._released.set()
    self._beat.join()
    lock = self._directory / LOCK_FILE
    own = self._directory / f"{LOCK_FILE}.{self._owner.token}"
    with contextlib.suppress(OSError):
      own.write_text(self._owner.as_json(), encoding="utf-8")
      # As in a takeover: one process checks the lock and removes it.
      found = lock_owner.read(lock)
      if found is not None and found.token == self._owner.token:
        _remove(lock, own, self._owner.token)
    with contextlib.suppress(OSError):
      own.unlink()
    if self._made:
      with contextlib.suppress(OSError):
        self._directory.rmdir()

  def require(self) -> None:
    """Ends this process if it has lost the directory; call before each write to it.

    A process that was stopped, or without its storage, for too long counts as dead and loses the
    directory without notice.
    """
    with contextlib.suppress(OSError):
      for _ in range(_LOOKS):
        if self._is_held():
          return
        time.sleep(0.05)  # perhaps it is being written
      self._end("has another owner: its lock file cannot be read")

  def _is_held(self) -> bool:
    """Whether the lock names this ownership; False if unreadable. Ends the process if it is lost.

    Raises:
      OSError: the storage failed.
    """
    try:
      contents = small_files.read(self._directory / LOCK_FILE)
    except small_files.NotReadable:
      return False
    if contents is None:
      self._end("has no owner any more: its lock file was removed")
    found = lock_owner.parsed(contents)
    if found is not None and found.token != self._owner.token:
      self._end(f"now belongs to {found}")
    return found is not None

  def _refresh(self) -> None:
    # The wait ends at once where the process or its machine slept.
    while not self._released.wait(BEAT_SECONDS):
      # Without a heartbeat the directory is lost; a service's library has errors of its own.
      with contextlib.suppress(Exception):
        if self._is_held():
          _refresh(self._directory / LOCK_FILE, self._owner)

  def _end(self, why: str) -> NoReturn:
    """Ends this process at once, so that it writes nothing more, even on exit."""
    self._ending.acquire()  # never released: one thread prints
    print(
      f"error: {paths.shown(self._directory)} {why}. This process stopped for too long and lost "
      "the directory; it ends without saving.",
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)


@contextlib.contextmanager
def owned(directory: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
  """Locks a directory, created if missing; takes it over from a dead owner.

  Args:
    directory: the directory.
    say: receives the line that this process waits for another host's owner; None prints to stderr.

  Raises:
    UserError: another process holds it, or it cannot be written.
  """
  ownership = take(directory, say)
  try:
    yield
  finally:
    ownership.release()


@contextlib.contextmanager
def owned_by_job(directory: Path) -> Iterator[Callable[[], None]]:
  """Locks a directory for all processes of a program, in the first of them; see `owned`.

  Yields a function to call before each write: see `Ownership.require`.

  Raises:
    UserError: on every process, if the first cannot lock the directory.
  """
  from parallel import processes

  ownership, refusal = None, ""
  if processes.is_first():
    try:
      ownership = take(directory)
    except UserError as error:
      refusal = str(error)
  try:
    if refusal := processes.told_by_first(refusal):
      raise UserError(refusal)
    # When the process with the lock ends, the others end.
    yield ownership.require if ownership else lambda: None
  finally:
    if ownership is not None:
      ownership.release()


def take(directory: Path, say: Callable[[str], None] | None = None) -> Ownership:
  """Locks a directory until `release`; see `owned`."""
  made = not directory.exists()
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _unwritable(directory, error) from None
  lock = directory / LOCK_FILE
  owner = lock_owner.this_process()
  own = directory / f"{LOCK_FILE}.{owner.token}"
  watched: tuple[str, float] | None = None
  began = time.monotonic()
  try:
    while True:
      own.write_text(owner.as_json(), encoding="utf-8")
      if _link(own, lock):
        return Ownership(directory, owner, made)
      # The clock of the file system, not of one of its hosts.
      now, (key, holder) = own.stat().st_mtime, _owner(lock)
      beat = _beat(lock, holder)
      if beat is None:
        continue  # it has just been released
      silent = now - beat
      if holder is None and silent < BEAT_SECONDS:
        time.sleep(0.1)  # perhaps it is being written
        continue
      if holder is None or _is_dead(holder, silent):
        _remove(lock, own, key)
        continue
      if holder.machine == lock_owner.machine():
        if time.monotonic() - began > DYING_SECONDS:
          raise _held(directory, holder)
        time.sleep(0.1)
        continue
      if watched is None:
        watched, began = (holder.token, beat), time.monotonic()
        text = (
          f"{paths.shown(directory)} belongs to {holder}; waiting up to "
          f"{DEAD_SECONDS - silent:.0f} s for its heartbeat"
        )
        (say or (lambda text: print(text, file=sys.stderr, flush=True)))(text)
      elif watched != (holder.token, beat) or time.monotonic() - began > 2 * DEAD_SECONDS:
        raise _held(directory, holder)
      time.sleep(BEAT_SECONDS / 5)
  except OSError as error:
    raise _unwritable(directory, error) from None
  finally:
    with contextlib.suppress(OSError):
      own.unlink()


def holder(directory: Path) -> Owner | None:
  """Reads a directory's owner, dead or alive, from the lock file; None if there is none."""
  return lock_owner.read(directory / LOCK_FILE)


def is_abandoned(directory: Path) -> bool:
  """Whether the owner of a directory is dead: ended, or without a heartbeat for long."""
  found = holder(directory)
  beat = _beat(directory / LOCK_FILE, found)
  if beat is None:
    return False
  silent = (time.time() - beat) / 10  # this host's clock may differ from the file system's
  return silent > DEAD_SECONDS if found is None else _is_dead(found, silent)


def _is_dead(owner: Owner, silent: float) -> bool:
  """Whether an owner counts as dead after `silent` seconds without a heartbeat.

  On this machine only the process counts: it may be stopped, or the machine may have slept.
  """
  return owner.is_gone() if owner.machine == lock_owner.machine() else silent > DEAD_SECONDS


def _held(directory: Path, owner: Owner) -> UserError:
  return UserError(
    f"{paths.shown(directory)} is in use: it belongs to {owner}. Wait for that process or end it "
    "(the same command then continues), or name another directory. If you cannot see that process "
    "but know "
    f"that it ended, remove {paths.shown(directory / LOCK_FILE)}."
  )


def _unwritable(directory: Path, error: OSError) -> UserError:
  if isinstance(error, FileExistsError | NotADirectoryError):
    return UserError(f"{paths.shown(directory)} is a file, or lies in one. Name a folder.")
  return UserError(
    f"{paths.shown(directory)} cannot be written: {error.strerror or error}. Free space or change "
    "the permissions, or name another directory."
  )


def _link(own: Path, lock: Path) -> bool:
  """Creates the lock file atomically unless there is one; returns whether it did."""
  if buckets.in_bucket(lock):
    contents = own.read_bytes()
    # A request that is sent again after a lost answer finds its own object.
    return cast(Any, lock).create(contents) or small_files.read(lock) == contents
  try:
    os.link(own, lock)
  except FileExistsError:
    return False
  except OSError:
    if not own.exists():
      raise
    # A lost answer of an NFS server looks like a failure.
    if own.stat().st_nlink == 2:
      return True
    # A file system without hard links.
    try:
      handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
      return False
    with os.fdopen(handle, "wb") as file:
      file.write(own.read_bytes())
  return True


def _remove(file: Path, own: Path, key: str) -> None:
  """Removes the lock of a dead owner, or one's own, unless it has a new owner.

  The right to remove a lock is itself a lock file, which names the remover. Its name contains the
  owner's token, so that it does not apply to the next lock. A dead remover's file is removed in
  the same way. The caller tries again.

  Args:
    file: the lock, or the file of a remover.
    own: a file that names this process and has no other link.
    key: the dead owner's key by `_owner`.
  """
  right = own.with_name(f"{LOCK_FILE}.dead.{key}")
  if _link(own, right):
    try:
      if _owner(file)[0] == key:
        file.unlink(missing_ok=True)
        if buckets.in_bucket(file):
          file.with_name(f"{LOCK_FILE}.{key}").unlink(missing_ok=True)  # its last heartbeat
    finally:
      right.unlink(missing_ok=True)
    return
  beat, (right_key, remover) = _mtime(right), _owner(right)
  if beat is None:
    return  # just removed by another process
  silent = own.stat().st_mtime - beat
  if silent > BEAT_SECONDS if remover is None else _is_dead(remover, silent):
    _remove(right, own, right_key)
  else:
    time.sleep(0.01)


def _owner(file: Path) -> tuple[str, Owner | None]:
  """Reads the owner in a file (None if unreadable) and a unique key of it."""
  owner = lock_owner.read(file)
  if owner is not None:
    return owner.token, owner
  try:
    state = file.lstat()  # by its inode; a link may be dangling
  except FileNotFoundError:
    return "", None
  return f"{state.st_ino}-{state.st_mtime_ns}", None


def _refresh(lock: Path, owner: Owner) -> None:
  """Tells others that the owner of a lock lives."""
  if buckets.in_bucket(lock):
    lock.with_name(f"{LOCK_FILE}.{owner.token}").write_text(owner.as_json(), encoding="utf-8")
  else:
    os.utime(lock)


def _beat(lock: Path, owner: Owner | None) -> float | None:
  """Returns the time of the owner's last heartbeat; None if there is no lock."""
  beat = _mtime(lock)
  if beat is None or owner is None or not buckets.in_bucket(lock):
    return beat
  return max(beat, _mtime(lock.with_name(f"{LOCK_FILE}.{owner.token}")) or beat)


def _mtime(file: Path) -> float | None:
  try:
    return file.lstat().st_mtime
  except FileNotFoundError:
    return None
