"""The real seqio, run once in a process of its own (seqio_cases.py): ids, texts, counts and errors.

Slow for its import of TensorFlow; worth it, for it alone shows that what is trained on, generated
and evaluated under our tokenizers is what seqio packed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import recall, recall_text, tokenizers
from tests.data import hostile

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """What seqio_cases.py found."""
  folder = tmp_path_factory.mktemp("seqio")
  output = folder.parent / "found.json"
  result = subprocess.run(
    [sys.executable, "-m", "tests.data.seqio_cases", str(folder), str(output)],
    cwd=ROOT,
    env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-4000:]
  return json.loads(output.read_text())


@pytest.mark.parametrize("kind", ["bytes", "pieces", "pieces_extra"])
def test_ids_and_texts_are_those_of_seqio(found, kind):
  case = found[kind]
  assert case["size"][0] == case["size"][1]
  assert case["special"][0] == case["special"][1]
  assert len(case["ids"]) == len(hostile.TEXTS)
  for own, python, tensorflow in case["ids"]:
    assert own == python == tensorflow
  for own, theirs in case["texts"]:
    assert own == theirs


def test_hostile_text_becomes_bytes_with_nothing_dropped(found):
  tokenizer = tokenizers.Bytes()
  texts = hostile.TEXTS + [raw.decode("utf-8", "replace") for raw in hostile.INVALID] + [""]
  invalid = [False] * len(hostile.TEXTS) + [True] * len(hostile.INVALID) + [False]
  expected = [
    [[*tokenizer.encode(text), 1], len(text.encode()), flag]
    for text, flag in zip(texts, invalid, strict=True)
  ]
  assert found["texts_as_bytes"] == expected


def test_hostile_text_becomes_pieces_with_nothing_dropped(found):
  tokens = [tokens for tokens, _, _ in found["texts_as_pieces"]]
  assert tokens == [[*ids, 1] for ids in found["expected_pieces"]] + [[1]]


def test_what_is_prepared_is_counted(found):
  case = found["texts_prepared"]
  counts = case["counts"]
  examples = found["texts_as_bytes"]
  assert counts["documents"] == len(examples) - 1
  assert counts["empty_documents"] == 1
  assert counts["invalid_utf8_documents"] == len(hostile.INVALID)
  assert counts["tokens"] == sum(len(tokens) for tokens, size, _ in examples if size)
  assert counts["text_bytes"] == sum(size for _, size, _ in examples)
  assert case["rows"] == int(np.ceil(counts["tokens"] / 8))
  assert case["events"][-1]["documents"] == len(examples)
  assert case["events"][-1]["finished"]


def test_corpora_are_registered_with_seqio(found):
  assert found["registered"]


def test_tensorflow_datasets_are_read_whole_and_in_part(found):
  decoded = sorted((tokenizers.Bytes().decode(t), bad) for t, _, bad in found["tfds"])
  assert decoded == [("", False), ("first", False), ("fourth", False), ("third �", True)]
  texts = [[tokenizers.Bytes().decode(t), size, bad] for t, size, bad in found["tfds"]]
  assert sorted(found["tfds_json"]) == sorted(texts)
  assert found["tfds_part"] == found["tfds"][:2]
  assert found["tfds_prepared"]["counts"]["documents"] == 3
  assert found["tfds_prepared"]["counts"]["empty_documents"] == 1


def test_registered_tasks_keep_their_own_preprocessing(found):
  q, r = ord("q") + 3, ord("r") + 3
  # Inputs and targets joined; the task chose to keep a byte that is no UTF-8.
  assert found["with_inputs"] == [[[q, 258, q, 258, 1], 4, True], [[r, r, 1], 2, False]]
  # Without a copy of its text, the bytes are those that the ids spell.
  assert found["long_documents"] == [[[ord("c") + 3] * 23 + [1], 23, False]]
  assert found["rates"] == {"long_documents": 1.0, "short_documents": 3.0}


@pytest.mark.parametrize(
  ("case", "task", "tokenizer"),
  [
    (
      "copying",
      recall.SelectiveCopying(length=8, data_tokens=3, examples=70),
      tokenizers.Symbols(16),
    ),
    ("phonebook", recall_text.Phonebook(length=3, examples=5), tokenizers.Bytes()),
  ],
)
def test_recall_tasks_pass_through_seqio_whole_with_the_loss_on_their_answers(
  found, case, task, tokenizer
):
  tokens, segments, mask = map(np.array, found[case])
  texts = [
    (row[ids == i].tolist(), scored[ids == i].tolist())
    for row, ids, scored in zip(tokens, segments, mask, strict=True)
    for i in range(1, ids.max() + 1)
  ]
  examples = list(task.drawn(tokenizer, "train"))
  assert len(texts) == len(examples) == task.examples
  assert texts == [(e.tokens.tolist(), e.loss_mask.tolist()) for e in examples]


def test_the_loss_can_be_on_the_targets_of_a_registered_task_alone(found):
  # 'q\xff' before 'q\xff' EOS, and 'r' before 'r' EOS, in one row of 8.
  assert found["targets_prepared"]["mask"] == [[0, 0, 1, 1, 1, 0, 1, 1]]
  assert found["targets_prepared"]["counts"]["unscored_tokens"] == 3
  assert found["texts_prepared"]["mask"] is None


@pytest.mark.parametrize(
  ("case", "message"),
  [
    ("bad_line", "bad.jsonl:2: 'text' is a number, not a string"),
    ("empty", "text-files (train) has no text: 1 document, all empty."),
    ("no_heldout", "text-files (heldout) has no text"),
    ("split", "unknown split='validation'. Choose from train, heldout, all."),
    ("cut_recall", "an example of 13 tokens is split over rows of 12"),
    ("cut_recall", "whole_documents=True and a sequence_length of at least 13"),
    ("few_symbols", "the task has 16 symbols, the tokenizer is Symbols(count=9)"),
    ("tfds_split", "split='heldout' does not exist in tfds-small_texts:1.0.0"),
    ("tfds_json_split", "split='heldout' does not exist in tfds-small_texts:1.0.0"),
    ("tfds_json_field", "tfds-small_texts:1.0.0 has no 'text', only 'body'. Correct"),
    ("tfds_absent", "no 'c4/en:3.1.0' in "),
    ("tfds_absent", "It is not prepared there. Prepare it (tfds build)"),
    ("tfds_unknown", "Dataset smal_texts not found. Prepare it (tfds build)"),
    ("tfds_version", "dataset='small_texts' has no version. Add one"),
    ("tfds_field", "tfds-small_texts:1.0.0 has no 'text', only 'body'. Correct"),
    ("unknown_task", "no seqio task 'short_document' is registered"),
    ("unknown_task", "Did you mean 'short_documents'?"),
    ("task_is_mixture", "It is a mixture: use dataset.RegisteredMixture"),
    ("features", "has the features ['inputs', 'targets'], not ['targets']"),
    (
      "vocabulary",
      "tokenizes 'targets' with Bytes(extra_ids=0), the dataset has SentencePiece",
    ),
    ("no_vocabulary", "uses a PassThroughVocabulary"),
    ("mixture", "no seqio mixture 'nothing' is registered"),
  ],
)
def test_what_cannot_be_prepared_is_one_clear_error(found, case, message):
  kind, text = found["failures"][case]
  assert kind == "CorpusError"
  assert message in text
  assert "\n" not in text


def test_a_task_of_several_files_is_packed_in_shares_of_them(found):
  case = found["shares"]
  assert len(case["shares"]) == 3
  assert case["names"][1] == "share 2 of 3 of the files of lines"
  # Every document once, and each share's are those of whole files.
  documents = [tuple(tokens) for share in case["shares"] for tokens in share]
  assert sorted(documents) == sorted(map(tuple, case["whole"]))
  assert len(set(documents)) == sum(20 + n for n in range(5))
  files = [{tokens[5] for tokens in share} for share in case["shares"]]
  assert sum(map(len, files)) == 5
  # A share alone is packed as before.
  assert case["same"]
  assert case["tokens"] == sum(map(len, case["whole"]))
  # The loss is on the responses alone, and not on padding.
  assert case["masked"] == case["unscored"] + case["padding"]
  assert 0 < case["unscored"] < case["tokens"]


def test_shares_of_other_files_are_not_joined(found):
  (kept, same), unlike = found["shares"]["folders"], found["shares"]["unlike"]
  assert kept == same
  # As many, so that the number does not tell them apart.
  assert unlike["counts"] == [3, 3]
  assert unlike["folder"] != kept
  for case in ("read", "joined"):
    assert unlike[case][0] == "CorpusError"
    assert "a file changed while it was read. Start again" in unlike[case][1]


def test_little_text_and_seeded_preprocessing_are_one_share(found):
  assert found["shares"]["little"]
  assert found["shares"]["seeded"]


def test_failures_leave_nothing_half_made(found):
  assert found["leftovers"] == []
