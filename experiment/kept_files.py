"""Keeps other files of Hugging Face's folders, such as tokenizers, in runs; exports copy them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base import buckets, paths, small_files
from experiment.experiment import Experiment

FOLDER = "hugging_face"
# The config.json of imported weights; exports write their own.
CONFIG = "imported_config.json"
# Data that a tokenizer is read from. Code of others is never taken along.
_ENDINGS = {".json", ".model", ".txt", ".jinja", ".tiktoken", ".bpe", ".vocab", ".spm"}
_PATTERNS = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_template*")


def folder(run_dir: Path, experiment: Experiment) -> Path:
  """Returns the folder of kept files of a run or of its `init_from`; it may not exist."""
  own = run_dir / FOLDER
  first = experiment.init_from
  return own if own.is_dir() or first is None else paths.of(first) / FOLDER


def keep(source: Path, target: Path) -> None:
  """Copies the kept files of a folder to another one, all or none.

  Links that lead out of the folder are skipped: a received folder must not choose what is copied.
  Files that are no data, such as Python code, are left out with a line on stderr.
  """
  files = [file for pattern in _PATTERNS for file in sorted(source.glob(pattern))]
  files = [file for file in files if file.is_file() and _is_inside(file, source)]
  if left := [file.name for file in files if file.suffix not in _ENDINGS]:
    place = paths.shown(source)
    print(f"not copied from {place}, as code may be: {', '.join(left)}", file=sys.stderr)
  files = [file for file in files if file.suffix in _ENDINGS]
  if source == target or not files:
    return
  if buckets.in_bucket(source) or buckets.in_bucket(target):
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
      small_files.replace(target / file.name, file.read_bytes())
    return
  made = target if target.exists() else target.with_name(f".{target.name}.{os.getpid()}")
  made.mkdir(exist_ok=True)
  for file in files:
    shutil.copyfile(file, made / file.name)
  if made != target:
    made.rename(target)


def write_config(target: Path, config: Mapping[str, Any]) -> None:
  """Writes the configuration of imported weights into the folder of kept files."""
  target.mkdir(exist_ok=True)
  (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def longest_text(folder: Path) -> int | None:
  """Returns the length that imported weights were made for, in tokens; None if it is unknown."""
  try:
    found = json.loads(small_files.read(folder / CONFIG) or b"")["max_position_embeddings"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  return found if type(found) is int and found > 0 else None


def _is_inside(file: Path, folder: Path) -> bool:
  """Whether a file is inside a folder; Hugging Face's cache links to `blobs` next to snapshots."""
  real, own = file.resolve(), folder.resolve()
  return real.parent in (own, own.parent.parent / "blobs")
