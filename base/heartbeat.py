"""Lines that a long call still runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# A first line after so long, and then again: a person who waits looks for a hang after 20 s.
SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def telling(
  what: str, tell: Callable[[str], None], seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[None]:
  """Tells `<what>: 15 s so far` again and again until the block ends.

  Args:
    what: what takes long, such as `compiling the step`.
    tell: receives each line, in another thread.
    seconds: time between two lines.
  """
  began, ended = time.monotonic(), threading.Event()

  def beat() -> None:
    while not ended.wait(seconds):
      tell(f"{what}: {time.monotonic() - began:.0f} s so far")

  thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
