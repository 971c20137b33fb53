"""The chip hours of a comparison's trainings, for `launch.compare --describe --hardware=...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from base.wording import plural

if TYPE_CHECKING:
  from comparison.comparison import Comparison
  from planning.hardware.chip import Hardware


def table(comparison: Comparison, hardware: Hardware) -> str:
  """Plans a seed of every model of every size, and formats time and chip hours of all seeds.

  Raises:
    ConfigError: a model, its mesh and the hardware do not fit.
  """
  from comparison.measurement import RunSpec
  from experiment import experiment
  from experiment.describe import table as formatted
  from planning import chip_hours, tables

  seeds = comparison.seeds
  experiments = {
    f"{size}, {model}": experiment.build(
      comparison.run_config(RunSpec(model=model, size=size, seed=seeds[0]))
    )
    for size in comparison.sizes
    for model in comparison.models
  }
  rows = [("training", "seconds a step", "steps", "chip hours")]
  total, missing = 0.0, []
  for name, one in chip_hours.planned(experiments, hardware, tables.tell).items():
    hours = one.chip_hours
    if hours is None:
      missing.append(name)
      rows.append((name, "does not fit", f"{one.steps:,}", ""))
      continue
    hours *= len(seeds)
    total += hours
    rows.append((name, f"{one.seconds_per_step:.4f}", f"{one.steps:,}", f"{hours:,.1f}"))
  told = (
    f"{total:,.1f} chip hours of {hardware.name}, over {plural(len(seeds), 'seed')}, without "
    "compilation, evaluation, checkpoints and a search of settings"
  )
  if missing:
    told += f"; without those that do not fit: {', '.join(missing)}"
  return "\n\n".join([formatted(rows, right=(1, 2, 3)), told])
