"""How fast text becomes rows, beside two usual ways: `python -m benchmarks.preparation --size=126`.

JSON lines under a tokenizer.json of 32,000 tokens, with two processes each, in turn:

- `launch.prepare`'s rows: tokens, segment ids, bytes and checksums, by `data.shard_workers`;
- `datasets.map(num_proc=2)`: tokenize in batches, append EOS, group into rows, save;
- as Megatron-LM's `preprocess_data`: a pool of two processes tokenizes documents, and the first
  process appends EOS and writes `.bin` and `.idx`.

Of our rows it also prints how busy the processes were between the first and the last documents: the
share of two cores that they used, and that they used or waited for while other jobs had them (both
from /proc), and the largest memory of a process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import preparation, rows, tokenizer_training
from data.corpora import JsonLines, PythonLibrary
from data.dataset import TextDataset
from data.progress import PreparationProgress
from data.tokenizer_json import TokenizerJson
from data.tokenizers import Bytes, SentencePiece, Tokenizer

LENGTH = 2048


def write_text(path: Path, megabytes: float) -> None:
  """Writes documents of some 2 kB, cut at random from CPython's library."""
  rng = random.Random(0)
  root = Path(sysconfig.get_paths()["stdlib"])
  sources = [root / "pydoc_data/topics.py", *sorted(root.glob("*.py"))]
  text = "\n".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)
  size = 0
  with path.open("w", encoding="utf-8") as file:
    while size < megabytes * 1e6:
      start = rng.randrange(len(text) - 20_000)
      document = text[start : start + min(20_000, int(rng.lognormvariate(7.3, 1.0)) + 1)]
      size += file.write(json.dumps({"text": document}) + "\n")


class Busy:
  """Samples what the processes below this one use while documents are tokenized."""

  def __init__(self):
    self._samples: list[tuple[float, float, float]] = []  # the clock, seconds used, seconds waited
    self._used: dict[str, tuple[float, float]] = {}
    self.peak_mb = 0.0

  def look(self, state: PreparationProgress) -> None:
    """Samples, if documents have been read and not all."""
    if not state.documents or state.finished:
      return
    for process in descendants(os.getpid()):
      with contextlib.suppress(OSError, TypeError):
        # Threads that have ended are missing below task/, but not in the process's own figure.
        fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
        run = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        threads = Path("/proc", process, "task").iterdir()
        wait = sum(int((thread / "schedstat").read_text().split()[1]) for thread in threads) / 1e9
        # Of a process that has ended, the last sample counts.
        self._used[process] = run, wait
        peak: Any = re.search(r"VmHWM:\s+(\d+)", Path("/proc", process, "status").read_text())
        self.peak_mb = max(self.peak_mb, int(peak[1]) / 1e3)
    run = sum(used for used, _ in self._used.values())
    wait = sum(waited for _, waited in self._used.values())
    self._samples.append((time.perf_counter(), run, wait))

  def __str__(self) -> str:
    if len(self._samples) < 2:
      return "too little text to say how busy two cores were"
    first, last = self._samples[0], self._samples[-1]
    wall, run, wait = (b - a for a, b in zip(first, last, strict=True))
    return (
      f"in {wall:.1f} s of tokenizing {run / wall / 2:.0%} of two cores used,"
      f" {(run + wait) / wall / 2:.0%} used or waited for; largest process {self.peak_mb:.0f} MB"
    )


def descendants(process: int | str) -> Iterator[str]:
  """Yields the processes below a process."""
  for children in Path(f"/proc/{process}/task").glob("*/children"):
    with contextlib.suppress(OSError):
      for child in children.read_text().split():
        yield child
        yield from descendants(child)


def ours(files: str, tokenizer: Tokenizer, folder: Path) -> int:
  """Packs rows with two workers; returns the number of tokens."""
  corpus = JsonLines(files, heldout_fraction=0.0)
  text = TextDataset(corpus, tokenizer, LENGTH, "train", str(folder / "cache"))
  busy = Busy()
  preparation.prepare([text], busy.look, workers=2, own_command=True)
  print(f"  {busy}")
  return rows.RowFiles(text.cache_path).counts.tokens


def with_datasets(files: str, tokenizer: TokenizerJson, folder: Path) -> int:
  """Packs rows with `datasets.map(num_proc=2)`; returns the number of tokens."""
  import datasets
  from transformers import AutoTokenizer

  datasets.disable_progress_bars()
  read = AutoTokenizer.from_pretrained(str(Path(tokenizer.path).parent))
  eos = tokenizer.eos_id

  def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
    found = read(batch["text"], add_special_tokens=False, return_attention_mask=False)
    return {"input_ids": [[*ids, eos] for ids in found["input_ids"]]}

  def group(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
    joined = list(itertools.chain.from_iterable(batch["input_ids"]))
    end = len(joined) // LENGTH * LENGTH
    return {"input_ids": [joined[i : i + LENGTH] for i in range(0, end, LENGTH)]}

  cache = str(folder / "datasets")
  loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
  tokens = loaded.map(tokenize, batched=True, num_proc=2, remove_columns=["text"])
  grouped = tokens.map(group, batched=True, num_proc=2)
  grouped.save_to_disk(folder / "saved", num_proc=2)
  return len(grouped) * LENGTH


_of_process: dict[str, TokenizerJson] = {}


def _start(path: str) -> None:
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  _of_process["tokenizer"] = TokenizerJson(path)


def _encode(line: str) -> list[int]:
  tokenizer = _of_process["tokenizer"]
  return [*tokenizer.encode(json.loads(line)["text"]), tokenizer.eos_id]


def as_megatron(files: str, tokenizer: TokenizerJson, folder: Path) -> int:
  """Writes ids and their places as Megatron-LM does; returns the number of tokens."""
  lengths = []
  with (
    open(files, encoding="utf-8") as lines,
    (folder / "megatron.bin").open("wb") as output,
    multiprocessing.get_context("spawn").Pool(2, _start, (tokenizer.path,)) as pool,
  ):
    for ids in pool.imap(_encode, lines, 32):
      output.write(np.array(ids, np.uint16).tobytes())
      lengths.append(len(ids))
  np.cumsum(lengths).tofile(folder / "megatron.idx")
  return sum(lengths)


def cpu_seconds() -> float:
  """Returns the seconds of processor time of this process and its finished children."""
  used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return sum(one.ru_utime + one.ru_stime for one in used)


def measured(make: Any, files: str, folder: Path) -> Iterator[float]:
  """Yields the tokens, the seconds and the processor seconds of one way."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  used, start = cpu_seconds(), time.perf_counter()
  yield make(files, folder)
  yield time.perf_counter() - start
  yield cpu_seconds() - used


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--size", type=float, default=126.0, help="megabytes of JSON lines")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--ways", default="ours,datasets,megatron,bytes,sentencepiece")
  options = parser.parse_args()
  folder = Path(tempfile.mkdtemp())
  files = str(folder / "text.jsonl")
  write_text(Path(files), options.size)
  trained = folder / "trained" / "tokenizer.json"
  tokenizer = tokenizer_training.train_tokenizer_json(PythonLibrary(), 32_000, trained)
  ways: dict[str, Any] = {
    "ours": functools.partial(_ours, tokenizer),
    "datasets": lambda files, folder: with_datasets(files, tokenizer, folder),
    "megatron": lambda files, folder: as_megatron(files, tokenizer, folder),
    "bytes": functools.partial(_ours, Bytes()),
  }
  if "sentencepiece" in options.ways:
    model = folder / "trained" / "pieces.model"
    tokenizer_training.train_sentencepiece(PythonLibrary(), 8000, model, megabytes=5)
    ways["sentencepiece"] = functools.partial(_ours, SentencePiece(str(model)))
  found: dict[str, list[list[float]]] = {}
  try:
    for _ in range(options.repeats):
      for name in options.ways.split(","):
        result = list(measured(ways[name], files, folder / "work"))
        found.setdefault(name, []).append(result)
  finally:
    shutil.rmtree(folder)
  for name, results in found.items():
    rates = [tokens / seconds for tokens, seconds, _ in results]
    of_cpu = [tokens / used for tokens, _, used in results]
    busy = [used / seconds / 2 for _, seconds, used in results]
    megabytes = [options.size / seconds for _, seconds, _ in results]
    print(
      f"{name}: {statistics.median(rates) / 1e6:.2f} M tokens/s, "
      f"{statistics.median(megabytes):.1f} MB/s, "
      f"{statistics.median(of_cpu) / 1e6:.2f} M tokens per CPU second, "
      f"{statistics.median(busy):.0%} of two cores"
    )


def _ours(tokenizer: Tokenizer, files: str, folder: Path) -> int:
  return ours(files, tokenizer, folder)


if __name__ == "__main__":
  main()
