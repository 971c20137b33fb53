"""Exchanges texts between the processes of a program, and ends all when one ends.

Texts go through the key-value store of JAX's coordination service, which process 0 runs. Only this
file uses JAX's client of it, which is private. A thread in every process watches for others that
end, for which the main thread might wait forever.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, cast

from parallel.arrival import HostError, come_to, is_gone, of_cluster, receive
from parallel.native_log import NativeLog

# How long a process may be silent, or the network down, before the others end.
SILENCE_SECONDS = 40
# Exit status if another process ended, unless by the user.
LOST_HOST = 1
LATE = 1
_SPACE = "griffin"
_FAILED = f"{_SPACE}/failed"
_SEEN = f"{_SPACE}/seen"
_BEATS = f"{_SPACE}/beat"
_STOP = f"{_SPACE}/stop"
_SLICE_SECONDS = 1
# Least time for JAX's service and clients to connect.
_JOINING_SECONDS = 8
_SEEING_SECONDS = 5
# Within the six seconds that an abort is held.
_PROBE_SECONDS = 2
# If a thread wakes up this late, its process was stopped, or its machine slept.
_STOPPED_SECONDS = 15

_exchanges = itertools.count()
_hosts: list[str] = []
_finished = threading.Event()
# Held by the thread that prints why this process ends.
_end_is_mine = threading.RLock()
_threads: list[threading.Thread] = []
_log: NativeLog | None = None
# Time of the last answer of process 0; None before all have joined.
_heard: float | None = None


def _state() -> Any:
  from jax._src import distributed

  return distributed.global_state


def is_joined() -> bool:
  """Whether this process is one of several that have joined."""
  return bool(_hosts)


def name(process: int) -> str:
  """Formats a process and its host for messages."""
  return f"process {process} ({_hosts[process]})" if _hosts else f"process {process}"


def join(coordinator: str | None, count: int | None, index: int | None, *, seconds: int) -> None:
  """Joins the processes; returns once all have joined.

  Args:
    coordinator: host:port of process 0; None reads all three from the cluster (SLURM, Kubernetes,
      TPU).
    count, index: number of processes, and index of this one.
    seconds: how long to wait for the others.

  Raises:
    HostError: the cluster does not name the others, or they do not join.
  """
  import jax

  global _heard, _log
  local = None
  if coordinator is None:
    coordinator, count, index, local = of_cluster(seconds)
  count, index = cast(int, count), cast(int, index)  # Given together with the coordinator.
  if count == 1:
    return
  began = time.monotonic()
  if index == 0:
    receive(coordinator, count, seconds)
  else:
    come_to(coordinator, count, index, seconds)
  # All have joined. If the client timed out itself, it would abort in C++.
  seconds = max(_JOINING_SECONDS, round(seconds - (time.monotonic() - began)))
  late = threading.Timer(seconds, _missing, [coordinator, count, index, seconds])
  late.daemon = True
  late.start()
  _log = NativeLog()
  _delay_aborts()
  _start(_probe, index, coordinator)
  try:
    jax.distributed.initialize(
      coordinator_address=coordinator,
      num_processes=count,
      process_id=index,
      local_device_ids=local,
      initialization_timeout=seconds + 30,
      # Only if this file's watch fails.
      heartbeat_timeout_seconds=2 * SILENCE_SECONDS,
      shutdown_timeout_seconds=SILENCE_SECONDS,
    )
    hosts = exchange("hosts", socket.gethostname())
  except BaseException:
    _finished.set()
    _log.close()
    raise
  late.cancel()
  _hosts[:] = hosts
  _heard = time.monotonic()
  _start(_watch, index, count)
  atexit.register(_leave)


def _start(watches: Callable[..., None], *args: Any) -> None:
  thread = threading.Thread(target=watches, args=args, daemon=True, name=watches.__name__)
  _threads.append(thread)
  thread.start()


def _missing(coordinator: str, count: int, index: int, seconds: int) -> NoReturn:
  who = "process 1 has" if count == 2 else f"some of processes 1 to {count - 1} have"
  reason = f"{who} not joined process 0 at {coordinator}"
  if index:
    reason = f"process {index} could not join process 0 at {coordinator}: others are missing"
  _end(f"{reason} (waited {seconds} s). Start all {count} processes.", LATE)


def exchange(what: str, text: str) -> list[str]:
  """Returns the texts of all processes in order; all must call it with the same `what`.

  It waits as long as the others live, and handles signals meanwhile.

  Args:
    what: name of the exchange, the same in every process.
    text: this process's text.

  Raises:
    HostError: another process called it with another `what`.
  """
  state = _state()
  if state.client is None:
    return [text]
  key = f"{_SPACE}/{next(_exchanges)}"
  state.client.key_value_set(f"{key}/{state.process_id}", f"{what}\n{text}")
  texts = []
  for process in range(state.num_processes):
    thing, _, found = _get(state.client, f"{key}/{process}").partition("\n")
    if thing != what:
      raise HostError(
        f"{name(process)} is at {thing!r} where {name(state.process_id)} is at {what!r}"
      )
    texts.append(found)
  return texts


def _get(client: Any, key: str) -> str:
  while True:
    try:
      return client.blocking_key_value_get(key, _SLICE_SECONDS * 1000)
    except Exception as error:  # a JaxRuntimeError, a class that moves between versions
      if "DEADLINE_EXCEEDED" not in str(error):
        wait_for_verdict()
        raise


def request_stop(reason: str) -> None:
  """Makes all processes stop after the same step, as in a preemption, and tells them why."""
  _try_set(_STOP, reason)
  os.kill(os.getpid(), signal.SIGTERM)  # JAX's preemption service listens to it


def stop_reason() -> str | None:
  """Returns the reason given to `request_stop` in any process; None if it was not called."""
  client = _state().client
  return client and _try_get(client, _STOP)


def claim_end() -> None:
  """Makes this thread the only one to print why the process ends; blocks if another is."""
  if not _end_is_mine.acquire(blocking=False):
    time.sleep(SILENCE_SECONDS)  # the watch ends the process meanwhile
  _finished.set()


def announce(reason: str, status: int) -> None:
  """Tells the other processes that this one ends, and why; they end with the same status.

  Call `os._exit` afterwards: an ordinary exit waits for the others.
  """
  claim_end()
  state = _state()
  told = {"process": state.process_id, "reason": reason, "status": status}
  _try_set(_FAILED, json.dumps(told))
  _let_others_see(state)
  if _log is not None:
    _log.close()


def wait_for_verdict() -> None:
  """Waits after a failed exchange, so that the watch can end this process with the lost one's name.

  The error of a collective has at best an address.
  """
  if is_joined() and not _finished.is_set():
    time.sleep(SILENCE_SECONDS + 2 * _SEEING_SECONDS)


def _watch(index: int, count: int) -> None:
  """Sends heartbeats, and ends this process if another one is dead.

  Its calls are short, because a thread in C++ code crashes the process when Python ends.
  """
  global _heard
  client = _state().client
  beats: dict[int, tuple[str, float]] = {}
  before = time.monotonic()
  for beat in itertools.count():
    try:
      client.key_value_set(f"{_BEATS}/{index}", str(beat), allow_overwrite=True)
      _heard = time.monotonic()
      if _heard - before > _STOPPED_SECONDS:
        beats.clear()  # the knowledge of the others is as old
      before = _heard
      if index == 0:
        _judge(client, count, beats)
    except Exception:  # the probe counts how long
      pass
    if failed := _try_get(client, _FAILED):
      _follow(json.loads(failed))
    if _finished.wait(_SLICE_SECONDS):
      return


def _probe(index: int, coordinator: str) -> None:
  """Ends this process when process 0 has ended or is silent, or this one was stopped too long.

  It does not use JAX's client, whose calls block while process 0 is stopped, and hang in its abort.
  """
  global _heard
  before = time.monotonic()
  while not _finished.wait(_PROBE_SECONDS):
    now = time.monotonic()
    stopped, before = now - before, now
    if stopped > SILENCE_SECONDS and is_joined():
      _end(
        f"{name(index)} was stopped for {stopped:.0f} s; the others wait for {SILENCE_SECONDS} s",
        LOST_HOST,
      )
    if stopped > _STOPPED_SECONDS and is_joined():
      _heard = now
    if index and is_gone(coordinator):
      _lost_first(f"process 0 (at {coordinator})", "it was killed, or its host is down")
    if index and _heard is not None and time.monotonic() - _heard > SILENCE_SECONDS:
      silent = f"silent for {SILENCE_SECONDS} s: it was stopped, or its host or network is down"
      _lost_first(name(0), silent)


def _lost_first(who: str, why: str) -> None:
  if not _finished.is_set():
    _end(f"{name(0) if is_joined() else who} does not answer any more: {why}", LOST_HOST)


def _judge(client: Any, count: int, beats: dict[int, tuple[str, float]]) -> None:
  """Announces in process 0 the end of a process that has been silent for too long."""
  now = time.monotonic()
  found = {int(key.rpartition("/")[2]): text for key, text in client.key_value_dir_get(_BEATS)}
  for process in range(count):
    text = found.get(process, "")
    if beats.get(process, (None,))[0] != text:
      beats[process] = text, now
    elif now - beats[process][1] > SILENCE_SECONDS:
      reason = (
        f"it has been silent for {SILENCE_SECONDS} s: it was killed, or its host or network is down"
      )
      _try_set(_FAILED, json.dumps({"process": process, "reason": reason, "status": LOST_HOST}))


def _follow(failed: dict[str, Any]) -> None:
  """Ends this process because another one did."""
  state = _state()
  if _finished.is_set() or failed["process"] == state.process_id:
    return
  if not _end_is_mine.acquire(blocking=False):
    return  # the main thread is printing its own reason
  _let_others_see(state, but=failed["process"])
  _end(f"{name(failed['process'])} ended: {failed['reason']}", failed["status"])


def _let_others_see(state: Any, but: int | None = None) -> None:
  """Marks that this process knows of the end; process 0, which has the store, waits for all."""
  _try_set(f"{_SEEN}/{state.process_id}", "=")
  end = time.monotonic() + _SEEING_SECONDS
  expected = state.num_processes - (but is not None)
  while state.process_id == 0 and time.monotonic() < end:
    try:
      if len(state.client.key_value_dir_get(_SEEN)) >= expected:
        return
    except Exception:
      return
    time.sleep(0.05)


def _leave() -> None:
  """Waits at an ordinary end for the others, while still watching them."""
  if not _finished.is_set() and _state().client is not None:
    exchange("end", "")
  _finished.set()
  for thread in _threads:
    thread.join(timeout=_SEEING_SECONDS)
  if _log is not None:
    _log.close()


def _end(line: str, status: int) -> NoReturn:
  """Ends this process at once; an ordinary exit would wait for the others."""
  if not _end_is_mine.acquire(blocking=False):
    time.sleep(SILENCE_SECONDS)
  start = "\n" if sys.stderr.isatty() else ""
  line = f"{start}{'error' if status else 'warning'}: {line}\n"
  if _log is None:
    os.write(2, line.encode())
  else:
    _log.write(line)
  os._exit(status)


def _delay_aborts() -> None:
  """Delays an aborting thread by six seconds.

  JAX's client aborts the process as soon as the connection to process 0 breaks; in that time the
  watch prints which host is lost. The handler is C's `sleep`, called with the signal's number (6);
  then the abort continues.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _try_set(key: str, text: str) -> None:
  """Sets a key if it is not set yet; ignores failures."""
  try:
    _state().client.key_value_set(key, text)
  except Exception:
    return


def _try_get(client: Any, key: str) -> str | None:
  try:
    return client.key_value_try_get(key)
  except Exception:
    return None
