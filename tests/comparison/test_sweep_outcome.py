"""What a sweep says of its runs: which are its own, means over seeds, and figures."""

import dataclasses
from pathlib import Path

from comparison.sweep import cells, outcome
from comparison.sweep.cells import axis_argument
from experiment import run_list
from experiment.run_list import Run

LOSS = "heldout_bits_per_byte"


def finished(name, loss):
  record = {"step": 6.0, LOSS: loss}
  path = Path("/sweep") / name
  return Run(path, name, run_list.FINISHED, step=6, steps=6, records=(record,), values={})


def of(arguments, losses):
  """The outcome of a grid whose runs have these losses, in the order of its cells."""
  axes = [axis_argument(text) for text in arguments]
  grid = cells.grid(axes)
  runs = [finished(cell.folder, loss) for cell, loss in zip(grid, losses, strict=False)]
  return outcome.of(grid, axes, runs, {})


def test_a_copy_deeper_in_the_folder_is_no_run_of_the_sweep():
  found = of(["A=1,2"], [2.0, 1.0])
  copies = [dataclasses.replace(one.run, name=f"old/{one.run.name}") for one in found.found]
  copies = [dataclasses.replace(copy, records=({LOSS: 0.5, "step": 6.0},)) for copy in copies]
  runs = [*(one.run for one in found.found), *copies]
  assert [one.loss for one in outcome.of(found_cells(found), found.axes, runs, {}).found] == [2, 1]
  assert all(
    one.run is None for one in outcome.of(found_cells(found), found.axes, copies, {}).found
  )


def found_cells(found):
  return [one.cell for one in found.found]


def test_means_are_of_choices_with_the_most_seeds():
  says = of(["A=1,2", "SEED=0,1"], [1.0, 3.0, 1.5]).says()
  assert [line for line in says if "mean" in line] == [
    "lowest mean over 2 seeds: 2 (95% interval \N{MINUS SIGN}10.71 to 14.71), with A=1"
  ]
  (line,) = (line for line in of(["A=1,2", "SEED=0"], [2.0, 1.0]).says() if "mean" in line)
  assert line == "lowest mean over 1 seed: 1, with A=2"


def test_an_axis_of_any_name_has_a_figure():
  figures = of(["z/models.a.größe=1,2"], [2.0, 1.0]).figures()
  assert [figure.name for figure in figures] == ["over_z_models_a_gr__e"]
