"""What the configurations of loaded runs say of them: their seeds, and what they began with."""

from __future__ import annotations

import contextlib
from typing import Any

from base import paths
from comparison.comparison import Comparison
from comparison.measurement import RunSpec
from config.config import ConfigError
from experiment import run_directory


def true_seeds(comparison: Comparison) -> dict[str, tuple[int, ...]]:
  """Returns the seeds of each model; a loaded run has that of its own configuration."""
  size = list(comparison.sizes)[-1]
  return {
    model: tuple(
      _set_in(comparison, RunSpec(model=model, size=size, seed=seed), "seed", seed)
      for seed in comparison.seeds
    )
    for model in comparison.models
  }


def seeds_apart(comparison: Comparison) -> dict[str, tuple[int, ...]]:
  """Returns the seeds of each model if they differ, as those of single runs may; else nothing."""
  seeds = true_seeds(comparison)
  return seeds if len(set(seeds.values())) > 1 else {}


def notes(comparison: Comparison) -> tuple[str, ...]:
  """Returns what a page must say of the runs: which began with the weights of others."""
  told = []
  for model in comparison.models:
    specs = (
      RunSpec(model=model, size=size, seed=seed)
      for size in comparison.sizes
      for seed in comparison.seeds
    )
    found = (_set_in(comparison, spec, "init_from", None) for spec in specs)
    if first := dict.fromkeys(str(path) for path in found if path):
      shown = ", ".join(map(paths.shown, map(paths.of, first)))
      told.append(f"{model} began with the weights of {shown}: its tokens are those after it.")
  return tuple(told)


def _set_in(comparison: Comparison, spec: RunSpec, option: str, default: Any) -> Any:
  """Returns an option of the experiment of a loaded run; `default` for others."""
  path = comparison.loaded.get(str(spec))
  # The file may be lost; that is no reason to end a comparison.
  with contextlib.suppress(ConfigError):
    if path is not None:
      values = run_directory.stored_values(paths.of(path) / run_directory.OPERATIVE_FILE)
      return values.get(f"experiment.Experiment.{option}", default)
  return default
