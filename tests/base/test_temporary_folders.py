"""Temporary folders of killed processes are removed by the next one."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from base import temporary_folders

ROOT = Path(__file__).parents[2]
MAKE = """
import sys, time
from base import temporary_folders
folder = temporary_folders.make("walk-")
(folder / "large").write_text("text")
print(folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  return tmp_path


def test_a_folder_is_empty_and_removed_at_its_end(temporary):
  with temporary_folders.made("walk-") as folder:
    assert folder.is_dir()
    assert not list(folder.iterdir())
    (folder / "file").write_text("text")
    with temporary_folders.made("walk-") as other:
      assert other != folder
    assert (folder / "file").exists()
  assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_kept(temporary):
  started = [
    subprocess.Popen([sys.executable, "-c", MAKE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  folders = [Path(process.stdout.readline().strip()) for process in started]
  try:
    (temporary / "walk-of-another-program").mkdir()
    os.kill(started[0].pid, signal.SIGKILL)
    started[0].wait()
    assert folders[0].exists()
    with temporary_folders.made("walk-"):
      assert not folders[0].parent.exists()
      assert (folders[1] / "large").exists()
      assert (temporary / "walk-of-another-program").exists()
  finally:
    for process in started:
      process.kill()
      process.wait()
      process.stdout.close()


def test_what_a_killed_removal_left_is_removed_by_the_next_one(temporary, monkeypatch):
  folder = temporary_folders.make("walk-")
  (folder / "large").write_text("text")

  def killed(path, *_, **__):
    # As the system lists it, a lock may come before the files.
    (path / "lock").unlink(missing_ok=True)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      temporary_folders.remove(folder)
  os.close(temporary_folders._held.pop(folder.parent))  # as its end does
  with temporary_folders.made("walk-") as other:
    assert list(temporary.iterdir()) == [other.parent]


@pytest.mark.parametrize("host", ["another", "one-more", "on"])
def test_folders_of_other_hosts_stay(temporary, monkeypatch, host):
  """A lock of another host is not seen on every shared file system."""

  def on(name):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", name, "", "", "")))

  on(host)
  folder = temporary_folders.make("walk-")
  os.close(temporary_folders._held.pop(folder.parent))
  on("one")
  with temporary_folders.made("walk-"):
    assert folder.exists()
  on(host)
  with temporary_folders.made("walk-"):
    assert not folder.exists()


def test_folders_that_hold_other_files_stay(temporary):
  folder = temporary_folders.make("walk-").parent
  os.close(temporary_folders._held.pop(folder))
  (folder / "of-another-program").write_text("text")
  with temporary_folders.made("walk-"):
    assert (folder / "of-another-program").exists()
  assert folder.exists()
