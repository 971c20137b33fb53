"""Batches: their arrays, the rows of each step, and the position as one number."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from data import loader, mixture, packing, rows, tokenizers

LENGTH = 8
NAMES = {"inputs", "targets", "segment_ids", "positions", "loss_weights"}


def numbered(directory, count, first=0):
  """Row files whose row i is full of the id first + i."""
  tokenizer = tokenizers.Bytes()
  directory.mkdir()
  packer = packing.Packer(tokenizer, LENGTH)
  writer = rows.RowWriter(directory, tokenizer, LENGTH)
  tokens = np.repeat(np.arange(first, first + count), LENGTH)
  tokens[-1] = tokenizer.eos_id
  for block in packer.add(tokens, count * LENGTH):
    writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  return rows.RowFiles(directory)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
  return numbered(tmp_path_factory.mktemp("rows") / "twenty", 20, first=3)


def row_numbers(batch):
  return batch["targets"][:, 0].tolist()


def take(batches, count):
  return [next(batches) for _ in range(count)]


def test_a_batch_is_derived_from_tokens_and_segments():
  tokens = np.array([[5, 6, 1, 7, 0, 1, 0, 0], [9, 9, 9, 9, 9, 9, 9, 1]], np.uint16)
  segment_ids = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * 8], np.uint16)
  batch = loader.batch_of_rows(tokens, segment_ids, bos_id=4)
  assert set(batch) == NAMES
  assert batch["inputs"].tolist() == [[4, 5, 6, 4, 7, 0, 0, 0], [4, 9, 9, 9, 9, 9, 9, 9]]
  assert batch["targets"].tolist() == tokens.tolist()
  assert batch["segment_ids"].tolist() == segment_ids.tolist()
  assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 0], list(range(8))]
  assert batch["loss_weights"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8]
  types = {name: array.dtype.name for name, array in batch.items()}
  assert types == dict.fromkeys(NAMES, "int32") | {"loss_weights": "float32"}


def test_the_loss_is_on_what_the_mask_says(tmp_path, twenty):
  tokenizer = tokenizers.Bytes()
  packer = packing.Packer(tokenizer, LENGTH)
  writer = rows.RowWriter(tmp_path, tokenizer, LENGTH, masked=True)
  assert not list(packer.add(np.array([5, 6, 7, 8, 1]), 4, loss_mask=np.array([0, 0, 1, 1, 0]) > 0))
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  masked = rows.RowFiles(tmp_path)
  batch = next(loader.batches(masked, 2, shuffle=False, repeat=False))
  assert batch["loss_weights"].dtype == np.float32
  assert batch["loss_weights"].tolist() == [[0, 0, 1, 1, 0, 0, 0, 0], [0] * 8]
  assert batch["segment_ids"][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
  # Rows with and without a mask mix.
  mixed = loader.batches(
    mixture.MixedRows([twenty, masked], [1, 1]), 21, shuffle=False, repeat=False
  )
  assert next(mixed)["loss_weights"].sum(axis=1).tolist() == [8] * 20 + [2]


def test_a_single_pass_says_how_many_bytes_of_text_its_rows_stand_for(tmp_path, twenty):
  tokenizer = tokenizers.Bytes()
  packer = packing.Packer(tokenizer, LENGTH)
  writer = rows.RowWriter(tmp_path, tokenizer, LENGTH, masked=True)
  # The unknown id spells nothing; the text has 40 bytes all the same, 8 of them outside of the
  # loss.
  mask = np.array([False, True, True, True])
  blocks = list(packer.add(np.array([2, 2, 2, 2]), 40, loss_mask=mask))
  assert not blocks
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  masked = rows.RowFiles(tmp_path)
  (batch,) = loader.batches(masked, 3, shuffle=False, repeat=False)
  assert set(batch) == NAMES | {"row_bytes"}
  assert batch["row_bytes"].tolist() == [masked.text_bytes(), 0, 0] == [32, 0, 0]
  assert masked.bytes_per_token == masked.text_bytes() / batch["loss_weights"].sum()
  mixed = mixture.MixedRows([twenty, masked], [1, 1])
  (batch,) = loader.batches(mixed, 21, shuffle=False, repeat=False)
  assert batch["row_bytes"].sum() == mixed.text_bytes()
  assert set(next(loader.batches(twenty, 4))) == NAMES


@pytest.mark.parametrize(
  ("name", "place", "value", "message"),
  [
    (rows.TOKENS, 2 * LENGTH, 259, r"row 2: the id 259 is not in the vocabulary \(0 to 258\)"),
    (rows.SEGMENT_IDS, 3 * LENGTH + 4, 7, r"row 3: segments are not numbered 1, 2, 3"),
    (rows.SEGMENT_IDS, 3 * LENGTH, 2, r"row 3: segments are not numbered"),
    (rows.SEGMENT_IDS, 3 * LENGTH + 2, 0, r"row 3: segments are not numbered"),
  ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_ids_out_of_range_are_an_error_and_no_batch(tmp_path, name, place, value, message, mixed):
  numbered(tmp_path / "rows", 6)
  file = tmp_path / "rows" / name
  values = np.fromfile(file, "<u2")
  values[place] = value
  values.tofile(file)
  opened = rows.RowFiles(tmp_path / "rows")
  read = mixture.MixedRows([opened], [1]) if mixed else opened
  with pytest.raises(rows.RowFileError, match=message):
    take(loader.batches(read, 6), 1)


def test_every_epoch_has_every_row_once_in_its_own_order(twenty):
  batches = loader.batches(twenty, 5, seed=1)
  epochs = [
    list(itertools.chain.from_iterable(row_numbers(b) for b in take(batches, 4))) for _ in range(3)
  ]
  for epoch in epochs:
    assert sorted(epoch) == list(range(3, 23))
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_seed_decides_the_order(twenty):
  first, again, other = (
    [row_numbers(b) for b in take(loader.batches(twenty, 5, seed=seed), 8)] for seed in (1, 1, 2)
  )
  assert first == again != other
  # Nor is one seed another seed's next epoch.
  assert first[4:] != other[:4]


def test_without_shuffling_rows_come_in_order(twenty):
  batches = loader.batches(twenty, 8, shuffle=False)
  assert row_numbers(next(batches)) == list(range(3, 11))
  next(batches)
  # The epoch ends within a batch, and the next begins.
  assert row_numbers(next(batches)) == [19, 20, 21, 22, 3, 4, 5, 6]


def test_a_batch_may_be_larger_than_the_rows(tmp_path):
  few = numbered(tmp_path / "few", 3, first=3)
  batch = next(loader.batches(few, 7, seed=0))
  assert sorted(row_numbers(batch)[:3]) == sorted(row_numbers(batch)[3:6]) == [3, 4, 5]


@pytest.mark.parametrize(
  "readers", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2], [3, 4, 5]], [[0, 3, 5], [1, 2], [4]], [[1, 4]] * 2]
)
def test_any_readers_make_the_same_global_batch(twenty, readers):
  whole = take(loader.batches(twenty, 6, seed=5), 9)
  parts = [loader.batches(twenty, 6, seed=5, slots=slots) for slots in readers]
  for expected in whole:
    for slots, part in zip(readers, parts, strict=True):
      found = next(part)
      for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name][slots])


@pytest.mark.parametrize("step", [0, 1, 7, 1000])
def test_a_position_is_one_number(twenty, step):
  straight = loader.batches(twenty, 6, seed=5, start_step=step)
  expected = [row_numbers(b) for b in take(straight, 3)]
  assert straight.state() == {"next_row": 6 * (step + 3)}
  restored = loader.batches(twenty, 6, seed=5)
  next(restored)
  restored.restore({"next_row": 6 * step})
  assert restored.state() == {"next_row": 6 * step}
  assert [row_numbers(b) for b in take(restored, 3)] == expected
  # As it was kept before: batches.
  restored.restore({"next_index": step})
  assert [row_numbers(b) for b in take(restored, 3)] == expected
  if step == 7:
    whole = [row_numbers(b) for b in take(loader.batches(twenty, 6, seed=5), 10)]
    assert whole[7:] == expected


def test_a_position_serves_any_readers(twenty):
  state = {"next_row": 66}
  whole = loader.batches(twenty, 6, seed=5)
  whole.restore(state)
  numbers = row_numbers(next(whole))
  for slots in ([0, 2, 5], [1, 3, 4]):
    part = loader.batches(twenty, 6, seed=5, slots=slots)
    part.restore(state)
    assert row_numbers(next(part)) == [numbers[slot] for slot in slots]
    assert part.state() == {"next_row": 72}


@pytest.mark.parametrize("batch_size", [4, 16, 7, 1])
def test_another_batch_size_goes_on_at_the_next_row(twenty, batch_size):
  rows = [n for b in take(loader.batches(twenty, 1, seed=5), 300) for n in row_numbers(b)]
  before = loader.batches(twenty, 8, seed=5)
  take(before, 10)
  for state in (before.state(), {"next_index": 10, "batch_size": 8}):
    after = loader.batches(twenty, batch_size, seed=5)
    after.restore(state)
    assert after.state() == {"next_row": 80}
    found = [n for b in take(after, 5) for n in row_numbers(b)]
    assert found == rows[80 : 80 + 5 * batch_size]
    assert after.state() == {"next_row": 80 + 5 * batch_size}
    # The rest of a batch stays, however often it goes on.
    again = loader.batches(twenty, batch_size, seed=5)
    again.restore(after.state())
    assert row_numbers(next(again)) == rows[80 + 5 * batch_size : 80 + 6 * batch_size]


def test_heldout_rows_come_once_in_order_and_end_in_padding(twenty):
  steps = list(loader.batches(twenty, 8, shuffle=False, repeat=False))
  assert len(steps) == loader.steps_per_pass(twenty, 8) == 3
  joined = {name: np.concatenate([step[name] for step in steps]) for name in NAMES}
  assert joined["targets"].shape == (24, LENGTH)
  assert joined["targets"][:20, 0].tolist() == list(range(3, 23))
  assert joined["loss_weights"].sum() == twenty.counts.tokens
  for name in NAMES:
    assert not joined[name][20:].any()


def test_a_single_pass_that_fills_its_batches_has_no_padding(twenty):
  batches = list(loader.batches(twenty, 10, shuffle=False, repeat=False))
  assert len(batches) == 2
  assert all(b["loss_weights"].all() for b in batches)


def test_a_single_pass_can_be_shuffled(twenty):
  batches = list(loader.batches(twenty, 8, seed=3, repeat=False))
  numbers = [n for b in batches for n in row_numbers(b)]
  assert numbers[20:] == [0] * 4
  assert sorted(numbers[:20]) == list(range(3, 23)) != numbers[:20]


def test_a_mixture_is_drawn_by_weight(tmp_path, twenty):
  other = numbered(tmp_path / "other", 7, first=100)
  mixed = mixture.MixedRows([twenty, other], [3, 1])
  numbers = [n for b in take(loader.batches(mixed, 8, seed=2), 25) for n in row_numbers(b)]
  of_other = [n for n in numbers if n >= 100]
  assert len(of_other) == 50
  # Each part goes through all its rows before it repeats one.
  assert sorted(of_other[:7]) == list(range(100, 107))
  first = [n for n in numbers if n < 100][:20]
  assert sorted(first) == list(range(3, 23))


def test_equal_parts_of_a_mixture_have_different_orders(twenty):
  mixed = mixture.MixedRows([twenty, twenty], [1, 1])
  numbers = [n for b in take(loader.batches(mixed, 8, seed=2), 5) for n in row_numbers(b)]
  assert numbers[0::2] != numbers[1::2]
  assert sorted(numbers[0::2]) == sorted(numbers[1::2])


def test_a_single_pass_over_a_mixture_has_every_row(tmp_path, twenty):
  other = numbered(tmp_path / "other", 7, first=100)
  mixed = mixture.MixedRows([twenty, other], [3, 1])
  batches = list(loader.batches(mixed, 9, shuffle=False, repeat=False))
  numbers = [n for b in batches for n in row_numbers(b)]
  assert numbers == [*range(3, 23), *range(100, 107)]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"batch_size": 6, "slots": [5, 6]}, r"slots=\[5, 6\] must be some of \[0, 6\)"),
    ({"batch_size": 6, "slots": []}, r"slots=\[\] must be some of \[0, 6\)"),
    ({"batch_size": 6, "start_step": -1}, "start_step=-1 must not be negative"),
  ],
)
def test_impossible_arguments_are_named(twenty, arguments, message):
  with pytest.raises(ValueError, match=message):
    loader.batches(twenty, **arguments)


def test_closing_stops_the_reading(twenty):
  batches = loader.batches(twenty, 4)
  next(batches)
  batches.close()
  with pytest.raises(ValueError, match="closed"):
    next(batches)


def test_closing_stops_the_reading_of_a_batch_that_takes_minutes(twenty):
  # Python waits for its threads when it exits, also after an error.
  batches = loader.batches(twenty, 10**7)
  before = set(threading.enumerate())

  def wait_for_a_batch():
    with contextlib.suppress(Exception):
      next(batches)

  threading.Thread(target=wait_for_a_batch).start()
  while len(reading := set(threading.enumerate()) - before) < 3:
    time.sleep(0.01)
  batches.close()
  for thread in reading:
    thread.join(timeout=20)
    assert not thread.is_alive()
