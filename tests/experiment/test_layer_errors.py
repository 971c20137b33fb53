"""Errors of kernels name the argument by which a user chooses another kernel."""

import pytest

from config.config import ConfigError
from data.files import CorpusError
from experiment import experiment
from kernels import platform


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (
      ["--gin.RECURRENCE_KERNEL=pallas_tpu", "--gin.RNN_WIDTH=96"],
      r"multiple of 128, got 96; available on tpu: .*associative.*"
      r"\(to change: --gin\.RECURRENCE_KERNEL=\.\.\. \(now 'pallas_tpu'\)\)",
    ),
    (
      ["--gin.RECURRENCE_KERNEL=mosaic_gpu"],
      r"'mosaic_gpu' runs on gpu.*--gin\.RECURRENCE_KERNEL=",
    ),
    (["--gin.ATTENTION_KERNEL=cudnn"], r"'cudnn' runs on gpu.*--gin\.ATTENTION_KERNEL="),
  ],
)
def test_a_kernel_that_cannot_run_is_named_with_the_argument_that_sets_it(arguments, said):
  small = ["--gin.DEPTH=3", "--gin.WIDTH=96", "--gin.SEQUENCE_LENGTH=16", "--gin.BATCH_SIZE=1"]
  made = experiment.build(experiment.load(["runs/griffin_quickstart.gin"], [*small, *arguments]))
  # The check of a mesh, that of a step, and what a plan lowers say the same.
  with platform.targeting("tpu"), pytest.raises(ConfigError, match=said) as found:
    made.check_step(made.sharding_plan())
  assert "implementation='" not in str(found.value)


def test_widths_that_do_not_fit_the_kernels_train_by_default():
  small = ["--gin.DEPTH=1", "--gin.RNN_WIDTH=96", "--gin.WIDTH=96", "--gin.SEQUENCE_LENGTH=16"]
  made = experiment.build(experiment.load(["runs/hawk_quickstart.gin"], small))
  with platform.targeting("tpu"):
    made.check_step(made.sharding_plan())


@pytest.mark.parametrize("kind", ["tiktoken", "sentencepiece", "tokenizer"])
def test_a_missing_tokenizer_file_is_named_with_its_macro(kind, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files = ["runs/hawk_quickstart.gin", f"data/text_files_{kind}.gin"]
  for arguments in ([], ["--gin.VOCAB_SIZE=4096"]):  # found while it is built, and at the check
    with pytest.raises(ConfigError, match=r"does not exist.*--gin\.VOCABULARY_MODEL=") as found:
      experiment.build(experiment.load(files, arguments)).check_tokenizer()
    assert str(tmp_path) in str(found.value)


def test_names_of_columns_are_not_taken_for_parameters():
  experiment.build(experiment.load(["runs/hawk_quickstart.gin"], []))
  said = "a.parquet: no column 'text', only sequence_length, words. Set --gin.TEXT_COLUMN=..."
  with pytest.raises(CorpusError) as found, experiment.naming_flags():
    raise CorpusError(said)
  assert str(found.value) == said
  told = r"to change: --gin\.SEQUENCE_LENGTH"
  with pytest.raises(CorpusError, match=told), experiment.naming_flags():
    raise CorpusError("sequence_length=9 is too short")
