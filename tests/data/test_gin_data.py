"""The gin files under gin/data/ build the data that they describe."""

import dataclasses
import importlib.util  # noqa: F401  gin uses it without importing it.
from pathlib import Path
from typing import Any

import pytest

import gin

FOLDER = Path(__file__).parents[2] / "gin"
# Included by others, and nothing alone.
FRAGMENTS = {
  "text_dataset.gin",
  "recall.gin",
  "bytes.gin",
  "symbols.gin",
  "sentencepiece.gin",
  "tokenizer.gin",
  "tiktoken.gin",
  "hub_dataset.gin",
  "tokenizer_file.gin",
  "train_and_heldout.gin",
  "parquet.gin",
  "records.gin",
  "saved_dataset.gin",
  "text_files.gin",
  "json_lines.gin",
  "instructions.gin",
  "instructions_gemma_turns.gin",
  "ruler_tasks.gin",
}
FILES = sorted({p.name for p in (FOLDER / "data").glob("*.gin")} - FRAGMENTS)
OWN_TOKENIZER = ("s_sentencepiece.gin", "_tokenizer.gin", "_tiktoken.gin")
RECALL = (
  "selective_copying.gin",
  "induction_heads.gin",
  "mqar.gin",
  "state_tracking.gin",
  "phonebook.gin",
  "needle.gin",
)


@dataclasses.dataclass(frozen=True)
class Holder:
  train: Any
  heldout: Any
  vocab_size: Any
  sequence_length: Any
  batch_size: Any


def configured(name, *bindings):
  gin.clear_config()
  gin.add_config_file_search_path(str(FOLDER))
  macros = {
    "train": "TRAIN_DATA",
    "heldout": "EVAL_DATA",
    "vocab_size": "VOCAB_SIZE",
    "sequence_length": "SEQUENCE_LENGTH",
    "batch_size": "BATCH_SIZE",
  }
  holder = gin.external_configurable(Holder, "Holder")
  bound = [f"Holder.{field} = %{macro}" for field, macro in macros.items()]
  try:
    gin.parse_config_files_and_bindings([f"data/{name}"], [*bound, *bindings])
    return holder()
  finally:
    gin.clear_config()


@pytest.mark.parametrize("name", FILES)
def test_training_and_heldout_text_differ_only_where_they_should(name):
  # Of a tokenizer that is yet to be trained, the size cannot be known.
  own = ["VOCAB_SIZE = 300"] if name.endswith(OWN_TOKENIZER) else []
  found = configured(name, "SEQUENCE_LENGTH = 96", *own)
  assert found.sequence_length == 96
  assert found.batch_size > 0
  parts = getattr(found.train, "components", [found.train])
  assert len(set(parts)) == len(parts)
  for part in [*parts, found.heldout]:
    assert part.sequence_length == 96
    assert part.vocabulary == found.heldout.vocabulary
  if name.startswith(("token_files", "heldout_files")):
    assert found.train.corpus.files != found.heldout.corpus.files
    return
  assert all(part.split == "train" for part in parts)
  # What is held out is held out of what is trained on.
  assert found.heldout.split in ("heldout", "validation")
  assert any(dataclasses.replace(found.heldout, split="train") == part for part in parts)


@pytest.mark.parametrize("name", RECALL)
def test_rows_of_recall_tasks_hold_an_example_with_little_left_over(name):
  found = configured(name)
  assert found.train.whole_documents
  longest = max(
    len(e.tokens) for e in found.heldout.corpus.drawn(found.train.vocabulary, "heldout")
  )
  assert 0.75 * found.sequence_length < longest <= found.sequence_length


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith("_bytes.gin") or n in RECALL])
def test_a_byte_tokenizer_has_the_size_that_models_are_told(name):
  found = configured(name)
  assert found.heldout.vocabulary.size == found.vocab_size


def test_files_and_fields_are_set_by_macros():
  found = configured("json_lines_bytes.gin", "JSON_LINES = ['a', 'b']", "JSON_FIELD = 'body'")
  assert (found.train.corpus.files, found.train.corpus.field) == (["a", "b"], "body")
  found = configured("text_files_bytes.gin", "TEXT_FILES = 'x/*.md'")
  assert found.heldout.corpus.files == "x/*.md"
  found = configured("python_sentencepiece.gin", "VOCABULARY_MODEL = 'x.model'")
  assert found.train.vocabulary.path == "x.model"
