"""What Hugging Face's folders hold besides weights and configuration: kept in runs, given back on
export.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from experiment.experiment import Experiment

FOLDER = "hugging_face"
_PATTERNS = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_template*")


def folder(run_dir: Path, experiment: Experiment) -> Path:
  """The folder of such files, of the run or of the one that it started from; it may be missing."""
  own = run_dir / FOLDER
  first = experiment.init_from
  return own if own.is_dir() or first is None else Path(first) / FOLDER


def keep(source: Path, target: Path) -> None:
  """Copies them from one folder to another, which is made if there are any, with all of them or not
  at all.

  A link that leads out of the folder is left out: whoever sent the folder does not choose what is
    copied.
  """
  files = [file for pattern in _PATTERNS for file in sorted(source.glob(pattern))]
  files = [file for file in files if file.is_file() and _is_inside(file, source)]
  if source == target or not files:
    return
  made = target if target.exists() else target.with_name(f".{target.name}.{os.getpid()}")
  made.mkdir(exist_ok=True)
  for file in files:
    shutil.copyfile(file, made / file.name)
  if made != target:
    made.rename(target)


def _is_inside(file: Path, folder: Path) -> bool:
  """Whether a file lies in a folder; Hugging Face's cache links to `blobs` beside its snapshots."""
  real, own = file.resolve(), folder.resolve()
  return real.parent in (own, own.parent.parent / "blobs")
