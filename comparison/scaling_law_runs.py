"""Reads what trained runs have reached: from a table, or from run directories."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from base import paths
from base.errors import UserError
from base.wording import near
from comparison.scaling_laws import FLOPS_PER_PARAMETER, Trained
from config.names import Reference
from experiment import experiment as experiment_lib
from experiment import run_config, run_list
from experiment.run_directory import RunDirectory
from experiment.trust import Trust
from models.accounting import account

NUMBERS = ("parameters", "tokens", "loss")
COLUMNS = (*NUMBERS, "flops", "model")


def read_table(file: Path, named: Mapping[str, str]) -> dict[str, Trained]:
  """Reads a CSV file with a line per run; returns the runs of each model.

  Args:
    file: the file, with a line of column names first.
    named: the file's names of `COLUMNS`, where they differ.

  Raises:
    UserError: the file cannot be read, a column is missing, or a value is no positive number.
  """
  shown = paths.shown(file)
  try:
    with file.open(encoding="utf-8-sig", newline="") as lines:
      reader = csv.DictReader(lines, strict=True)
      rows = list(reader)
      columns = list(reader.fieldnames or ())
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{shown} cannot be read as CSV: {error}.") from None
  names = {column: named.get(column, column) for column in COLUMNS}
  for column in (*NUMBERS, *named):
    if names[column] not in columns:
      raise UserError(
        f"{shown} has no column {names[column]!r}{near(names[column], columns)}. Name it: "
        f"--columns={column}=NAME."
      )
  found: dict[str, list[list[float]]] = {}
  for number, row in enumerate(rows, start=2):
    n, d, loss = (_number(row[names[column]], shown, number, column) for column in NUMBERS)
    has_flops = names["flops"] in columns
    flops = _number(row[names["flops"]], shown, number, "flops") if has_flops else 0.0
    model = row[names["model"]] if names["model"] in columns else file.stem
    found.setdefault(model or file.stem, []).append(
      [n, d, loss, flops or FLOPS_PER_PARAMETER * n * d]
    )
  if not found:
    raise UserError(f"{shown} has no runs: no line after the names of the columns.")
  return {model: Trained(*np.array(values).T) for model, values in found.items()}


def read_runs(folder: Path, trust: Trust) -> dict[str, Trained]:
  """Reads the finished runs in a folder; returns the runs of each model.

  The loss is that at the end, the FLOPs are those of `models.accounting`. Runs that began with the
  weights of another are left out, because their tokens are not all that they were trained on.

  Raises:
    UserError: there is no finished run, a configuration is not trusted, or the losses are of
      different texts.
  """
  found: dict[str, list[list[float]]] = {}
  first: tuple[str, Any] | None = None
  for run in run_list.runs_in(folder):
    if why := _left_out(run):
      print(f"{run.name} is left out: it {why}", file=sys.stderr)
      continue
    config = run_config.load(RunDirectory(run.path), trust=trust)
    built = experiment_lib.build(config)
    if built.init_from is not None:
      print(f"{run.name} is left out: it began with another run's weights", file=sys.stderr)
      continue
    scored = run.name, (built.tokenizer.describe(), experiment_lib.text_alone(built.eval_data))
    first = first or scored
    if scored[1] != first[1]:
      raise UserError(
        f"{first[0]} and {run.name} have different tokenizers or held-out texts, so that one law "
        "cannot hold for both losses. Move one of them to another folder."
      )
    loss = run.last("heldout_loss")
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
  if not found:
    raise UserError(f"{paths.shown(folder)} has no finished run with a held-out loss.")
  return {model: Trained(*np.array(values, np.float64).T) for model, values in found.items()}


def _left_out(run: run_list.Run) -> str:
  """Says why a run has no loss to fit; '' if it has."""
  if run.state != run_list.FINISHED:
    return f"is {run.state}"
  steps = [step for step, _ in run.curve("heldout_loss")]
  return "" if steps[-1:] == [run.step] else "has no held-out loss at its end"


def _number(text: str | None, file: str, line: int, column: str) -> float:
  try:
    value = float(text or "")
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value > 0):
    raise UserError(f"{file}:{line}: {column} is {text!r}, not a positive number.")
  return value
