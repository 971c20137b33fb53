"""Temporary folders of killed processes are removed by the next one."""

import os
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
