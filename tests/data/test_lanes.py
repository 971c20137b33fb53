"""Rows in lanes: each row of a batch goes on where the one before it ended."""

import dataclasses
import itertools

import numpy as np
import pytest

from data import lanes, loader, mixture, packing, rows, tokenizers

LENGTH = 8
TOKENIZER = tokenizers.Bytes()
OPTION = "--gin.training.step.StepOptions.carry_state=False"


def packed(directory, lengths):
  """Row files of documents of these lengths, EOS included; document n is full of the id n + 10."""
  directory.mkdir()
  packer = packing.Packer(TOKENIZER, LENGTH)
  writer = rows.RowWriter(directory, TOKENIZER, LENGTH)
  for document, length in enumerate(lengths):
    for block in packer.add(np.full(length - 1, document + 10), length):
      writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  return rows.RowFiles(directory)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """93 rows of documents of 1 to 200 tokens."""
  lengths = [*np.random.default_rng(0).integers(2, 200, 8).tolist(), 5, 8, 3, 16]
  return packed(tmp_path_factory.mktemp("text") / "rows", lengths)


def streams(text, batch_size, steps, **options):
  """The batches, as lists of arrays [steps, ...] of each lane."""
  batches = loader.batches(text, batch_size, in_lanes=True, seed=3, **options)
  taken = [next(batches) for _ in range(steps)]
  batches.close()
  return {name: np.stack([batch[name] for batch in taken], axis=1) for name in taken[0]}


def test_lanes_read_consecutive_rows_and_each_row_once_in_an_epoch(text):
  order = lanes.Lanes(text, 4, seed=3)
  epoch = len(text) // 4
  for first in (0, epoch):
    found = [[order.row(first + step, lane) for step in range(epoch)] for lane in range(4)]
    assert all((b - a) % len(text) == 1 for lane in found for a, b in itertools.pairwise(lane))
    assert len({row for lane in found for row in lane}) == 4 * epoch > len(text) - 4
  assert found[0][0] != order.row(0, 0)  # each epoch is cut elsewhere


def test_what_goes_on_is_marked_by_segment_1_and_goes_on_from_the_last_token(text):
  found = streams(text, 4, 2 * (len(text) // 4))
  went_on = 0
  for lane, step in itertools.product(range(4), range(1, found["targets"].shape[1])):
    inputs, targets, ids = (
      found[name][lane, step] for name in ("inputs", "targets", "segment_ids")
    )
    before = found["targets"][lane, step - 1, -1]
    goes_on = ids[0] == 1
    went_on += goes_on
    # Documents are told apart by what they are full of; some end where a row does.
    assert goes_on == (before == targets[0] or (before > 1 and targets[0] == TOKENIZER.eos_id))
    assert inputs[0] == (before if goes_on else TOKENIZER.bos_id)
    np.testing.assert_array_equal(found["positions"][lane, step][ids == 1], range((ids == 1).sum()))
  assert went_on > 40


def test_an_epoch_begins_afresh_and_a_run_too(text):
  epoch = len(text) // 4
  found = streams(text, 4, epoch + 1)
  for step in (0, epoch):
    assert (found["segment_ids"][:, step, 0] == 2).all()
    assert (found["inputs"][:, step, 0] == TOKENIZER.bos_id).all()


def test_readers_share_a_batch_and_any_step_can_come_first(text):
  whole = streams(text, 4, 9)
  for slots in ((0, 2), (1, 3)):
    part = streams(text, 4, 4, slots=slots, start_step=5)
    for name, found in part.items():
      np.testing.assert_array_equal(found, whole[name][list(slots), 5:])


def test_lanes_go_on_from_their_state_and_not_from_that_of_others(text):
  first = loader.batches(text, 4, in_lanes=True, seed=3)
  _ = [next(first) for _ in range(5)]
  state = first.state()
  assert state == {"next_row": 20, "lanes": lanes.Lanes(text, 4, 3).order}
  expected = next(first)
  first.restore(state)
  again = next(first)
  assert not any(np.any(again[name] != expected[name]) for name in again)
  assert (again["segment_ids"][:, 0] == 1).any()
  for other in (state | {"lanes": "of another text"}, {"next_row": 20}):
    first.restore(other)
    assert (next(first)["segment_ids"][:, 0] == 2).all()
  first.close()


def test_documents_go_on_from_shard_to_shard_only_in_their_order(tmp_path):
  """A document in pieces of several shards, as of a large file; shards are read in any order."""
  text = packed(tmp_path / "one", [40 * LENGTH])
  (shard,) = text.manifest.shards
  sizes = (10, 20, 10)
  parts = tuple(dataclasses.replace(shard, rows=size) for size in sizes)
  text.manifest = dataclasses.replace(text.manifest, listed=parts)
  order = lanes.Lanes(text, 1, seed=0)
  seen = [order.row(step, 0) for step in range(40)]
  assert sorted(seen) == list(range(40))
  breaks = [step for step in range(1, 40) if seen[step] != seen[step - 1] + 1]
  assert {seen[step] for step in breaks} <= {0, 10, 30}
  for step in range(1, 40):
    assert (order[step][-1] == -1) == (step in breaks)


def test_too_few_rows_and_mixtures_are_refused(text, tmp_path):
  small = packed(tmp_path / "small", [20])
  with pytest.raises(lanes.LaneError, match=r"has 3 rows for 4 lanes: .*BATCH_SIZE to at most 3"):
    loader.batches(small, 4, in_lanes=True)
  mixed = mixture.MixedRows([text, text], [1, 2])
  with pytest.raises(lanes.LaneError, match=f"mixture cannot be read in lanes.*{OPTION}"):
    loader.batches(mixed, 4, in_lanes=True)
