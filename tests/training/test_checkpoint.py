"""Checkpoints: damaged ones, those of other models, and the best of several."""

import errno
import gc
import json
import logging
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training import checkpoint, checkpoint_identity, checksum, reading
from training.checkpoint import CheckpointError, Checkpoints
from training.step import SpikeDetector, TrainState

# Orbax does not await the reads that were under way when one of them failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step: int, **changes) -> TrainState:
  """A train state whose every array depends on the step."""
  params = {
    "a": {"kernel": jnp.arange(4096.0).reshape(64, 64) + step},
    "b": jnp.arange(5, dtype=jnp.bfloat16) - step,
    **changes,
  }
  number = jnp.int32(step)
  return TrainState(
    step=number,
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    spike_detector=SpikeDetector(jnp.full(4, step, jnp.float32), number, number, number),
    rng=jax.random.key_data(jax.random.key(step)),
  )


def abstract(**changes) -> TrainState:
  return checkpoint.abstract_like(jax.eval_shape(lambda: make_state(0, **changes)))


def save(run_dir: Path, losses: dict[int, float | None], keep: int = 3) -> None:
  checkpoints = Checkpoints(run_dir, keep=keep)
  for step, loss in losses.items():
    checkpoints.save(make_state(step), {"data": {"batches": step}}, loss)
  checkpoints.close()


def assert_is(found: checkpoint.Restored, step: int) -> None:
  assert found.step == step
  assert found.metadata == {"data": {"batches": step}}
  jax.tree.map(np.testing.assert_array_equal, found.state, make_state(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with checkpoints 10 and 20."""
  run_dir = tmp_path_factory.mktemp("saved")
  save(run_dir, {10: 0.5, 20: 0.4})
  return run_dir


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


def test_where_nothing_can_be_read_the_error_says_why(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  for file in (tmp_path / "run" / "checkpoints").glob("*/params/_METADATA"):
    file.unlink()
  with pytest.raises(CheckpointError, match=r"no checkpoint .* can be read; checkpoint 20: .*10:"):
    Checkpoints(tmp_path / "run").restore(abstract())


def failing(monkeypatch, error: Exception, times: int = 10**9, log: str = ""):
  """Makes the reading of arrays fail so many times."""
  ocp = checkpoint.orbax()
  read, left = ocp.load_checkpointables, [times]

  def load(*args, **kwargs):
    left[0] -= 1
    if left[0] < 0:
      return read(*args, **kwargs)
    if log:
      logging.getLogger("absl").error(log)
    raise ValueError("Orbax wraps it") from error

  monkeypatch.setattr(ocp, "load_checkpointables", load)
  monkeypatch.setattr(reading, "_PAUSE_SECONDS", 0)


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EIO, "Input/output error"),
    MemoryError("no memory"),
    ValueError('UNAVAILABLE: Error reading "x": Input/output error [source locations]'),
  ],
)
def test_what_passes_is_tried_again_and_a_healthy_checkpoint_stays(saved, monkeypatch, error):
  failing(monkeypatch, error, times=2)
  found = Checkpoints(saved).restore(abstract())
  assert_is(found, 20)
  assert not found.passed_over
  failing(monkeypatch, error)
  with pytest.raises(CheckpointError, match=r"checkpoint 20 could not be read .*left as it is"):
    Checkpoints(saved).restore(abstract())
  assert checkpoint.available_steps(saved) == [10, 20]


def failing_descriptions(monkeypatch, file: str, times: int = 10**9):
  """Makes the reading of a small file of checkpoint 20 fail so many times, as on a faulty disk."""
  from orbax.checkpoint._src.path import async_path

  left = [times]

  def wrapped(read):
    async def fails(path, *args, **kwargs):
      if str(path).endswith(f"/20/{file}"):
        left[0] -= 1
        if left[0] >= 0:
          raise OSError(errno.EIO, "Input/output error", str(path))
      return await read(path, *args, **kwargs)

    return fails

  for name in ("read_text", "read_bytes"):
    monkeypatch.setattr(async_path, name, wrapped(getattr(async_path, name)))
  monkeypatch.setattr(reading, "_PAUSE_SECONDS", 0)
  return left


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "params/_METADATA", "rest/_METADATA"])
def test_a_description_that_cannot_be_read_for_a_while_is_no_damage(saved, monkeypatch, file):
  """Orbax itself catches the error of the first, logs it and returns nothing."""
  left = failing_descriptions(monkeypatch, file, times=2)
  found = Checkpoints(saved).restore(abstract())
  assert left[0] < 0
  assert_is(found, 20)
  assert not found.passed_over
  failing_descriptions(monkeypatch, file)
  with pytest.raises(
    CheckpointError, match=r"checkpoint 20 could not .* Input/output error"
  ) as told:
    Checkpoints(saved).restore(abstract())
  assert "left as it is" in str(told.value)
  assert len(str(told.value)) < 500
  assert checkpoint.available_steps(saved) == [10, 20]


def edit(file: Path, change) -> None:
  content = json.loads(file.read_bytes())
  change(content)
  file.write_text(json.dumps(content))


def without_an_entry(file: Path) -> None:
  def change(content):
    del content["tree_metadata"][sorted(content["tree_metadata"])[-1]]

  edit(file, change)


def nested_deeply(file: Path) -> None:
  file.write_text('{"a":' * 2000 + "1" + "}" * 2000)


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


METRICS_DAMAGE = {
  "emptied": lambda file: file.write_bytes(b""),
  "no JSON": lambda file: file.write_bytes(b"{"),
  "another number": lambda file: file.write_text('{"heldout_loss": 0.9}'),
  "another type": lambda file: file.write_text('{"heldout_loss": [1]}'),
  "an empty object": lambda file: file.write_text("{}"),
  "nested": nested_deeply,
  "no object": lambda file: file.write_text("[]"),
  "deleted": Path.unlink,
  "a folder": lambda file: (file.unlink(), file.mkdir()),
  "folder deleted": lambda file: shutil.rmtree(file.parent),
  "folder is a file": lambda file: (shutil.rmtree(file.parent), file.parent.write_text("")),
}


@pytest.fixture(scope="module")
def saved_best(tmp_path_factory):
  """A run with checkpoints 10, the best, and 20, and a log of their losses."""
  run_dir = tmp_path_factory.mktemp("best")
  save(run_dir, {10: 0.2, 20: 0.4}, keep=1)
  lines = ({"step": 10, "heldout_loss": 0.2}, {"step": 20, "heldout_loss": 0.4})
  (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return run_dir


@pytest.mark.parametrize("damage", METRICS_DAMAGE)
def test_damaged_metrics_do_not_change_which_is_best(saved_best, tmp_path, capsys, damage):
  run_dir = tmp_path / "run"
  shutil.copytree(saved_best, run_dir)
  METRICS_DAMAGE[damage](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  assert checkpoint.load_parameters(run_dir, abstract().params, "best")[1] == 10
  assert not capsys.readouterr().err
  # A run that goes on restores the file, and keeps the checkpoint.
  save(run_dir, {30: 0.5}, keep=1)
  assert checkpoint.available_steps(run_dir) == [10, 30]
  (told,) = capsys.readouterr().err.splitlines()
  assert told.endswith("checkpoints/10/metrics/metrics was damaged; it is restored")
  kept = json.loads((run_dir / "checkpoints" / "10" / "metrics" / "metrics").read_text())
  assert kept == {"heldout_loss": 0.2}
  save(run_dir, {40: 0.1}, keep=1)
  assert checkpoint.available_steps(run_dir) == [40]
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  "damage", ["emptied", "nested", "another type", "an empty object", "a folder", "folder is a file"]
)
@pytest.mark.parametrize("has_log", [True, False])
def test_an_earlier_version_s_metrics_are_restored_from_the_log_or_told(
  saved_best, tmp_path, capsys, damage, has_log
):
  run_dir = tmp_path / "run"
  shutil.copytree(saved_best, run_dir)
  for step in (10, 20):
    edit_sealed(run_dir / "checkpoints" / str(step), lambda sealed: sealed.pop("metrics"))
  if not has_log:
    (run_dir / "metrics.jsonl").unlink()
  METRICS_DAMAGE[damage](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  best = checkpoint.load_parameters(run_dir, abstract().params, "best")[1]
  told = capsys.readouterr().err.splitlines()
  if has_log:
    assert (best, told) == (10, [])
  else:
    assert best == 20
    (line,) = told
    assert "the held-out loss of checkpoint 10 is lost (" in line
    assert "10/metrics/metrics cannot be read)" in line
  for step in (30, 40):
    save(run_dir, {step: 0.5}, keep=1)
    # It may be the best.
    assert 10 in checkpoint.available_steps(run_dir)
  assert len(capsys.readouterr().err.splitlines()) == (1 if has_log else 2)


def test_an_earlier_version_s_number_is_compared_with_the_sealed_evaluation(tmp_path, capsys):
  run_dir = tmp_path / "run"
  save(run_dir, {10: 0.2, 20: 0.4}, keep=1)

  def change(sealed):
    del sealed["metrics"]
    sealed["position"]["heldout"] = {"heldout_loss": 0.2}

  edit_sealed(run_dir / "checkpoints" / "10", change)
  METRICS_DAMAGE["another number"](run_dir / "checkpoints" / "10" / "metrics" / "metrics")
  assert checkpoint.load_parameters(run_dir, abstract().params, "best")[1] == 10
  save(run_dir, {30: 0.5}, keep=1)
  assert checkpoint.available_steps(run_dir) == [10, 30]
  assert "metrics was damaged; it is restored" in capsys.readouterr().err


def test_metrics_where_none_were_saved_are_set_aside(tmp_path, capsys):
  save(tmp_path, {10: None, 20: 0.4}, keep=3)
  file = tmp_path / "checkpoints" / "10" / "metrics" / "metrics"
  file.parent.mkdir()
  file.write_text("{")
  save(tmp_path, {30: 0.5}, keep=3)
  assert checkpoint.available_steps(tmp_path) == [10, 20, 30]
  assert (tmp_path / "damaged_checkpoints" / "10_metrics").read_text() == "{"
  assert len(capsys.readouterr().err.splitlines()) == 1
  save(tmp_path, {40: 0.5}, keep=3)
  assert not capsys.readouterr().err


ODD = [None, "x", [], {}, -1, 2**80, 1e308, True, [[[]]], {"a": {"b": []}}, [1, "x"]]
FIELDS = ["checksums", "checksums.params", "checksums.rest", "position", "descriptions", "metrics"]


def edit_sealed(folder: Path, change) -> None:
  """Changes the metadata of a checkpoint, with a right checksum."""

  def edited(content):
    sealed = checksum.unseal(content["custom_metadata"])
    change(sealed)
    content["custom_metadata"] = checksum.seal(sealed)

  edit(folder / "_CHECKPOINT_METADATA", edited)


def forged(saved: Path, run_dir: Path, field: str, value) -> Path:
  """Copies a run and changes the metadata of its newest checkpoint, with a right checksum."""
  shutil.copytree(saved, run_dir)
  step = max(checkpoint.available_steps(run_dir))

  def change(sealed):
    *parents, last = field.split(".")
    for key in parents:
      sealed = sealed[key]
    if value is ...:
      del sealed[last]
    else:
      sealed[last] = value

  edit_sealed(run_dir / "checkpoints" / str(step), change)
  return run_dir


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
  "error",
  [
    RuntimeError("INTERNAL: the device is lost"),
    OSError(errno.EREMOTEIO, "Remote I/O error"),
    AssertionError("of the program"),
  ],
)
def test_what_says_nothing_of_the_files_sets_no_checkpoint_aside(saved, monkeypatch, error):
  failing(monkeypatch, error)
  with pytest.raises(CheckpointError, match="left as it is"):
    Checkpoints(saved).restore(abstract())
  assert checkpoint.available_steps(saved) == [10, 20]


@pytest.mark.parametrize(
  "error",
  [
    ImportError("No module named 'aiofiles'"),
    PermissionError(errno.EACCES, "Permission denied"),
    ValueError("PERMISSION_DENIED: cannot open"),
    NotImplementedError("not in this version"),
  ],
)
def test_a_refusal_is_no_damage_and_what_was_logged_is_told(saved, monkeypatch, capfd, error):
  failing(monkeypatch, error, log="the reader is of another version")
  with pytest.raises(CheckpointError, match="Orbax logged: the reader is of another") as raised:
    Checkpoints(saved).restore(abstract())
  assert str(error) in str(raised.value)
  with pytest.raises(CheckpointError, match="could not be read"):
    checkpoint.load_parameters(saved, abstract().params)
  assert checkpoint.available_steps(saved) == [10, 20]
  assert "another version" not in capfd.readouterr().err


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
