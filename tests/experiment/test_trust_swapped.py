"""If a file is replaced during the trust check, the checked text is what is loaded and recorded."""

from __future__ import annotations

import pytest

from base import small_files
from experiment import experiment, run_directory, trust_check
from experiment.trust import NOBODY
from launch import compare
from tests.experiment.received_configs import COMPARISON, HEAD, sent


@pytest.fixture
def swapped(monkeypatch):
  """Makes the file name a module right after the trust check."""
  judge = trust_check.check

  def check(file, *args, **options):
    judge(file, *args, **options)
    file.write_text("import evil_module\n" + file.read_text())

  monkeypatch.setattr(trust_check, "check", check)


def test_a_comparison_is_loaded_as_it_was_judged(tmp_path, evil, swapped):
  folder = sent(tmp_path, "", head=COMPARISON)
  assert compare.main(["--describe", f"--output={folder}"]) == 0
  assert not evil.exists()


def test_values_in_force_are_of_what_was_judged(tmp_path, evil, swapped):
  run = run_directory.RunDirectory(sent(tmp_path, "", head=HEAD))
  config = experiment.load(run.config_file)
  assert run.differences(config, NOBODY) == []
  assert not evil.exists()


def test_what_was_written_is_noted_and_not_what_came_in_its_place(tmp_path, evil, monkeypatch):
  run = run_directory.RunDirectory(sent(tmp_path, "", head=HEAD))
  config = experiment.load(run.config_file)
  write = small_files.replace

  def replace(file, text):
    write(file, text)
    if file == run.config_file:
      file.write_text("import evil_module\n" + file.read_text())

  monkeypatch.setattr(small_files, "replace", replace)
  run.write_config(config, "x")
  assert not trust_check.is_recorded(run.config_file)
