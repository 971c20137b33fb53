"""How fast rows are read: `python -m benchmarks.data`.

Batches of the text that CPython carries, in the random order of training, without anything done to
them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

from data import loader
from data.corpora import PythonLibrary
from data.dataset import TextDataset
from data.tokenizers import Bytes


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--length", type=int, default=512, help="tokens per row")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--batches", type=int, default=1000)
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  rows = TextDataset(
    corpus=PythonLibrary(),
    vocabulary=Bytes(),
    sequence_length=options.length,
    split="train",
  ).rows()
  rates = []
  for seed in range(options.repeats):
    batches = loader.batches(rows, options.batch_size, seed=seed)
    next(batches)
    start = time.perf_counter()
    tokens = sum(b["inputs"].size for b in itertools.islice(batches, options.batches))
    rates.append(tokens / (time.perf_counter() - start))
    batches.close()
  print(
    f"rows of {options.length} tokens, {options.batch_size} at a time: "
    f"{statistics.median(rates) / 1e6:.1f} M tokens/s (from {min(rates) / 1e6:.1f} to "
    f"{max(rates) / 1e6:.1f} in {options.repeats} repeats)"
  )


if __name__ == "__main__":
  main()
