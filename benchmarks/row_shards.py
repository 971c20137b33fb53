"""How fast a trainer opens many large shards: `python -m benchmarks.row_shards`.

Writes sparse files, which take no space on the disk, then opens them, checks them as a start of
training does, and reads a batch of rows in random order.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from data import loader, rows, verification
from data.manifest import ArrayFile, Counts, Shard, total
from data.tokenizers import Bytes


def write_sparse(directory: Path, shards: int, shard_bytes: int, length: int) -> None:
  """Writes row files whose arrays are zero: rows of padding."""
  count = shard_bytes // (2 * length)
  files, listed, entries, sampled = {}, [], {}, {}
  counts = Counts(documents=1, tokens=count * length, text_bytes=count * length)
  for number in range(shards):
    shard = Shard(f"shard-{number:05}", count, counts)
    (directory / shard.folder).mkdir()
    listed.append(shard)
    for name, dtype, shape in (
      (rows.TOKENS, "uint16", (count, length)),
      (rows.SEGMENT_IDS, "uint16", (count, length)),
      (rows.ROW_BYTES, "uint32", (count,)),
    ):
      file = ArrayFile(dtype, shape, "0" * 64)
      path = directory / shard.path(name)
      with path.open("wb") as opened:
        opened.truncate(file.bytes)
      files[shard.path(name)] = file
      # All files of a name have the same zeros: one is sampled.
      if name not in sampled:
        sampled[name] = verification.entry(path, file.sha256)
      entries[shard.path(name)] = sampled[name] | {"mtime_ns": path.stat().st_mtime_ns}
  rows.write_manifest(
    directory,
    Bytes(),
    source={"corpus": "sparse"},
    sequence_length=length,
    rows=count * shards,
    counts=total(shard.counts for shard in listed),
    files=files,
    listed=tuple(listed),
  )
  verification.record_entries(directory, entries)


def resident() -> float:
  """Returns the megabytes of memory that this process holds."""
  pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--shards", type=int, default=2000)
  parser.add_argument("--gigabytes", type=float, default=1.0, help="size of a shard's tokens")
  parser.add_argument("--length", type=int, default=2048, help="tokens per row")
  parser.add_argument("--batches", type=int, default=200)
  options = parser.parse_args()
  directory = Path(tempfile.mkdtemp())
  try:
    write_sparse(directory, options.shards, int(options.gigabytes * 1e9), options.length)
    before = resident()
    start = time.perf_counter()
    opened = verification.verify(rows.RowFiles(directory))
    batches = loader.batches(opened, 8)
    next(batches)
    seconds = time.perf_counter() - start
    print(
      f"{options.shards} shards of {options.gigabytes:g} GB, {len(opened):,} rows: the first batch"
      f" after {seconds:.2f} s, {resident() - before:.0f} MB more memory"
    )
    start = time.perf_counter()
    tokens = sum(next(batches)["inputs"].size for _ in range(options.batches))
    seconds = time.perf_counter() - start
    print(f"rows in random order: {tokens / seconds / 1e6:.1f} M tokens/s")
    batches.close()
  finally:
    shutil.rmtree(directory)


if __name__ == "__main__":
  main()
