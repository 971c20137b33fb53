"""Metrics of a run: a file of JSON lines, a progress line, a plot."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from base import buckets, heartbeat, small_files
from training import json_files
from training.object_file import ObjectFile

# In a run directory.
METRICS_FILE = "metrics.jsonl"


class MetricsFile:
  """Appends one JSON object per line; can be truncated to a checkpoint's position.

  Floats read back bit for bit; those that are not finite are null.
  """

  def __init__(
    self,
    path: Path,
    position: int | None = None,
    *,
    before_writing: Callable[[], None] = lambda: None,
  ):
    """Opens the file and truncates it to `position` bytes.

    Args:
      path: the file; created if missing.
      position: bytes to keep; None keeps all.
      before_writing: called before each change; ends a process that lost the directory.
    """
    before_writing()
    self._before_writing, self._path = before_writing, path
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file: Any
    if buckets.in_bucket(path):
      # It asks when it writes, not for each line: each question is a request.
      self._file, self._before_writing = ObjectFile(path, before_writing), lambda: None
    else:
      self._file = path.open("ab")
    if position is not None:
      size = self._file.tell()
      self._file.truncate(min(position, size))
      if not buckets.in_bucket(path):
        self._file.seek(0, 2)
      if 0 < size < position and not path.read_bytes().endswith(b"\n"):
        self._file.write(b"\n")  # a truncated last line must not join the next one

  def write(self, record: dict[str, Any]) -> None:
    """Appends a record, which must have a 'step'."""
    self._before_writing()
    try:
      self._file.write((json_files.dumps(record) + "\n").encode())
      self._file.flush()
    except OSError as error:
      raise small_files.named(error, self._path) from error

  def sync(self) -> None:
    """Makes sure that all records are in the file, where that is not so after each `write`.

    Raises:
      UserError: they cannot be written.
    """
    if isinstance(self._file, ObjectFile):
      self._file.sync()

  @property
  def position(self) -> int:
    """Bytes written so far."""
    return self._file.tell()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
  """Reads the records of a metrics file, without truncated or damaged lines.

  Numbers that were not finite are None.

  Raises:
    small_files.NotReadable: it is a pipe, a device or a folder.
  """
  records = []
  small_files.require_regular(path)
  for line in path.read_bytes().split(b"\n"):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
      continue
    if isinstance(record, dict) and type(record.get("step")) is int:
      records.append(record)
  return records


class ProgressLine:
  """Shows progress on one live line of a terminal, or as plain lines elsewhere."""

  def __init__(self, steps: int, stream: TextIO | None = None, unit: str = "step"):
    """Sets the number of steps, the output stream, and what a step is called."""
    self._stream = sys.stderr if stream is None else stream
    self.live = self._stream.isatty()
    self._steps, self._unit = steps, unit
    self._shown = time.monotonic()
    # Time and step from which steps are timed: by default those of the first line.
    self._first: tuple[float, int] | None = None
    self._width = 0

  def is_due(self, step: int) -> bool:
    """Whether to show a step of work without lines of its own: the last, or after 15 seconds."""
    waited = time.monotonic() - self._shown
    return self.live or step >= self._steps or waited >= heartbeat.SECONDS_BETWEEN_LINES

  def started(self, step: int) -> None:
    """Begins to time the steps after `step`, the first of this process: it included compilation."""
    self._first = (time.monotonic(), step)

  def show(self, step: int, values: dict[str, float]) -> None:
    """Shows a step; at most ten times a second on a terminal."""
    now = time.monotonic()
    if self.live and now - self._shown < 0.1 and step < self._steps:
      return
    self._shown = now
    self._first = self._first or (now, step)
    start, first = self._first
    left = 0.0 if step >= self._steps else math.nan
    if step > first:
      left = (now - start) / (step - first) * (self._steps - step)
    parts = [f"{self._unit} {step}/{self._steps}"]
    parts += [f"{name} {show_number(value)}" for name, value in values.items()]
    if not math.isnan(left):
      parts.append(f"ETA {show_duration(left)}")
    self._print("  ".join(parts))

  def show_heldout(self, step: int, heldout: dict[str, float]) -> None:
    """Shows the held-out figures after a step."""
    # Of a mixture's components only the loss: the line has to stay readable.
    shown = {n: v for n, v in heldout.items() if not n.startswith("heldout_bits_per_byte/")}
    figures = "  ".join(f"{n.removeprefix('heldout_')} {v:.4f}" for n, v in shown.items())
    self.say(f"held-out at step {step}: {figures}")

  def say(self, text: str) -> None:
    """Prints a permanent line."""
    self._write(f"\r{' ' * self._width}\r{text}\n" if self.live else f"{text}\n")
    self._width = 0

  def close(self) -> None:
    """Ends the live line, so that what is printed next begins a line."""
    if self._width:
      self._write("\n")
      self._width = 0

  def _print(self, text: str) -> None:
    if not self.live:
      self._write(f"{text}\n")
      return
    self._write("\r" + text.ljust(self._width))
    self._width = len(text)

  def _write(self, text: str) -> None:
    """Writes to the stream; a closed terminal or a full disk does not end the run."""
    with contextlib.suppress(OSError):
      self._stream.write(text)
      self._stream.flush()


def show_number(value: float) -> str:
  """Formats a number with four digits, or from 1,000 on as a whole one with commas."""
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def show_duration(seconds: float) -> str:
  """Formats seconds as m:ss or h:mm:ss."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


_LABELS = {"bits_per_byte": "bits per byte", "loss": "nats per token"}


def plot_losses(records: list[dict[str, Any]], path: Path, title: str) -> None:
  """Plots training and held-out bits per byte against the step; without these, the losses."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  in_bits = any("bits_per_byte" in r or "heldout_bits_per_byte" in r for r in records)
  quantity = "bits_per_byte" if in_bits or not records else "loss"
  curves: list[tuple[str, str, dict[str, Any]]] = [
    (quantity, "training", {"linewidth": 1}),
    (f"heldout_{quantity}", "held out", {"marker": "o", "linewidth": 1.5}),
  ]
  for name, label, style in curves:
    points = [(r["step"], json_files.number(r[name])) for r in records if name in r]
    if points:
      steps, values = zip(*points, strict=True)
      axes.plot(steps, values, label=label, **style)
  axes.set(title=title, xlabel="step", ylabel=_LABELS[quantity])
  axes.grid(alpha=0.3)
  if axes.lines:  # A run that stopped before its first line has no curve.
    axes.legend()
  picture = io.BytesIO()
  figure.savefig(picture, dpi=120)
  small_files.replace(path, picture.getvalue())
