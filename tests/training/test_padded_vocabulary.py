"""A checkpoint is read into a model whose embedding has other padding rows."""

import functools

import jax
import numpy as np
import optax
import pytest

from models.backbone import Backbone
from models.hawk import hawk
from training import checkpoint
from training import step as step_lib
from training.checkpoint import CheckpointError, Checkpoints
from training.optimizer import AdamW
from training.padded_vocabulary import VocabularyRows

IDS = 61
OPTIMIZER = AdamW(learning_rate=optax.constant_schedule(1e-3)).transformation()


def build(multiple: int, ids: int = IDS):
  """An untied model: two arrays have an entry for each id, along different dimensions."""
  backbone = Backbone(vocab_size=ids, vocab_multiple=multiple, width=16, depth=1)
  return hawk(backbone, rnn_width=16, gate_blocks=1).clone(tied=False)


@functools.partial(jax.jit, static_argnums=0)
def create(model):
  """The initial state, by one program: one after the other, its operations take half a minute."""
  return step_lib.initial_state(model, OPTIMIZER, step_lib.StepOptions(), 0)


def abstract(model):
  return checkpoint.abstract_like(jax.eval_shape(lambda: create(model)))


def filled(path, leaf):
  """Fills a matrix with ones, except for its padding."""
  one = np.array(leaf)
  if one.ndim == 2:
    cut({"".join(map(str, path)): one})["".join(map(str, path))][...] = 1
  return jax.numpy.asarray(one)


@pytest.fixture(scope="module", params=[1, 16, 32])
def saved(request, tmp_path_factory):
  """A run with one checkpoint, whose moments are filled."""
  state = create(build(request.param))
  adam = jax.tree_util.tree_map_with_path(filled, state.opt_state)
  run_dir = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpoints(run_dir)
  checkpoints.save(state._replace(opt_state=adam), {})
  checkpoints.close()
  return run_dir


def cut(tree):
  """Arrays without their padding."""

  def change(path, leaf):
    names = jax.tree_util.keystr(path)
    if "embedding'" in names:
      return leaf[:IDS]
    return leaf[:, :IDS] if "head" in names else leaf

  return jax.tree_util.tree_map_with_path(change, tree)


@pytest.mark.parametrize("multiple", [1, 16, 48])
def test_parameters_and_moments_of_ids_are_those_that_were_saved(saved, multiple):
  model = build(multiple)
  found = Checkpoints(saved).restore(abstract(model), VocabularyRows.of(model)).state
  expected = create(build(1))
  jax.tree.map(np.testing.assert_array_equal, cut(found.params), expected.params)
  moments = [leaf for leaf in jax.tree.leaves(cut(found.opt_state)) if leaf.ndim == 2]
  assert moments
  assert all(np.all(np.asarray(leaf) == 1) for leaf in moments)
  params, _ = checkpoint.load_parameters(
    saved, abstract(model).params, rows=VocabularyRows.of(model)
  )
  assert params["head"]["kernel"].shape == (16, model.padded_vocab_size)
  assert params["embedding"]["embedding"].shape == (model.padded_vocab_size, 16)
  jax.tree.map(np.testing.assert_array_equal, params, found.params)


def test_rows_of_ids_are_never_cut(saved):
  fewer = build(1, ids=IDS - 1)
  with pytest.raises(CheckpointError, match=r"more ids than the model's 60.*VOCAB_SIZE"):
    Checkpoints(saved).restore(abstract(fewer), VocabularyRows.of(fewer))


def test_another_vocabulary_is_still_another_model(saved):
  other = build(1, ids=65)
  with pytest.raises(CheckpointError, match=r"embedding has shape .*needs \(65, 16\)"):
    Checkpoints(saved).restore(abstract(other), VocabularyRows.of(other))
