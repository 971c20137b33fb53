"""Every gin file of the repository makes something that can be trained."""

from __future__ import annotations

import jax
import pytest

from launch import config, describe, experiment
from launch.gin_source import GIN_ROOT
from training import step as step_lib

FILES = sorted(str(path.relative_to(GIN_ROOT)) for path in GIN_ROOT.rglob("*.gin"))
RUNS = [file for file in FILES if file.startswith("runs/")]
# One of each folder: what a file is combined with, unless it is of that folder itself.
PARTS = {
  "models": "models/griffin.gin",
  "sizes": "sizes/tiny.gin",
  "mesh": "mesh/single.gin",
  "kernels": "kernels/auto.gin",
  "data": "data/python_bytes.gin",
  "train": "train/adamw.gin",
  "precision": "precision/float32.gin",
}
# Included by others, and nothing alone.
FRAGMENTS = {
  "models/backbone.gin": "models/griffin.gin",
  "data/text_dataset.gin": "data/python_bytes.gin",
  "data/recall.gin": "data/induction_heads.gin",
  # Of the vocabulary of what is trained on.
  "data/instructions.gin": "data/instructions_bytes.gin",
  "data/instructions_gemma_turns.gin": "data/instructions_bytes.gin",
}


def load(file):
  if file in RUNS:
    return experiment.load(GIN_ROOT / file)
  folder = file.partition("/")[0]
  parts = PARTS | ({folder: FRAGMENTS.get(file, file)} if folder in PARTS else {})
  return experiment.load(["experiment.gin", *parts.values()])


@pytest.mark.parametrize("file", FILES)
def test_file_is_read_built_and_shaped(file):
  loaded = load(file)
  built = experiment.build(loaded)
  if file in ("kernels/pallas_tpu.gin", "kernels/mosaic_gpu.gin"):
    # For hardware that is not here: it says so, and says what there is.
    with pytest.raises(ValueError, match="available"):
      describe.abstract_state(built)
    return
  state = describe.abstract_state(built)
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  # The appendix's networks for recall have about 250 thousand, all others millions.
  assert 2e5 < count < 3e5 if "recall" in file and "sizes" in file else count > 1e6


@pytest.mark.parametrize("file", RUNS)
def test_run_takes_a_step_without_warnings_of_its_own(file):
  loaded = load(file)
  # What one model has no use for is in the files that the models share; a run has no such line.
  assert not [warning for warning in loaded.warnings if warning.startswith(f"gin/{file}")]
  built = experiment.build(loaded)
  state, batch = describe.abstract_state(built), describe.abstract_batch(built)
  step = step_lib.make_train_step(built.model, built.optimizer.transformation(), built.options.step)
  after, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file", RUNS)
def test_saved_text_of_a_run_builds_the_same(file, tmp_path):
  loaded = load(file)
  for text in (loaded.text(), loaded.operative_text()):
    saved = tmp_path / "saved.gin"
    saved.write_text(text)
    again = experiment.load(saved)
    values = {key.name: repr(item.value) for key, item in loaded.operative.items()}
    assert {key.name: repr(item.value) for key, item in again.operative.items()} == values
    experiment.build(again)


def test_no_two_files_are_left_out():
  assert set(FRAGMENTS) | set(PARTS.values()) <= set(FILES)
  assert len(RUNS) >= 3


def test_rows_of_unequal_length_are_refused():
  with pytest.raises(config.ConfigError, match="training rows hold 512 tokens and the held-out"):
    experiment.build(
      experiment.load(RUNS[0], ["--gin.heldout/dataset.TextDataset.sequence_length=64"])
    )


def test_a_model_with_too_few_tokens_is_refused():
  built = experiment.build(experiment.load(RUNS[0], ["--gin.VOCAB_SIZE=200"]))
  with pytest.raises(config.ConfigError, match=r"has 259 ids.*set VOCAB_SIZE = 259"):
    built.check_vocabulary()
