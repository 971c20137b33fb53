"""This library beside `recurrentgemma` and `transformers`, on the CPU.

    python -m benchmarks.peers train     # loss and gradient: tokens/s, peak memory, first step
    python -m benchmarks.peers decode    # tokens/s after a prompt of 128 tokens; after 10,000
    python -m benchmarks.peers train --network gated_deltanet    # and our time per token by length
    python -m benchmarks.peers lengths --network gated_deltanet    # that alone

Each side runs in a process of its own; the processes take turns, a step each, and medians are told.
The network is the same for all (see `benchmarks.peer_models`). All sides' glibc keeps large arrays
in huge pages; --plain leaves it as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, cast

from base import paths
from base.ranges import FloatName
from benchmarks import huge_pages, peer_models
from training import json_files

BATCH = 4
PROMPT = 128
DECODE_STEPS = 64
LENGTHS_OF_OURS = (512, 8192)


class Side:
  """One library at work in a process of its own."""

  def __init__(self, *what: str, plain: bool):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(os.cpu_count())}
    # Compilation is part of what is measured.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if not plain:
      environment["GLIBC_TUNABLES"] = huge_pages.TUNABLES
    self._process = subprocess.Popen(
      [sys.executable, "-m", "benchmarks.peers", "work", *what],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      env=environment,
    )
    self.seconds: list[float] = []
    self.cpu_seconds: list[float] = []
    self.first = self._answer()["seconds"]

  def turn(self) -> None:
    """Works once and keeps the time."""
    answer = self._ask("turn")
    self.seconds.append(answer["seconds"])
    self.cpu_seconds.append(answer["cpu_seconds"])

  def skip(self, tokens: int) -> None:
    """Goes on without being timed."""
    self._ask(str(tokens))

  def end(self) -> float:
    """Ends the process; returns its peak memory in GB."""
    gigabytes = self._ask("end")["gigabytes"]
    self._process.wait()
    return gigabytes

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  def _ask(self, question: str) -> dict:
    print(question, file=self._process.stdin, flush=True)
    return self._answer()

  def _answer(self) -> dict:
    line = cast(IO[str], self._process.stdout).readline()
    if not line:
      raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}.")
    return json.loads(line)


def work(kind: str, name: str, dtype: FloatName, batch: int, length: int) -> None:
  """What the process of one side does: the first step, then what it is asked for."""
  started = time.perf_counter()
  turn: Callable[[int], None]
  if kind == "train":
    step = peer_models.training_step(name, dtype, batch, length)

    def train(_: int) -> None:
      step()

    turn = train
    turn(1)
  else:
    turn = peer_models.decoding(name, dtype, batch, length)
    turn(DECODE_STEPS)
  print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
  for line in sys.stdin:
    if line.strip() == "end":
      break
    if line.strip() == "turn":
      turn(
        DECODE_STEPS
      )  # while a process waits for its turn, its memory may leave the cores' caches
    started, cpu_started = time.perf_counter(), time.process_time()
    turn(DECODE_STEPS if line.strip() == "turn" else int(line))
    seconds = {
      "seconds": time.perf_counter() - started,
      "cpu_seconds": time.process_time() - cpu_started,
    }
    print(json.dumps(seconds), flush=True)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(json.dumps({"gigabytes": peak}), flush=True)


def compare(
  network: str, kind: str, dtype: str, batch: int, length: int, turns: int, plain: bool
) -> list[dict]:
  """All sides at one problem, in turns."""
  names = peer_models.SIDES[network]
  if kind == "decode":  # without a prompt to scan, one of its scans is as good as the other
    names = tuple(name for name in names if name != "recurrentgemma associative")
  sides = {n: Side(kind, n, dtype, str(batch), str(length), plain=plain) for n in names}
  for _ in range(turns):
    for side in sides.values():
      side.turn()
  tokens = batch * (length if kind == "train" else DECODE_STEPS)
  return [
    {
      "kind": kind,
      "name": name,
      "dtype": dtype,
      "batch": batch,
      "length": length,
      "first_seconds": side.first,
      "tokens_per_second": tokens / side.median,
      "tokens_per_cpu_second": tokens / statistics.median(side.cpu_seconds),
      "gigabytes": side.end(),
    }
    for name, side in sides.items()
  ]


def show(records: list[dict]) -> None:
  """A line per side, and ours relative to the best of the others."""
  ours, *peers = records
  head = f"{ours['kind']} {ours['dtype']}, batch {ours['batch']}, {ours['length']} tokens"
  print(head)
  for r in records:
    print(
      f"  {r['name']:27} {r['tokens_per_second']:9,.0f} tokens/s  "
      f"{r['tokens_per_cpu_second']:7,.0f} per CPU s  "
      f"{r['gigabytes']:5.2f} GB  "
      f"first {r['first_seconds']:5.1f} s"
    )
  best = max(peers, key=lambda record: record["tokens_per_second"])
  least = min(r["gigabytes"] for r in peers)
  print(
    f"  ours is {ours['tokens_per_second'] / best['tokens_per_second']:.2f} x the fastest peer, "
    "with "
    f"{ours['gigabytes'] / best['gigabytes']:.2f} x its memory and {ours['gigabytes'] / least:.2f} "
    "x that "
    "of the leanest",
    flush=True,
  )


def compare_lengths(network: str, dtype: str, turns: int, plain: bool) -> dict:
  """Our time of the same tokens in long rows, relative to short ones.

  Both sides have as many tokens per step, and as many per microbatch: larger microbatches cost more
  per token at any length.
  """
  name, (short, long) = peer_models.SIDES[network][0], LENGTHS_OF_OURS
  tokens = long * peer_models.MICROBATCHES
  sides = [
    Side("train", name, dtype, str(tokens // length), str(length), plain=plain)
    for length in (short, long)
  ]
  for _ in range(turns):
    for side in sides:
      side.turn()
  wall = sides[1].median / sides[0].median
  cpu = statistics.median(sides[1].cpu_seconds) / statistics.median(sides[0].cpu_seconds)
  for side in sides:
    side.end()
  print(
    f"  ours: a token in rows of {long} takes {wall:.2f} x one in rows of {short} ({cpu:.2f} CPU)"
  )
  return {"kind": "lengths", "long_over_short": wall, "long_over_short_cpu": cpu}


def compare_decoding(network: str, dtype: str, turns: int, plain: bool) -> list[dict]:
  """Speed at two batch sizes, and ours after 100 and after 10,000 tokens."""
  records = []
  for batch in (1, 16):
    found = compare(network, "decode", dtype, batch, PROMPT, turns, plain)
    show(found)
    records += found
  early, late = (
    Side("decode", peer_models.SIDES[network][0], dtype, "1", str(PROMPT), plain=plain)
    for _ in range(2)
  )
  late.skip(9984)
  for _ in range(turns):
    early.turn()
    late.turn()
  ratio = late.median / early.median
  print(f"  ours: time per token after 10,000 tokens is {ratio:.2f} x that after 100", flush=True)
  early.end()
  late.end()
  return [*records, {"kind": "decode", "late_over_early": ratio}]


def _require_peers(network: str) -> None:
  for library in peer_models.LIBRARIES[network]:
    if importlib.util.find_spec(library) is None:
      sys.exit(
        f"error: a peer, {library}, is not installed. "
        "Install the extra `test`: make install EXTRAS=test."
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("what", choices=("train", "decode", "lengths"))
  parser.add_argument("--network", choices=tuple(peer_models.SIDES), default="recurrentgemma")
  parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
  parser.add_argument("--lengths", nargs="+", type=int, default=(512, 2048))
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--plain", action="store_true", help="leave glibc as it is")
  parser.add_argument("--output", type=paths.json_argument, help="write the records as JSON")
  options = parser.parse_args()
  if options.what != "lengths":
    _require_peers(options.network)
  records = []
  for dtype in options.dtypes:
    if options.what == "decode":
      records += compare_decoding(options.network, dtype, options.turns, options.plain)
      continue
    for length in options.lengths if options.what == "train" else ():
      found = compare(options.network, "train", dtype, BATCH, length, options.turns, options.plain)
      show(found)
      records += found
    records.append(compare_lengths(options.network, dtype, options.turns, options.plain))
  if options.output:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json_files.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
  if sys.argv[1:2] == ["work"]:
    kind, name, dtype, batch, length = sys.argv[2:7]
    work(kind, name, cast(FloatName, dtype), int(batch), int(length))
  else:
    main()
