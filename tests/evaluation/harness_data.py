"""Tiny data sets in the formats of the six published ones, as a download leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import yaml

# Of MMLU's 57 subjects.
SUBJECTS = [
  file.stem.removeprefix("mmlu_")
  for file in sorted((Path(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml"))
]
_WORDS = ("stone", "a river", "the old house", "it", "seven birds", "rain on the roof")


def write(folder: Path, names: Sequence[str], questions: int = 5) -> dict[str, int]:
  """Writes a folder for each of the tasks; returns the number of questions of each."""
  datasets.disable_progress_bars()
  asked = {}
  for name in names:
    configs, row = _SETS[name]
    if name == "mmlu":
      # Of unequal sizes, so that the mean of subjects is not that of questions.
      sizes = {subject: 3 if number < 20 else 1 for number, subject in enumerate(SUBJECTS)}
      splits = {subject: {"dev": 5, "test": size} for subject, size in sizes.items()}
    else:
      splits = {config: {"train": 1, "validation": 1, last: questions} for config, last in configs}
    _write(folder / name, splits, row)
    asked[name] = questions if name != "mmlu" else sum(s["test"] for s in splits.values())
  return asked


def _write(folder: Path, configs: dict[str, dict[str, int]], row: Any) -> None:
  """Writes a Parquet file for each split, and the README.md that names them."""
  head = []
  for config, splits in configs.items():
    files = []
    for split, count in splits.items():
      path = f"{config or 'data'}/{split}-00000-of-00001.parquet"
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      rows = [row(number, config) for number in range(count)]
      datasets.Dataset.from_list(rows).to_parquet(folder / path)
      files.append({"split": split, "path": path})
    head.append({"config_name": config or "default", "data_files": files})
  (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': head})}---\n")


def _choices(number: int, count: int) -> list[str]:
  return [_WORDS[(number + 2 * n + n // 3) % len(_WORDS)] for n in range(count)]


def _hellaswag(number: int, config: str) -> dict[str, Any]:
  return {
    "ind": number,
    "activity_label": "Walking",
    "ctx_a": "A man sees",
    "ctx_b": "he takes",
    "ctx": "A man sees he takes",
    "endings": _choices(number, 4),
    "source_id": f"activitynet~{number}",
    "split": "val",
    "split_type": "indomain",
    "label": str(number % 4),
  }


def _piqa(number: int, config: str) -> dict[str, Any]:
  first, second = _choices(number, 2)
  return {"goal": f"Open {number} doors", "sol1": first, "sol2": second, "label": number % 2}


def _winogrande(number: int, config: str) -> dict[str, Any]:
  first, second = _choices(number, 2)
  sentence = f"Of the {number + 2} things _ was the first to fall."
  return {
    "sentence": sentence,
    "option1": first,
    "option2": second,
    "answer": str(1 + number % 2),
  }


def _arc(number: int, config: str) -> dict[str, Any]:
  # Some questions have numbers in place of letters.
  labels = ["1", "2", "3", "4"] if number % 2 else ["A", "B", "C", "D"]
  return {
    "id": f"{config}-{number}",
    "question": f"What falls {number} times in {config}?",
    "choices": {"text": _choices(number, 4), "label": labels},
    "answerKey": labels[number % 4],
  }


def _mmlu(number: int, config: str) -> dict[str, Any]:
  place = SUBJECTS.index(config)
  return {
    "question": f"What is {config} {number}?",
    "subject": config,
    "choices": _choices(place + number, 4),
    "answer": (place + number) % 4,
  }


# Configurations of each set, with the split that is asked, and what makes a row.
_SETS = {
  "mmlu": ((), _mmlu),
  "hellaswag": ([("", "validation")], _hellaswag),
  "piqa": ([("", "validation")], _piqa),
  "winogrande": ([("winogrande_xl", "validation")], _winogrande),
  "arc_easy": ([("ARC-Easy", "test")], _arc),
  "arc_challenge": ([("ARC-Challenge", "test")], _arc),
}
