"""What Hugging Face's folders hold besides weights and configuration: kept in runs, given back on export."""

from __future__ import annotations

import shutil
from pathlib import Path

from launch.experiment import Experiment

FOLDER = "hugging_face"
_PATTERNS = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_template*")


def folder(run_dir: Path, experiment: Experiment) -> Path:
  """The folder of such files, of the run or of the one that it started from; it may be missing."""
  own = run_dir / FOLDER
  first = experiment.init_from
  return own if own.is_dir() or first is None else Path(first) / FOLDER


def keep(source: Path, target: Path) -> None:
  """Copies them from one folder to another, which is made if there are any."""
  if source == target:
    return
  for pattern in _PATTERNS:
    for file in sorted(source.glob(pattern)):
      if file.is_file():
        target.mkdir(exist_ok=True)
        shutil.copyfile(file, target / file.name)
