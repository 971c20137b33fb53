"""The lock of a run directory in a bucket."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from base import bucket_copies, paths
from base.errors import UserError
from conversion import target_folder
from experiment import directory_owner, lock_owner
from tests import bucket_servers


@pytest.fixture(params=["gs", "s3"])
def folder(request, monkeypatch):
  bucket_servers.use(monkeypatch)
  found = paths.absolute(f"{request.param}://{bucket_servers.BUCKET}/owned")
  yield found
  found.rmtree(missing_ok=True)


def test_one_of_several_gets_it(folder):
  results = []

  def take():
    try:
      results.append(directory_owner.take(folder))
    except UserError as error:
      results.append(str(error))

  threads = [threading.Thread(target=take) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  owners = [result for result in results if not isinstance(result, str)]
  assert len(owners) == 1
  assert all("is in use" in result for result in results if isinstance(result, str))
  owners[0].require()
  owners[0].release()
  assert not list(folder.rglob("*"))


def test_dead_owner_is_replaced(folder, monkeypatch):
  dead = dataclasses.replace(lock_owner.this_process(), pid=2**22 + 1, token="dead")
  lock = folder / directory_owner.LOCK_FILE
  lock.write_text(dead.as_json())
  (folder / f"{directory_owner.LOCK_FILE}.dead").write_text(dead.as_json())  # its heartbeat
  assert directory_owner.is_abandoned(folder)
  with directory_owner.owned(folder):
    assert directory_owner.holder(folder).token != "dead"
  assert not list(folder.rglob("*"))


def test_owner_on_another_host_lives_while_its_heartbeat_does(folder, monkeypatch):
  monkeypatch.setattr(directory_owner, "BEAT_SECONDS", 0.5)
  other = dataclasses.replace(lock_owner.this_process(), machine="elsewhere", token="other")
  (folder / directory_owner.LOCK_FILE).write_text(other.as_json())
  stopped = threading.Event()

  def beat():
    while not stopped.wait(0.3):
      directory_owner._refresh(folder / directory_owner.LOCK_FILE, other)

  thread = threading.Thread(target=beat)
  thread.start()
  said = []
  try:
    with pytest.raises(UserError, match="is in use: it belongs to process"):
      directory_owner.take(folder, said.append)
  finally:
    stopped.set()
    thread.join()
  assert "waiting" in said[0]
  monkeypatch.setattr(directory_owner, "DEAD_SECONDS", 1.0)
  directory_owner.take(folder, said.append).release()  # silent for long enough


def convert(folder, text):
  with target_folder.appearing(folder) as made:
    (made / "config.json").write_text(text)
    (made / "weights").write_text(text)


def test_of_two_conversions_into_a_bucket_one_is_refused(folder):
  with target_folder.appearing(folder) as made:
    (made / "config.json").write_text("first")
    with pytest.raises(UserError, match="is in use"):
      convert(folder, "second")
  assert [path.name for path in folder.rglob("*")] == ["config.json"]
  with pytest.raises(UserError, match="exists and is not empty"):
    convert(folder, "second")


def test_an_upload_that_fails_leaves_nothing_and_a_killed_one_is_done_again(folder, monkeypatch):
  put = bucket_copies.upload

  def fail(made, target, *, last):
    put(made, target, last=last, without=last)
    raise OSError("the network is gone")

  with monkeypatch.context() as patch:
    patch.setattr(bucket_copies, "upload", fail)
    with pytest.raises(OSError, match="is gone"):
      convert(folder, "first")
  assert not list(folder.rglob("*"))
  dead = dataclasses.replace(lock_owner.this_process(), pid=2**22 + 1, token="dead")
  (folder / directory_owner.LOCK_FILE).write_text(dead.as_json())
  (folder / "left").write_text("by a killed one")
  convert(folder, "second")
  assert [path.name for path in folder.rglob("*")] == ["config.json", "weights"]
  other = folder / "taken"
  (other / f"{directory_owner.LOCK_FILE}.dead").write_text(dead.as_json())  # before the lock
  convert(other, "third")


@pytest.mark.parametrize("name", ["br[1]ck", "st*r", "wh?t"])
def test_names_of_folders_are_no_patterns(folder, name):
  for place in (folder / name, folder / "br1ck", folder / "star", folder / "what"):
    (place / "a").write_text("a")
  assert list((folder / name).glob("*")) == [folder / name / "a"]
  (folder / name).rmtree()
  left = {str(path.relative_to(folder)) for path in folder.rglob("*")}
  assert left == {"br1ck/a", "star/a", "what/a"}
