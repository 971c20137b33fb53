"""Documents that are scored to their ends, in rows of any length, as each alone in one row."""

import jax
import numpy as np
import pytest

from data import packing, rows, tokenizers
from data.document_streams import DocumentStreams
from data.loader import batch_of_rows
from data.row_halves import RowHalf
from evaluation import held_out
from evaluation.perplexity import Score, Scorer
from models.backbone import Backbone
from models.griffin import griffin
from tests import small_models
from training import carried_state

LENGTH = 8
TOKENIZER = tokenizers.Bytes()
# Over several stretches, over a row's end, to a row's end, within a row; EOS included.
LENGTHS = (90, 5, 13, 4, 8, 3, 30, 40, 7, 2, 64)


@pytest.fixture(scope="module")
def documents():
  random = np.random.default_rng(0)
  return [random.integers(10, 250, length - 1) for length in LENGTHS]


@pytest.fixture(scope="module")
def text(documents, tmp_path_factory):
  directory = tmp_path_factory.mktemp("documents")
  packer = packing.Packer(TOKENIZER, LENGTH)
  writer = rows.RowWriter(directory, TOKENIZER, LENGTH)
  for document in documents:
    for block in packer.add(document, len(document)):
      writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({}, packer.counts)
  return rows.RowFiles(directory)


@pytest.fixture(scope="module")
def model():
  backbone = Backbone(vocab_size=TOKENIZER.size, width=16, depth=2)
  sizes = {"rnn_width": 16, "heads": 1, "window": 11, "gate_blocks": 2}
  return griffin(backbone, **sizes, pattern=("recurrent", "attention"))


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 34])
def test_each_document_is_read_once_from_its_start_to_its_end(text, documents, lanes):
  """Told apart by their tokens; what is scored lies at its place, after the token before it."""
  seen: list[list[tuple[int, int]]] = []
  streams = DocumentStreams(text, lanes)
  batches = list(streams)
  assert len(batches) == len(streams)
  for lane in range(lanes):
    for batch in batches:
      counted = batch["loss_weights"][lane] > 0
      for place, given, target in zip(
        *(batch[name][lane][counted] for name in ("places", "inputs", "targets")), strict=True
      ):
        if place == 0:
          seen.append([])
          assert given == TOKENIZER.bos_id
        else:
          assert given == seen[-1][-1]
        assert place == len(seen[-1])
        seen[-1].append(target)
  expected = [[*document.tolist(), TOKENIZER.eos_id] for document in documents]
  assert sorted(seen) == sorted(expected)
  assert sum(batch["row_bytes"].sum() for batch in batches) == text.text_bytes()


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_bytes_are_those_of_the_scored_tokens(text, lanes):
  """Of each batch by itself, so that some of the batches have right bits per byte too."""
  for batch in DocumentStreams(text, lanes):
    scored = batch["loss_weights"] > 0
    spelled = np.sum(scored & (batch["targets"] != TOKENIZER.eos_id), axis=1)
    # A row's bytes are shared by its tokens, of which its ends of documents have none.
    ends = np.sum(batch["targets"] == TOKENIZER.eos_id, axis=1)
    assert np.all(np.abs(batch["row_bytes"] - spelled) <= ends)


def test_the_score_is_that_of_documents_alone(text, documents, model):
  params = small_models.initialize(model)
  found = Scorer(model).stream(params, DocumentStreams(text, 3))
  size = max(LENGTHS)
  tokens, ids = np.zeros((len(LENGTHS), size), np.int64), np.zeros((len(LENGTHS), size), np.int64)
  for row, document in enumerate(documents):
    tokens[row, : LENGTHS[row]], ids[row, : LENGTHS[row]] = [*document, TOKENIZER.eos_id], 1
  alone = batch_of_rows(tokens, ids, bos_id=TOKENIZER.bos_id)
  expected: Score = Scorer(model)(params, [alone | {"row_bytes": np.array([text.text_bytes()])}])
  np.testing.assert_array_equal(found.counts, expected.counts)
  np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-5)
  assert found.bytes == expected.bytes


def test_a_second_evaluation_compiles_nothing(text, model, caplog):
  """Not for another scorer of an equal model either."""
  params = small_models.initialize(model)
  for _ in range(2):
    caplog.clear()
    with jax.log_compiles():
      Scorer(model).stream(params, DocumentStreams(text, 4))
    compiled = [line for line in caplog.messages if line.startswith("Compiling ")]
  assert not compiled


def test_rows_of_a_half_are_read_alone(text, model):
  """The rows before them are of the other half, or of another place of the text."""
  params, scorer = small_models.initialize(model), Scorer(model)
  for carried_rows, is_same in ((RowHalf(text, "test"), True), (text, False)):
    alone, carried = (
      held_out.score(scorer, params, carried_rows, 3, carry=carry)[0] for carry in (False, True)
    )
    assert (alone.losses.sum() == carried.losses.sum()) == is_same


def test_memory_does_not_depend_on_the_documents(text, model):
  """The state is of a fixed size, and all that goes from batch to batch."""
  shapes = jax.eval_shape(lambda: carried_state.initial_state(model, 3))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 3 * 16 * (2 * 11 + 5) + 3 * 13 + 1
  with pytest.raises(carried_state.CarryError, match="whose state grows with every token"):
    Scorer(small_models.build("transformer", depth=1)).stream({}, DocumentStreams(text, 3))
