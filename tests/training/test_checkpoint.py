"""Checkpoints: damaged ones, those of other models, and the best of several."""

import gc
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.checkpoints import (
  abstract,
  assert_is,
  forged,
  make_state,
  nested_deeply,
  save,
  without_an_entry,
)
from training import checkpoint, checkpoint_identity, checksum
from training.checkpoint import CheckpointError, Checkpoints

# Orbax does not await the reads that were under way when one of them failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def flip_a_bit(file: Path) -> None:
  contents = bytearray(file.read_bytes())
  contents[len(contents) // 2] ^= 0x10
  file.write_bytes(bytes(contents))


def cut_in_half(file: Path) -> None:
  contents = file.read_bytes()
  file.write_bytes(contents[: len(contents) // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, Path.unlink])
def test_no_damage_to_any_file_goes_unnoticed(saved, tmp_path, damage):
  files = [p for p in (saved / "checkpoints" / "20").rglob("*") if p.is_file()]
  assert len(files) > 10
  passed_over = 0
  for number, file in enumerate(files):
    if damage is not Path.unlink and not file.stat().st_size:
      continue
    run_dir = tmp_path / str(number)
    shutil.copytree(saved, run_dir)
    damage(run_dir / file.relative_to(saved))
    checkpoints = Checkpoints(run_dir)
    found = checkpoints.restore(abstract())
    # What was damaged is either not needed, or found out and told.
    assert_is(found, 10 if found.passed_over else 20)
    if found.passed_over:
      passed_over += 1
      assert found.passed_over[0].startswith("checkpoint 20: ")
      assert (run_dir / "damaged_checkpoints" / "20").is_dir()
    # And the run can save the step again.
    checkpoints.save(make_state(20), {"data": {"batches": 20}})
    checkpoints.close()
    assert_is(Checkpoints(run_dir).restore(abstract()), 20)
  assert passed_over > 3


def test_a_folder_may_have_the_characters_of_a_pattern(tmp_path):
  run_dir = tmp_path / "runs [3]" / "a*b?"
  save(run_dir, {10: 1.0})
  assert_is(Checkpoints(run_dir).restore(abstract()), 10)


def test_where_nothing_can_be_read_the_error_says_why(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  for file in (tmp_path / "run" / "checkpoints").glob("*/params/_METADATA"):
    file.unlink()
  with pytest.raises(CheckpointError, match=r"no checkpoint .* can be read; checkpoint 20: .*10:"):
    Checkpoints(tmp_path / "run").restore(abstract())


def nested_less_deeply(file: Path) -> None:
  """Python's reader of JSON accepts this depth."""
  file.write_text("[" * 500 + "1" + "]" * 500)


@pytest.mark.parametrize("part", ["params", "rest"])
@pytest.mark.parametrize("damage", [without_an_entry, nested_deeply, nested_less_deeply])
def test_a_damaged_description_is_no_other_model(saved, tmp_path, part, damage):
  shutil.copytree(saved, tmp_path / "run")
  damage(tmp_path / "run" / "checkpoints" / "20" / part / "_METADATA")
  checkpoint.require_same_arrays(tmp_path / "run", abstract())
  found = Checkpoints(tmp_path / "run").restore(abstract())
  assert_is(found, 10)
  (told,) = found.passed_over
  assert f"checkpoint 20: {part}/_METADATA " in told
  assert len(told) < 500


def test_an_earlier_version_s_description_without_an_entry_is_no_other_model(saved, tmp_path):
  run_dir = forged(saved, tmp_path / "run", "descriptions", ...)
  without_an_entry(run_dir / "checkpoints" / "20" / "rest" / "_METADATA")
  found = Checkpoints(run_dir).restore(abstract())
  assert_is(found, 10)
  assert "describes 10 arrays, but 11 were saved" in found.passed_over[0]


def test_a_renamed_entry_is_no_other_model(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  file = tmp_path / "run" / "checkpoints" / "20" / "params" / "_METADATA"
  file.write_text(file.read_text().replace("kernel", "kernem"))
  found = Checkpoints(tmp_path / "run").restore(abstract())
  assert_is(found, 10)
  assert "the description of its parameters (in params/) cannot be" in found.passed_over[0]


def test_a_description_that_differs_from_what_was_saved_is_no_other_model(saved, tmp_path):
  run_dir = forged(saved, tmp_path / "run", "descriptions", {"params": 1, "rest": 1})
  found = Checkpoints(run_dir).restore(abstract())
  assert_is(found, 10)
  assert "params/_METADATA describes other arrays than were saved" in found.passed_over[0]


def test_a_lost_optimizer_state_is_no_import(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "20" / "rest")
  assert not checkpoint.is_parameters_alone(tmp_path / "run")
  with pytest.raises(CheckpointError, match=r"20: .*optimizer state \(in rest/\) cannot be"):
    Checkpoints(tmp_path / "run").restore(abstract())


@pytest.mark.usefixtures("quick_collections")
def test_reads_under_way_when_another_failed_print_nothing(saved, tmp_path, capfd):
  for number in range(4):
    run_dir = tmp_path / str(number)
    shutil.copytree(saved, run_dir)
    for file in (run_dir / "checkpoints" / "20").glob("*/d/*"):
      file.unlink()
    assert_is(Checkpoints(run_dir).restore(abstract()), 10)
    gc.collect()
  time.sleep(0.5)
  assert not capfd.readouterr().err


ODD = [None, "x", [], {}, -1, 2**80, 1e308, True, [[[]]], {"a": {"b": []}}, [1, "x"]]
FIELDS = ["checksums", "checksums.params", "checksums.rest", "position", "descriptions", "metrics"]


def restored(run_dir: Path) -> str:
  """Returns the messages when a run is restored."""
  try:
    return " ".join(Checkpoints(run_dir).restore(abstract()).passed_over)
  except CheckpointError as error:
    return f"error: {error}"


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_sealed_and_no_run_wrote_is_one_line_or_passed_over(saved, tmp_path, field):
  for number, value in enumerate([..., *ODD]):
    run_dir = forged(saved, tmp_path / str(number), field, value)
    told = restored(run_dir)
    assert "\n" not in told
    assert len(told) < 500
    if told.startswith("error: "):
      assert "checkpoint 20: " in told
      assert checkpoint.available_steps(run_dir) == [10, 20]
    if told.startswith("error: ") and field != "checksums.rest":
      with pytest.raises(CheckpointError, match="checkpoint 20"):
        checkpoint.load_parameters(run_dir, abstract().params)
    assert told or field in ("position", "descriptions", "metrics")
    checkpoint_identity.newest_identity(run_dir)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"c": jnp.zeros(3)}, r"has no parameter c \(3,\)"),
    ({"b": jnp.zeros(6)}, r"parameter b has shape \(5,\), the model needs \(6,\)"),
    ({"a": {}}, r"has a parameter a/kernel that the model lacks"),
  ],
)
def test_a_checkpoint_of_another_model_is_named_and_stays(saved, changes, message):
  with pytest.raises(CheckpointError, match=message):
    Checkpoints(saved).restore(abstract(**changes))
  assert checkpoint.available_steps(saved) == [10, 20]


def test_the_last_few_stay_and_the_best(tmp_path):
  save(tmp_path, {1: 0.9, 2: 0.3, 3: 0.5, 4: None, 5: 0.6}, keep=2)
  assert checkpoint.available_steps(tmp_path) == [2, 4, 5]
  params, step = checkpoint.load_parameters(tmp_path, abstract().params, "best")
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, params, make_state(2).params)
  assert checkpoint.load_parameters(tmp_path, abstract().params, 4)[1] == 4
  with pytest.raises(CheckpointError, match=r"no checkpoint 3\. .* a step of \[2, 4, 5\]"):
    checkpoint.load_parameters(tmp_path, abstract().params, 3)


def test_an_empty_folder_is_a_new_run(tmp_path):
  assert Checkpoints(tmp_path).restore(abstract()) is None
  with pytest.raises(CheckpointError, match="has no checkpoint yet"):
    checkpoint.load_parameters(tmp_path, abstract().params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_a_checksum_changes_with_every_element_and_with_their_order(dtype):
  x = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(dtype)
  (expected,) = checksum.checksums([jnp.asarray(x)])
  for index in np.ndindex(x.shape):
    changed = x.copy()
    changed[index] = 1 - changed[index]
    assert checksum.checksums([jnp.asarray(changed)]) != [expected]
  assert checksum.checksums([jnp.asarray(x[::-1])]) != [expected]


def test_what_is_sealed_is_what_was_sealed():
  sealed = checksum.seal({"position": {"data": 1.5}})
  assert checksum.unseal(sealed) == {"position": {"data": 1.5}}
  with pytest.raises(ValueError, match="differs from what was saved"):
    checksum.unseal({**sealed, "position": {"data": 1.25}})
  with pytest.raises(ValueError, match="cannot be read"):
    checksum.unseal(None)
