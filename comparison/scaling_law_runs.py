"""Reads what trained runs have reached: from a table, or from run directories."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base import paths
from base.errors import UserError
from base.wording import near, one_line
from comparison.scaling_laws import FLOPS_PER_PARAMETER, Trained
from config.names import Reference
from experiment import experiment as experiment_lib
from experiment import run_config, run_list
from experiment.run_directory import RunDirectory
from experiment.trust import Trust
from models.accounting import account

NUMBERS = ("parameters", "tokens", "loss")
COLUMNS = (*NUMBERS, "flops", "model")
# From and to which a number is taken. Counts in billions would give wrong FLOPs without a word, and
# far larger numbers no number at all.
_RANGES = {
  "parameters": (1.0, 1e30), "tokens": (1.0, 1e30), "loss": (1e-6, 1e6), "flops": (1.0, 1e60),
}  # fmt: skip
_MOST_CHARACTERS = 2**26


def read_table(file: Path, named: Mapping[str, str]) -> dict[str, Trained]:
  """Reads a CSV file with a line per run; returns the runs of each model.

  Args:
    file: the file, with a line of column names first.
    named: the file's names of `COLUMNS`, where they differ.

  Raises:
    UserError: the file cannot be read, a column is missing or there twice, a line has too many
      values, or a value is not a number in its range.
  """
  shown = paths.shown(file)
  try:
    with file.open(encoding="utf-8-sig", newline="") as lines:
      text = lines.read(_MOST_CHARACTERS + 1)
      if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{shown} has more than {_MOST_CHARACTERS:,} characters: no table of runs.")
      table = csv.reader(io.StringIO(text, newline=""), strict=True)
      columns = [name.strip() for name in next(filter(None, table), [])]
      rows = [(table.line_num, cells) for cells in table if cells]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{shown} cannot be read as CSV: {error}.") from None
  names = {column: named.get(column, column) for column in COLUMNS}
  _require_columns(shown, columns, names, (*NUMBERS, *named))
  found: dict[str, list[list[float]]] = {}
  for number, cells in rows:
    if len(cells) > len(columns):
      raise UserError(
        f"{shown}:{number} has {len(cells)} values for {len(columns)} columns. Write numbers "
        "without commas."
      )
    row = dict(zip(columns, cells, strict=False))
    n, d, loss = (_number(row.get(names[column]), shown, number, column) for column in NUMBERS)
    has_flops = names["flops"] in columns
    flops = _number(row.get(names["flops"]), shown, number, "flops") if has_flops else 0.0
    model = one_line((row.get(names["model"]) or "").strip() or file.stem)
    found.setdefault(model, []).append([n, d, loss, flops or FLOPS_PER_PARAMETER * n * d])
  if not found:
    raise UserError(f"{shown} has no runs: no line after the names of the columns.")
  return {model: Trained(*np.array(values).T) for model, values in found.items()}


def read_runs(folder: Path, trust: Trust) -> dict[str, Trained]:
  """Reads the finished runs in a folder; returns the runs of each model.

  The loss is that at the end, the FLOPs are those of `models.accounting`. Runs that began with the
  weights of another are left out, because their tokens are not all that they were trained on; and
  trials of a comparison's search of settings, whose losses are of other rows than the figures.

  Raises:
    UserError: there is no finished run, a configuration is not trusted, or the losses are of
      different texts.
  """
  found: dict[str, list[list[float]]] = {}
  texts: list[tuple[Any, list[str]]] = []
  for run in run_list.runs_in(folder):
    if why := _left_out(run):
      print(f"{run.name} is left out: it {why}", file=sys.stderr)
      continue
    config = run_config.load(RunDirectory(run.path), trust=trust)
    built = experiment_lib.build(config)
    if built.init_from is not None:
      print(f"{run.name} is left out: it began with another run's weights", file=sys.stderr)
      continue
    if getattr(experiment_lib.first_part(built.eval_data), "half", None) == "validation":
      print(f"{run.name} is left out: it is a trial on the validation half", file=sys.stderr)
      continue
    text = built.tokenizer.describe(), experiment_lib.text_alone(built.eval_data)
    same = next((names for other, names in texts if other == text), None)
    if same is None:
      texts.append((text, same := []))
    same.append(run.name)
    _, loss = run.curve("heldout_loss")[-1]
    counted = account(built.model, batch_size=built.batch_size, length=built.sequence_length)
    tokens = run.step * built.batch_size * built.sequence_length
    made_by = next(
      (x.value for key, x in config.operative.items() if key.name == "experiment.Experiment.model"),
      None,
    )
    model = made_by.configurable.path if isinstance(made_by, Reference) else run.name
    found.setdefault(model, []).append(
      [counted.parameter_count, tokens, loss, counted.training_flops * tokens]
    )
  if len(texts) > 1:
    groups = "\n".join(
      f"  {_name_of(tokenizer)} on {_what(data)}: {', '.join(names)}"
      for (tokenizer, data), names in texts
    )
    raise UserError(
      f"the runs in {paths.shown(folder)} have different tokenizers or held-out texts, so that one "
      f"law cannot hold for all losses:\n{groups}\nMove each kind to a folder of its own."
    )
  if not found:
    raise UserError(f"{paths.shown(folder)} has no finished run with a held-out loss.")
  return {model: Trained(*np.array(values, np.float64).T) for model, values in found.items()}


def _name_of(tokenizer: Mapping[str, Any]) -> str:
  """Names a tokenizer by its kind, its size and the first digits of its contents."""
  contents = str(tokenizer.get("sha256", ""))[:8]
  return " ".join(filter(None, (str(tokenizer["kind"]), f"of {tokenizer['size']:,} ids", contents)))


def _what(data: Any) -> str:
  """Names a text; those of one name differ in their files or options."""
  half = getattr(data, "half", None)
  return getattr(data, "what", "a mixture") + (f", {half} half" if half else "")


def _left_out(run: run_list.Run) -> str:
  """Says why a run has no loss to fit; '' if it has."""
  if run.state != run_list.FINISHED:
    return f"is {run.state}"
  steps = [step for step, _ in run.curve("heldout_loss")]
  return "" if steps[-1:] == [run.step] else "has no held-out loss at its end"


def _require_columns(
  file: str, columns: Sequence[str], names: Mapping[str, str], needed: Sequence[str]
) -> None:
  """Raises UserError if a column is missing, is there twice, or is meant twice."""
  for column in needed:
    if names[column] in columns:
      continue
    if len(columns) == 1 and (marks := [mark for mark in ";\t|" if mark in columns[0]]):
      raise UserError(f"{file}: columns are separated by {marks[0]!r}. Separate them by commas.")
    hint = near(names[column], columns)
    raise UserError(
      f"{file} has no column {names[column]!r}{hint}{'' if hint.endswith('?') else '.'} Name it: "
      f"--columns={column}=NAME."
    )
  used = [name for name in names.values() if name in columns]
  for name in used:
    if columns.count(name) > 1:
      raise UserError(f"{file} has {columns.count(name)} columns {name!r}. Leave one.")
  name, times = Counter(used).most_common(1)[0]
  if times > 1:
    meant = " and ".join(column for column in COLUMNS if names[column] == name)
    raise UserError(f"--columns: {meant} cannot both be column {name!r}.")


def _number(text: str | None, file: str, line: int, column: str) -> float:
  if text is None:
    raise UserError(f"{file}:{line} ends before the column of {column}.")
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  low, high = _RANGES[column]
  if not (math.isfinite(value) and value > 0):
    raise UserError(f"{file}:{line}: {column} is {text!r}, not a positive number.")
  if not low <= value <= high:
    unit = ", in ones" if column in ("parameters", "tokens") else ""
    raise UserError(
      f"{file}:{line}: {column} is {text!r}, not a number from {low:g} to {high:g}{unit}."
    )
  return value
