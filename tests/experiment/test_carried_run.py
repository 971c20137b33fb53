"""Runs that carry states from batch to batch: resumed exactly, and refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from base.errors import UserError
from config.config import ConfigError
from data import packing, rows, tokenizers
from experiment import describe, experiment, running, trained
from launch import evaluate, train
from layers import initial_state
from parallel.tree_paths import by_path
from tests import small_run
from training.checkpoint import FOLDER, CheckpointError, orbax

GIN = Path(__file__).parents[2] / "gin"
CARRY = str(GIN / "train/carried_state.gin")
OPTION = "--gin.training.step.StepOptions.carry_state"
# The cosine's end, which else follows the number of steps of each life.
RATE = "\nfrom training import optimizer\noptimizer.warmup_cosine.steps = 6\n"


def start(run_dir: str, *arguments: str, files: tuple[str, ...] = ("run.gin", CARRY)) -> int:
  more = ["--gin.experiment.experiment.Experiment.samples=()", "--resume=force"]
  return train.main([*files, f"--run_dir={run_dir}", *more, *arguments])


def arrays(run_dir: str, step: int) -> dict[str, np.ndarray]:
  """All arrays of a checkpoint, by their names."""
  parts = orbax().load_checkpointables(Path(run_dir, FOLDER, str(step)).absolute())
  return {f"{name}.{key}": x for name in ("params", "rest") for key, x in flat(parts[name])}


def flat(tree, before=""):
  for key, value in tree.items():
    yield from (
      flat(value, f"{before}{key}.")
      if isinstance(value, dict)
      else [(before + key, np.asarray(value))]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run of six steps without a stop."""
  path = tmp_path_factory.mktemp("carried")
  small_run.write(path / "run.gin", more=RATE)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(path)
    assert start("whole") == 0
  return path


def test_a_run_that_goes_on_has_the_same_states_and_parameters(folder, monkeypatch):
  monkeypatch.chdir(folder)
  for steps in (3, 6):
    assert start("parts", f"--gin.STEPS={steps}") == 0
  found, expected = arrays("parts", 6), arrays("whole", 6)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, name)
  assert expected["rest.carried.position"].max() > 32  # a document that is longer than a row


def test_a_run_with_passed_states_goes_on_alike(folder, monkeypatch):
  monkeypatch.chdir(folder)
  Path("passed.gin").write_text("include 'run.gin'\ninclude 'train/passed_state.gin'\n")
  for run, lives in (("passed", (6,)), ("passed_parts", (3, 6))):
    for steps in lives:
      assert start(run, f"--gin.STEPS={steps}", files=("passed.gin",)) == 0
  found, expected = arrays("passed_parts", 6), arrays("passed", 6)
  assert found.keys() == expected.keys() == arrays("whole", 6).keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, name)


def test_what_cannot_go_on_is_refused_in_a_sentence(folder, monkeypatch):
  monkeypatch.chdir(folder)
  for argument, message in (
    (
      "--gin.BATCH_SIZE=8",
      r"carries the states of 4 rows, and a batch has 8. Set --gin.BATCH_SIZE=4.",
    ),
    (
      f"{OPTION}=False",
      rf"carries the states of 4 rows. Set {OPTION}=True or .*initial_state=passed, as",
    ),
    (
      "--gin.SEQUENCE_LENGTH=16",
      r"(?s)in the middle of documents.*training rows: .*start another.*--init_from=whole",
    ),
    ("--gin.SEED=5", r"(?s)would go on in others:\n  experiment.Experiment.seed: 0 -> 5"),
  ):
    with pytest.raises(UserError, match=message):
      start("whole", argument, "--gin.STEPS=8")


def load(folder, *more):
  files = [name for name in more if name.endswith(".gin")]
  arguments = [name for name in more if name not in files]
  return experiment.build(experiment.load([folder / "run.gin", CARRY, *files], arguments))


def test_evaluate_streams_documents_to_their_ends(folder, monkeypatch, capsys):
  """Documents of 100 tokens, in rows of 32 and all in one row."""
  monkeypatch.chdir(folder)
  assert evaluate.main(["--run_dir=whole", "--stream"]) == 0
  told = capsys.readouterr().out
  assert "documents to their ends, in rows of 32 tokens" in told
  assert "64-99" in told
  (file,) = Path("whole/evaluations").glob("6-*-32-stream.json")
  streamed = json.loads(file.read_text())
  # The run's own figure is of the same documents to the same ends.
  lines = map(json.loads, Path("whole/metrics.jsonl").read_text().splitlines())
  heldout = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
  assert streamed["loss"] == pytest.approx(heldout[-1], rel=1e-6)
  assert evaluate.main(["--run_dir=whole", "--length=20000"]) == 0
  (file,) = Path("whole/evaluations").glob("6-*-20000.json")
  whole = json.loads(file.read_text())
  assert (streamed["tokens"], streamed["bytes"]) == (whole["tokens"], whole["bytes"])
  assert streamed["loss"] == pytest.approx(whole["loss"], rel=1e-6)
  mine = [(bucket["start"], bucket["tokens"]) for bucket in streamed["by_position"]]
  assert mine == [(bucket["start"], bucket["tokens"]) for bucket in whole["by_position"]]
  for found, expected in zip(streamed["by_position"], whole["by_position"], strict=True):
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_models_and_texts_without_a_lane_are_refused(folder):
  with pytest.raises(
    ConfigError, match=r"SelfAttention, whose state grows .*train a model with lo"
  ):
    load(folder, str(GIN / "models/transformer.gin"))
  with pytest.raises(ConfigError, match="mixture cannot be read in lanes"):
    load(folder, str(GIN / "data/mixture_bytes.gin"))


def test_a_text_of_short_documents_is_told_once_to_carry_nothing(folder, tmp_path, capsys):
  built = load(folder)
  for length in (20, 50):
    directory = tmp_path / str(length)
    directory.mkdir()
    tokenizer = tokenizers.Bytes()
    packer = packing.Packer(tokenizer, 32, whole=True)
    writer = rows.RowWriter(directory, tokenizer, 32)
    for _ in range(5):
      _ = [writer.write(*block) for block in packer.add(np.full(length, 100), length)]
    writer.write(*packer.finish())
    writer.finish({}, packer.counts)
    running._tell_of_lanes(built, rows.RowFiles(directory))
    warning = (
      "warning: no document goes on in a second row of 32 tokens: carry_state carries nothing"
    )
    assert capsys.readouterr().err == ("" if length > 32 else f"{warning}\n")


def test_a_run_that_passes_no_states_is_told(folder, capsys):
  for after, told in (
    ("500", "none of 6 steps passes states: passed_share is 0.5, and"),
    ("0", ""),
  ):
    passed = experiment.load(
      [folder / "run.gin", str(GIN / "train/passed_state.gin")],
      [f"--gin.PASSED_AFTER={after}", "--gin.STEPS=6"],
    )
    running._tell_of_lanes(experiment.build(passed), None)
    said = capsys.readouterr().err
    assert told in said
    assert bool(told) == bool(said)


def test_evaluate_refuses_a_file_that_sets_nothing(folder, monkeypatch):
  monkeypatch.chdir(folder)
  Path("nothing.gin").write_text("# my text\n")
  with pytest.raises(UserError, match=r"nothing.gin sets nothing. Name a gin file"):
    evaluate.main(["--run_dir=whole", "--data=nothing.gin"])


def test_descriptions_count_the_states(folder):
  """Of two blocks: a window of keys and values, the last inputs of a convolution and a vector."""
  built = load(folder)
  window, heads_dim, width = 1024, 16, 32
  per_row = 4 * (2 * window * heads_dim + window + 3 * width + width + 2)
  length = 4  # of the ring, which all rows share
  carried = describe.device_bytes(describe.abstract_state(built).carried)
  assert carried == 4 * per_row + length
  line = f"states carried by 4 rows {describe.show_bytes(carried)}"
  assert line in " ".join(describe.description(built).split())


def test_trained_models_go_on_with_learned_states(folder, monkeypatch):
  """States that the first run lacks are left at zero, also beside adapters; others are loaded."""
  monkeypatch.chdir(folder)
  more = [str(GIN / "train/learned_state.gin")]
  assert start("learned", "--gin.STEPS=1", files=("run.gin", *more)) == 0
  adapters = str(GIN / "train/lora.gin")

  def taken(run: str, *files: str) -> tuple[set[str], set[str]]:
    """Paths of the parameters that a run starts with, and of those that it has."""
    built = experiment.build(
      experiment.load(
        [folder / "run.gin", *files],
        [f"--gin.experiment.experiment.Experiment.init_from='{run}'"],
      )
    )
    abstract = describe.abstract_state(built).params
    return set(by_path(trained.start(built, abstract))), set(by_path(abstract))

  states = {path for path in taken("learned", *more)[1] if initial_state.is_initial_state(path)}
  (state,) = states
  plain, _ = taken("whole")
  for files in (more, [*more, adapters]):
    found, wanted = taken("whole", *files)
    assert found == plain
    assert states < wanted
    assert taken("learned", *files)[0] == plain | states
  with pytest.raises(CheckpointError, match=f"has a parameter {state} that the model lacks"):
    taken("learned")
