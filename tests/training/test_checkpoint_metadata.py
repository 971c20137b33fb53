"""Invalid metadata of a checkpoint under a right checksum, which anybody can compute."""

import json

import pytest

from training import checkpoint_metadata

GOOD = {
  "data": {"next_row": 80},
  "metrics": 400,
  "pending": [[1.0, None, 32]],
  "heldout": {"heldout_loss": 5.0},
  "identity": {"config": "A = 3", "data": {}},
}
ODD = [
  "x",
  [],
  {},
  [1],
  -1,
  2**80,
  True,
  [[[]]],
  {"a": {"b": []}},
  1e308,
  [["x", 1, 2]],
  {"a": "x"},
]
# What means nothing worse than an empty value.
HARMLESS = {
  "pending": ([],),
  "heldout": ({},),
  "identity": ({}, {"a": {"b": []}}, {"a": "x"}),
}


def test_what_a_run_writes_passes_whatever_its_age():
  checkpoint_metadata.check(GOOD)
  checkpoint_metadata.check({"data": {"next_index": 3}})
  checkpoint_metadata.check(
    {"data": {"next_index": 3, "batch_size": 8}, "pending": [], "heldout": {}}
  )


@pytest.mark.parametrize("name", GOOD)
def test_every_field_is_looked_at(name):
  for value in ODD:
    if value in HARMLESS.get(name, ()):
      continue
    with pytest.raises(ValueError, match=f"its {name} is") as error:
      checkpoint_metadata.check(GOOD | {name: value})
    assert len(str(error.value)) < 200, json.dumps(value)


@pytest.mark.parametrize("value", [..., None, "x", -1, 2**80, True, 1.5, [3]])
def test_a_place_in_the_data_is_a_number_of_rows(value):
  with pytest.raises(ValueError, match="its data is"):
    checkpoint_metadata.check(GOOD | {"data": {} if value is ... else {"next_row": value}})
