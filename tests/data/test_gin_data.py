"""The gin files under gin/data/ build the data that they describe."""

import dataclasses
from pathlib import Path

import pytest

from experiment import experiment

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
  "ruler_needles.gin",
  "ruler_words.gin",
  "ruler_few_words.gin",
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
# Rows of a task, and of prompts with responses, are as long as an example needs.
OF_EXAMPLES = (*RECALL, "ruler.gin", "instructions_bytes.gin")
# Of a tokenizer that is yet to be trained, the size cannot be known.
SIZED = "--gin.VOCAB_SIZE=300"


def configured(name, *arguments, run=()):
  parts = ["experiment.gin", "models/griffin.gin", "sizes/tiny.gin", "mesh/single.gin"]
  parts += ["kernels/auto.gin", "train/steps.gin", *run, f"data/{name}"]
  return experiment.build(experiment.load(parts, arguments))


def sized(name):
  return [SIZED] if name.endswith(OWN_TOKENIZER) else []


@pytest.mark.parametrize("name", FILES)
def test_training_and_heldout_text_differ_only_where_they_should(name):
  found = configured(name, "--gin.SEQUENCE_LENGTH=96", *sized(name))
  assert found.sequence_length == 96
  assert found.batch_size > 0
  parts = getattr(found.train_data, "components", [found.train_data])
  assert len(set(parts)) == len(parts)
  for part in [*parts, found.eval_data]:
    assert part.sequence_length == 96
    assert part.vocabulary == found.eval_data.vocabulary
  if name.startswith(("token_files", "heldout_files")):
    assert found.train_data.corpus.files != found.eval_data.corpus.files
    return
  assert all(part.split == "train" for part in parts)
  # What is held out is held out of what is trained on.
  assert found.eval_data.split in ("heldout", "validation")
  assert any(dataclasses.replace(found.eval_data, split="train") == part for part in parts)


@pytest.mark.parametrize("name", RECALL)
def test_rows_of_recall_tasks_hold_an_example_with_little_left_over(name):
  found = configured(name)
  assert found.train_data.whole_documents
  longest = max(
    len(e.tokens) for e in found.eval_data.corpus.drawn(found.train_data.vocabulary, "heldout")
  )
  assert 0.75 * found.sequence_length < longest <= found.sequence_length


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith("_bytes.gin") or n in RECALL])
def test_a_byte_tokenizer_has_the_size_that_models_are_told(name):
  found = configured(name)
  assert found.eval_data.vocabulary.size == found.model.vocab_size


def test_files_and_fields_are_set_by_macros():
  found = configured(
    "json_lines_bytes.gin", "--gin.JSON_LINES=['/a', '/b']", "--gin.JSON_FIELD=body"
  )
  assert (found.train_data.corpus.files, found.train_data.corpus.field) == (["/a", "/b"], "body")
  found = configured("text_files_bytes.gin", "--gin.TEXT_FILES=/x/*.md")
  assert found.eval_data.corpus.files == "/x/*.md"
  found = configured("python_sentencepiece.gin", "--gin.VOCABULARY_MODEL=/x.model", SIZED)
  assert found.train_data.vocabulary.path == "/x.model"


@pytest.mark.parametrize("name", FILES)
def test_a_text_keeps_rows_and_batch_of_a_file_before_it_and_examples_set_theirs(name, tmp_path):
  own = configured(name, *sized(name))
  (tmp_path / "run.gin").write_text("SEQUENCE_LENGTH = 96\nBATCH_SIZE = 3\n")
  after = configured(name, *sized(name), run=[tmp_path / "run.gin"])
  kept = (own.sequence_length, own.batch_size) if name in OF_EXAMPLES else (96, 3)
  assert (after.sequence_length, after.batch_size) == kept
  assert (own.sequence_length, own.batch_size) != (96, 3)
