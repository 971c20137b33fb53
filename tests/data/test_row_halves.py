"""The two halves of held-out rows share no row, and both have text from everywhere."""

import dataclasses

import numpy as np
import pytest

from data import corpora, dataset, lanes, loader, row_halves, tokenizers
from data.document_streams import DocumentStreams
from data.row_halves import HALVES, RowHalf
from data.rows import RowFileError, RowFiles
from tests.data.test_rows import write, write_masked

TEXTS = [f"document {number}, " * (1 + number % 5) for number in range(200)]


def halves(whole):
  return [RowHalf(whole, half) for half in HALVES]


def starts(rows):
  return [row.tobytes() for row in rows.tokens[: len(rows)]]


@pytest.mark.parametrize("length", [16, 64])
def test_halves_share_no_row_and_miss_none(tmp_path, length):
  whole = RowFiles(write(tmp_path, TEXTS, length))
  validation, test = halves(whole)
  assert sorted(starts(validation) + starts(test)) == sorted(starts(whole))
  assert abs(len(validation) - len(test)) < len(whole) / 20
  assert validation.text_bytes() + test.text_bytes() == whole.text_bytes()
  assert len({whole.fingerprint, validation.fingerprint, test.fingerprint}) == 3


def test_the_first_rows_of_a_half_are_from_everywhere(tmp_path):
  whole = RowFiles(write(tmp_path, TEXTS))
  order = {start: place for place, start in enumerate(starts(whole))}
  for half in halves(whole):
    places = [order[start] / len(whole) for start in starts(half)[:16]]
    assert places == sorted(places)
    assert set(np.histogram(places, bins=8, range=(0, 1))[0]) <= {1, 2, 3}


def test_rows_of_another_length_have_the_same_text_in_a_half(tmp_path):
  """But for a row at each border: what one half chose by, the other does not test."""
  texts = [f"{number:06}" for number in range(3000)]
  by_length = [
    [half.tokenizer.decode(half.tokens[: len(half)].ravel()) for half in halves(opened)]
    for opened in (RowFiles(write(tmp_path / str(n), texts, n)) for n in (7, 70))
  ]
  found = [[{word for word in texts if word in text} for text in half] for half in by_length]
  (short, _), (_, long) = found
  assert len(short & long) < 0.04 * len(texts)


def test_no_row_of_a_half_goes_on_from_another(tmp_path):
  """A document of which a row is in the other half does not go on from rows before it."""
  whole = RowFiles(write(tmp_path, ["x" * 2000, *TEXTS, "y" * 2000]))
  assert any(lanes.token_before(whole, row) >= 0 for row in range(len(whole)))
  for half in halves(whole):
    streamed = list(DocumentStreams(half, 4))
    alone = list(loader.batches(half, 4, shuffle=False, repeat=False))
    for name in ("inputs", "targets", "loss_weights"):
      found, expected = (
        {row.tobytes() for batch in batches for row in batch[name] if row.any()}
        for batches in (streamed, alone)
      )
      assert found == expected
    assert sum(batch["row_bytes"].sum() for batch in streamed) == half.text_bytes()


def test_batches_of_a_half_are_its_rows(tmp_path):
  documents = [(text, 5) for text in TEXTS]
  whole = RowFiles(write_masked(tmp_path, documents))
  for half in halves(whole):
    batches = list(loader.batches(half, 8, shuffle=False, repeat=False))
    targets = np.concatenate([batch["targets"] for batch in batches])
    assert [row.astype(half.tokens.dtype).tobytes() for row in targets[: len(half)]] == starts(half)
    assert sum(batch["row_bytes"].sum() for batch in batches) == half.text_bytes()
    for batch, first in zip(batches, range(0, len(half), 8), strict=True):
      mask = half.loss_mask[first : first + 8]
      assert (batch["loss_weights"][: len(mask)] == mask).all()


def test_too_few_rows_for_two_halves_are_an_error(tmp_path):
  whole = RowFiles(write(tmp_path, ["x"]))
  assert len(whole) == 1
  with pytest.raises(RowFileError, match=r"has 1 held-out rows? of 16 tokens: too few"):
    halves(whole)


@pytest.mark.parametrize("count", range(2, 70))
def test_halves_of_few_rows_are_about_equal(count):
  first, second = (row_halves._places(count, half) for half in (0, 1))
  assert sorted([*first, *second]) == list(range(count))
  assert abs(len(first) - len(second)) <= max(1, count / 3)


def test_a_dataset_opens_a_half_of_the_same_files(tmp_path):
  for number, text in enumerate(TEXTS):
    (tmp_path / f"{number}.txt").write_text(text)
  text = dataset.TextDataset(
    corpora.TextFiles((f"{tmp_path}/*.txt",)),
    tokenizers.Bytes(),
    32,
    split="all",
    cache_dir=str(tmp_path / "cache"),
  )
  whole = text.rows()
  half = dataclasses.replace(text, half="test").rows()
  assert half.directory == whole.directory
  assert set(starts(half)) < set(starts(whole))
