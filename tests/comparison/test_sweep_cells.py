"""The cells of a sweep: grids, draws, and names of folders."""

import argparse
import math
import re

import pytest

from base.errors import UserError
from comparison.sweep import cells
from comparison.sweep.cells import Cell, axis_argument


def test_a_grid_has_every_combination_in_order():
  axes = [axis_argument("LEARNING_RATE=1e-3, 2e-3"), axis_argument("SEED=0,1,2")]
  found = [str(cell) for cell in cells.grid(axes)]
  assert len(set(found)) == 6
  assert found[:2] == ["LEARNING_RATE=1e-3, SEED=0", "LEARNING_RATE=1e-3, SEED=1"]
  (first, *_) = cells.grid(axes)
  assert first.bindings == ["--gin.LEARNING_RATE=1e-3", "--gin.SEED=0"]


@pytest.mark.parametrize(
  ("text", "values"),
  [
    ("P=('a', 'b'),('a',)", ("('a', 'b')", "('a',)")),
    ("P='x,y',z", ("'x,y'", "z")),
    ('P="(",1', ('"("', "1")),
    ("m/models.griffin.griffin.window=64", ("64",)),
  ],
)
def test_commas_in_brackets_and_quotes_are_part_of_a_value(text, values):
  assert axis_argument(text).values == values


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("LEARNING_RATE", "must be a name and its values"),
    ("LEARNING RATE=1", "must be a name and its values"),
    ("=1,2", "must be a name and its values"),
    ("A=", "empty value"),
    ("A=1,,2", "empty value"),
    ("A=1,2,1", "1 more than once"),
    ("A=1e-3,2e-3,0.001", "1e-3 more than once"),
    ("A=log:1", "two numbers as its ends"),
    ("A=log:0:1", "must be above 0"),
    ("A=uniform:2:1", "below the second"),
    ("A=uniform:nan:1", "below the second"),
    ("A=uniform:-1e308:1e308", "below the second"),
    ("file=a/x.gin,b/x.gin", "two files of one name"),
  ],
)
def test_what_is_no_axis_is_told(text, message):
  with pytest.raises(argparse.ArgumentTypeError, match=message):
    axis_argument(text)


def test_draws_lie_in_their_ranges_and_more_draws_keep_the_first():
  axes = [axis_argument("A=log:1e-4:1e-2"), axis_argument("B=uniform:0:5"), axis_argument("C=x,y")]
  drawn = cells.drawn(axes, 400, seed=1)
  assert cells.drawn(axes, 30, seed=1) == drawn[:30]
  assert cells.drawn(axes, 30, seed=2) != drawn[:30]
  assert len({cell.folder for cell in drawn}) == 400
  values = [dict(cell.choices) for cell in drawn]
  logs = [math.log10(float(value["A"])) for value in values]
  assert -4 <= min(logs) < -3.9
  assert -2.1 < max(logs) <= -2
  assert abs(sum(logs) / len(logs) + 3) < 0.1  # the median of a log range is its middle
  assert all(0 <= float(value["B"]) <= 5 for value in values)
  assert {value["C"] for value in values} == {"x", "y"}


def test_too_few_and_too_many_cells_are_told():
  with pytest.raises(UserError, match="2 different cells, too few for --random=3"):
    cells.drawn([axis_argument("C=x,y")], 3, seed=0)
  many = "=" + ",".join(map(str, range(200)))
  with pytest.raises(UserError, match="8,000,000 cells"):
    cells.grid([axis_argument(name + many) for name in "ABC"])
  with pytest.raises(UserError, match="--over A is given more than once"):
    cells.grid([axis_argument("A=1"), axis_argument("A=2")])
  with pytest.raises(UserError, match="A has a range"):
    cells.grid([axis_argument("A=log:1:2")])


@pytest.mark.parametrize(
  ("choices", "folder"),
  [
    ((("LEARNING_RATE", "1e-3"), ("SEED", "2")), "LEARNING_RATE=1e-3,SEED=2"),
    ((("file", "gin/models/hawk.gin"),), "file=hawk"),
    ((("MODE", "'offline'"),), "MODE=offline"),
    ((("P", "('a', 'b')"),), r"P=-a-,-b-.*-[0-9a-f]{8}"),
    ((("x/models.a.b", "../../etc"),), r"x-models\.a\.b=\.\.-\.\.-etc-[0-9a-f]{8}"),
    ((("P", "9" * 300),), r"P=9+-[0-9a-f]{8}"),
  ],
)
def test_folders_are_readable_and_stay_in_the_sweep_s(choices, folder):
  name = Cell(choices).folder
  assert re.fullmatch(folder, name)
  assert len(name) < 150
  assert "/" not in name


def test_values_that_look_alike_have_folders_of_their_own():
  texts = ["('a', 'b')", "('a','b',)", "['a', 'b']", "a b", "a/b", "a:b"]
  assert len({Cell((("P", text),)).folder for text in texts}) == len(texts)


@pytest.mark.parametrize("values", ["1,'1'", "adam,'adam'"])
def test_values_that_would_share_a_folder_are_told(values):
  axes = [axis_argument(f"P={values}")]
  for make in (lambda: cells.grid(axes), lambda: cells.drawn(axes, 2, seed=0)):
    with pytest.raises(UserError, match="would train in one folder, P="):
      make()
