"""Reads of checkpoints that fail for a while, or are refused: no damage."""

import errno
import logging

import pytest

from tests.training.checkpoints import (
  abstract,
  assert_is,
)
from training import checkpoint, reading
from training.checkpoint import CheckpointError, Checkpoints

# Orbax does not await the reads that were under way when one of them failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
