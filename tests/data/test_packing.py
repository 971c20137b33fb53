"""Packing keeps every token, fills every row, and counts documents and bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import packing, tokenizers

EOS = tokenizers.Bytes.eos_id


def pack(documents, length):
  """Returns all rows and the counts."""
  packer = packing.Packer(tokenizers.Bytes(), length)
  blocks = [rows for document in documents for rows in packer.add(*document)]
  blocks.append(packer.finish())
  rows = packing.PackedRows(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
  return rows, packer.counts


def from_text(text):
  return np.array([*tokenizers.Bytes().encode(text), EOS]), len(text.encode())


def segments(rows):
  """Returns the tokens of every segment, in order."""
  found = []
  for tokens, ids in zip(rows.tokens, rows.segment_ids, strict=True):
    found.extend(tokens[ids == i].tolist() for i in range(1, ids.max() + 1))
  return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=60), max_size=12), st.integers(1, 40))
def test_rows_in_sequence_are_the_documents_in_sequence(texts, length):
  rows, counts = pack([from_text(text) for text in texts], length)
  expected = [id_ for text in texts if text for id_ in from_text(text)[0]]
  is_text = rows.segment_ids > 0
  assert rows.tokens[is_text].tolist() == expected
  # Only the end of the last row is padding.
  assert is_text.ravel()[: len(expected)].all()
  assert is_text.size - len(expected) == counts.padding_tokens < length
  assert counts.documents + counts.empty_documents == len(texts)
  assert counts.tokens == len(expected)
  assert counts.text_bytes == sum(len(text.encode()) for text in texts) == rows.row_bytes.sum()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=12), st.integers(2, 40))
def test_segments_are_contiguous_and_never_span_documents(texts, length):
  rows, _ = pack([from_text(text) for text in texts], length)
  for ids in rows.segment_ids:
    steps = np.diff(ids[ids > 0])
    assert ids[0] == 1
    assert ((steps == 0) | (steps == 1)).all()
  for segment in segments(rows):
    assert EOS not in segment[:-1]


def test_many_blocks_of_rows_keep_every_token():
  # More rows than a block holds, from documents longer than a block.
  tokens = (np.arange(300_000) % 256 + 3).astype(np.int64)
  rows, counts = pack([(tokens, len(tokens)), (tokens[:777], 777)], 7)
  expected = np.concatenate([tokens, [EOS], tokens[:777], [EOS]])
  np.testing.assert_array_equal(rows.tokens[rows.segment_ids > 0], expected)
  assert len(rows.tokens) == -(-len(expected) // 7)
  assert counts.cut_documents == 2


def test_pieces_of_a_large_document_are_one_segment_per_row(monkeypatch):
  monkeypatch.setattr(packing, "_PIECE", 3)
  documents = [from_text("abcdefghijkl"), from_text("mnopqrs"), from_text("t")]
  rows, counts = pack(documents, 8)
  monkeypatch.setattr(packing, "_PIECE", 1000)
  expected, _ = pack(documents, 8)
  for found, whole in zip(rows, expected, strict=True):
    assert found.tolist() == whole.tolist()
  assert rows.segment_ids.max(axis=1).tolist() == [1, 2, 2]
  assert rows.row_bytes.sum() == counts.text_bytes == 20


def test_a_document_that_ends_with_its_row_leaves_the_next_row_to_begin_at_one():
  rows, _ = pack([from_text("abc"), from_text("def")], 4)
  assert rows.segment_ids.tolist() == [[1] * 4, [1] * 4]


def test_id_zero_inside_a_document_keeps_its_tail():
  document = np.array([70, 0, 71, 0, 0, 72, EOS])
  rows, counts = pack([(document, 3)], 5)
  assert rows.tokens[rows.segment_ids > 0].tolist() == document.tolist()
  assert counts.tokens == 7


def test_a_document_longer_than_the_row_goes_on_as_a_new_segment_with_its_eos():
  rows, counts = pack([from_text("abcdefgh"), from_text("z")], 4)
  assert [len(s) for s in segments(rows)] == [4, 4, 1, 2]
  assert segments(rows)[2] == [EOS]
  assert rows.segment_ids.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 0]]
  assert (counts.cut_documents, counts.documents, counts.padding_tokens) == (1, 2, 1)


def test_a_document_without_eos_gets_one():
  rows, counts = pack([(np.array([70, 71]), 2)], 3)
  assert rows.tokens.tolist() == [[70, 71, EOS]]
  assert counts.tokens == 3


def test_empty_documents_are_left_out_and_counted():
  empty = (np.array([EOS]), 0)
  rows, counts = pack([empty, from_text("a"), (np.array([], np.int32), 0), empty], 2)
  assert rows.tokens.tolist() == [[ord("a") + 3, EOS]]
  assert (counts.documents, counts.empty_documents) == (1, 3)


def test_replaced_and_unknown_are_counted():
  documents = [(np.array([2, 70, 2, EOS]), 3, True), (np.array([70, EOS]), 1, False)]
  _, counts = pack(documents, 4)
  assert (counts.invalid_utf8_documents, counts.unknown_tokens) == (1, 2)


@pytest.mark.parametrize("bad", [259, -1])
def test_an_id_outside_the_vocabulary_is_an_error(bad):
  with pytest.raises(ValueError, match=f"holds the id {bad}, the tokenizer has ids 0 to 258"):
    pack([(np.array([70, bad, EOS]), 2)], 4)


def test_a_row_needs_at_least_one_token():
  with pytest.raises(ValueError, match="sequence_length=0 must be at least 1"):
    packing.Packer(tokenizers.Bytes(), 0)


def test_bytes_of_a_normalised_text_add_up_to_the_original():
  # Ten letters that stood for 23 bytes, and an unknown token that stood for four.
  tokens = np.array([*tokenizers.Bytes().encode("abcdefghij"), EOS])
  rows, counts = pack([(tokens, 23), (np.array([2, EOS]), 4)], 4)
  assert rows.row_bytes.sum() == counts.text_bytes == 27
  # In proportion to what each row's tokens spell: 4, 4 and 2 of 10 letters, and the unknown one.
  assert rows.row_bytes.tolist() == [9, 9, 5 + 2, 2]


@settings(deadline=None, max_examples=60)
@given(
  st.lists(st.tuples(st.text(max_size=40), st.integers(0, 50)), max_size=10), st.integers(1, 30)
)
def test_a_loss_mask_stays_on_its_tokens(texts, length):
  documents, expected = [], []
  for text, prompt in texts:
    tokens, size = from_text(text)
    mask = np.arange(len(tokens)) >= prompt
    documents.append((tokens, size, False, mask))
    expected += [*zip(tokens, mask, strict=True)] if text else []
  rows, counts = pack(documents, length)
  is_text = rows.segment_ids > 0
  found = zip(rows.tokens[is_text], rows.loss_mask[is_text], strict=True)
  assert [*found] == expected
  assert not rows.loss_mask[~is_text].any()
  assert counts.unscored_tokens == sum(not scored for _, scored in expected)
  assert counts.unscored_bytes == sum(not scored and token != EOS for token, scored in expected)
  assert rows.row_bytes.sum() == counts.text_bytes - counts.unscored_bytes


def test_an_added_end_is_in_the_loss_if_the_last_token_is():
  for last in (True, False):
    rows, _ = pack([(np.array([5, 6]), 2, False, np.array([True, last]))], 3)
    assert rows.loss_mask.tolist() == [[True, last, last]]


def test_a_mask_of_another_length_is_refused():
  with pytest.raises(ValueError, match="document 1 has 2 tokens and a loss mask of 3"):
    pack([(np.array([5, 6]), 2, False, np.ones(3, bool))], 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=20), max_size=12), st.integers(1, 30))
def test_whole_documents_are_cut_only_if_longer_than_a_row(texts, length):
  packer = packing.Packer(tokenizers.Bytes(), length, whole=True)
  blocks = [rows for text in texts for rows in packer.add(*from_text(text))]
  rows = packing.PackedRows(*map(np.concatenate, zip(*blocks, packer.finish(), strict=True)))
  expected = []
  for text in filter(None, texts):
    tokens = from_text(text)[0].tolist()
    expected += [tokens[i : i + length] for i in range(0, len(tokens), length)]
  assert segments(rows) == expected
  counts = packer.counts
  assert counts.padding_tokens == (rows.segment_ids == 0).sum()
  assert counts.cut_documents == sum(len(from_text(t)[0]) > length for t in texts)
