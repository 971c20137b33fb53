"""How fast rows in a bucket are read: `python -m benchmarks.bucket_rows`.

Rows of random bytes lie in an S3 that moto serves on this machine. They are read in the random
order of training: first from the server, then from the blocks in the cache, by the loader and by
calls of `RowFiles` alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from base import bucket_copies, paths
from data import bucket_rows, loader, rows
from data.manifest import MANIFEST_FILE, Counts
from data.tokenizers import Bytes

BUCKET = "rows"


def serve() -> Any:
  """Starts an S3 with a bucket and points this process at it; returns the server."""
  if importlib.util.find_spec("moto") is None:
    raise SystemExit("moto is not installed. Install the extra `test`: make install EXTRAS=test.")
  from moto.server import ThreadedMotoServer

  logging.getLogger("werkzeug").setLevel(logging.ERROR)  # It tells each request.
  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  url = "http://{}:{}".format(*server.get_host_and_port())
  urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
  os.environ |= {
    "AWS_ENDPOINT_URL": url,
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
  }
  return server


def write(folder: Path, count: int, length: int) -> None:
  """Writes rows of random letters, two documents each."""
  folder.mkdir()
  writer = rows.RowWriter(folder, Bytes(), length)
  rng = np.random.default_rng(0)
  segments = np.ones((1, length), np.int32)
  segments[:, length // 2 :] = 2
  for first in range(0, count, 1024):
    block = min(1024, count - first)
    writer.write(
      rng.integers(97, 123, (block, length)),
      np.repeat(segments, block, axis=0),
      np.full(block, length),
      np.ones((block, length), np.uint8),
    )
  size = count * length
  writer.finish({"corpus": "random"}, Counts(documents=2 * count, tokens=size, text_bytes=size))


def of_loader(opened: rows.RowFiles, batch_size: int, count: int, seed: int) -> float:
  """Returns the tokens per second of batches in the random order of training."""
  batches = loader.batches(opened, batch_size, seed=seed)
  try:
    next(batches)
    start = time.perf_counter()
    tokens = sum(batch["inputs"].size for batch in itertools.islice(batches, count))
    return tokens / (time.perf_counter() - start)
  finally:
    batches.close()


def of_rows(opened: rows.RowFiles, count: int, seed: int) -> float:
  """Returns the tokens per second of rows that are read one by one at random."""
  order = np.random.default_rng(seed).integers(0, len(opened), count)
  start = time.perf_counter()
  tokens = 0
  for row in order:
    tokens += opened.tokens[row].size
    _ = opened.segment_ids[row], opened.row_bytes[row]
  return tokens / (time.perf_counter() - start)


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--megabytes", type=int, default=512, help="size of tokens and segments")
  parser.add_argument("--length", type=int, default=2048, help="tokens per row")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--batches", type=int, default=500)
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  server, before = serve(), Path.cwd()
  folder = Path(tempfile.mkdtemp())
  try:
    os.chdir(folder)  # the cache lies in the working directory
    write(folder / "rows", options.megabytes * 10**6 // (4 * options.length), options.length)
    target = paths.absolute(f"s3://{BUCKET}/rows")
    bucket_copies.upload(folder / "rows", target, last=[MANIFEST_FILE])
    shutil.rmtree(folder / "rows")
    opened = rows.RowFiles(target)
    start = time.perf_counter()
    for array in (opened.tokens, opened.segment_ids, opened.row_bytes):
      each = max(1, bucket_rows.BLOCK_BYTES * len(array) // max(1, _bytes(array)))
      for row in np.random.default_rng(0).permutation(np.arange(0, len(array), each)):
        _ = array[row]
    seconds = time.perf_counter() - start
    rate = len(opened) * options.length / seconds
    print(f"from the server, block by block: {rate / 1e6:.1f} M tokens/s")
    ways: dict[str, list[float]] = {"loader": [], "rows alone": []}
    for seed in range(options.repeats):
      ways["loader"].append(of_loader(opened, options.batch_size, options.batches, seed))
      ways["rows alone"].append(of_rows(opened, options.batches * options.batch_size, seed))
    for name, rates in ways.items():
      print(
        f"warm cache, {name}, rows of {options.length} tokens: "
        f"{statistics.median(rates) / 1e6:.1f} M tokens/s (from {min(rates) / 1e6:.1f} to "
        f"{max(rates) / 1e6:.1f} in {options.repeats} repeats)"
      )
  finally:
    os.chdir(before)
    shutil.rmtree(folder)
    server.stop()


def _bytes(array: Any) -> int:
  return int(np.prod(array.shape)) * array.dtype.itemsize


if __name__ == "__main__":
  main()
