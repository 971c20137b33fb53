"""Traces some steps of a run for XProf: those named at the start, or the next ones on a signal."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from base import buckets, paths

# In a run directory.
FOLDER = "profile"
# Steps that a signal profiles.
STEPS = 5
SIGNAL = getattr(signal, "SIGUSR2", None)  # none on Windows


class Profiler:
  """Writes traces of steps into a run directory. A trace that fails never ends a run.

  As a context it handles the signal, and ends a trace that has begun.
  """

  def __init__(
    self,
    run_dir: Path,
    steps: range | None = None,
    say: Callable[[str], None] = lambda text: None,
  ):
    """Plans a trace; nothing is traced yet.

    Args:
      run_dir: the run's directory.
      steps: the steps to trace; 1 is the run's first. None traces on the signal alone.
      say: shows a line.
    """
    self._folder, self._say = buckets.beside(run_dir) / FOLDER, say
    self._steps = steps
    self._traces = self._asked = False
    self._before: Any = None

  def __enter__(self) -> Profiler:
    if SIGNAL is not None:
      # Only the main thread can handle signals.
      with contextlib.suppress(ValueError):
        self._before = signal.signal(SIGNAL, self._ask)
    return self

  def __exit__(self, *error: object) -> None:
    if self._traces:
      self._stop()
    elif self._steps is not None:
      first, last = self._steps[0], self._steps[-1]
      self._say(f"warning: no profile: none of the steps {first} to {last} was done")
    if self._before is not None and SIGNAL is not None:
      signal.signal(SIGNAL, self._before)

  def _ask(self, number: int, frame: Any) -> None:
    del number, frame
    self._asked = True

  def begins(self, number: int) -> bool:
    """Whether a trace begins with this step; takes up a signal."""
    if self._asked and not self._traces:
      self._steps = range(number, number + STEPS)
    self._asked = False
    return not self._traces and self._steps is not None and number in self._steps

  def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
    """Names a step in traces."""
    return jax.profiler.StepTraceAnnotation("train", step_num=number)

  def ends(self, number: int) -> bool:
    """Whether a trace ends with this step."""
    return self._traces and self._steps is not None and number + 1 not in self._steps

  def end(self) -> None:
    """Ends the trace; the device must have done its last step."""
    self._stop()
    self._steps = None

  def begin(self) -> None:
    """Begins a trace."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call, which slows the steps down
    try:
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._traces = True
    except Exception as error:  # in XLA's words: another trace, a full disk
      self._steps = None
      self._say(f"warning: no profile: {_one_line(error)}")

  def _stop(self) -> None:
    self._traces = False
    try:
      jax.profiler.stop_trace()
      folder = paths.shown(self._folder)
      self._say(f"a profile is in {folder}: xprof --logdir={shlex.quote(folder)}")
    except Exception as error:
      self._say(f"warning: no profile: {_one_line(error)}")


def _one_line(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]
