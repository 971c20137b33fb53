"""What launch.compare tells without measuring: descriptions, mistakes, and a stop by Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import UserError
from config.place import ConfigError
from launch import compare

ROOT = Path(compare.__file__).parents[1]
INTERRUPTED = """
import dataclasses
import os
import shutil
import signal
import time


@dataclasses.dataclass(frozen=True)
class Interrupted:
  \"\"\"A part during which Ctrl-C is pressed.\"\"\"

  def results(self, models):
    return {"one": 1.0}

  def __call__(self, models, cached):
    cached("one", press)


def press():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(60)
"""
INTERRUPTED_PART = """
from __gin__ import dynamic_registration
from comparison import comparison
import interrupted_part

include 'tiny.gin'

PARTS = {'stop': @stop/comparison.OnUntrainedModels()}
stop/comparison.OnUntrainedModels:
  part = @interrupted_part.Interrupted()
  choices = ['size.gin']
"""


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["--only=scalling"], "unknown part: 'scalling'; did you mean scaling?"),
    (["--only=,"], "--only names no part. Choose from scaling, long_context, needle"),
    (
      ["--gin.BASELINE=MQA"],
      "part scaling: unknown model: 'MQA'. Models of this comparison: Griffin,",
    ),
    (
      ["--gin.CONTEXT_SIZE=big"],
      r"part long_context: unknown size: 'big'.* comparison: tiny\. .* with --gin\.CONTEXT_SIZE\.",
    ),
    (["--gin.SEEDS=()"], "seeds is empty"),
    (
      ["--gin.LOADED={'Griffin, tiny, seed 7': 'x'}"],
      "seed 7', not a run of this comparison; did you mean",
    ),
    (["--gin.LOADED={'Griffin, tiny, seed 1': 'nothing'}"], "nothing is not a run directory"),
    (["--gin.SHARED=['LENGTH']"], r"the shared choices.*LENGTH"),
    (["--gin.SHARED=['meshes/single.gin']"], r"no gin file 'meshes/single.gin'"),
    (["--gin.CONTEXT_LENGTHS=(48,)"], "rows of 48 tokens do not divide a step of 128"),
  ],
)
def test_mistakes_are_told_before_anything_is_trained(folder, tmp_path, arguments, told):
  output = tmp_path / "none"
  with pytest.raises((UserError, ConfigError), match=told):
    compare.main([str(folder / "tiny.gin"), f"--output={output}", *arguments])
  assert not output.exists()


def test_ctrl_c_in_a_measurement_says_how_to_continue(folder, tmp_path):
  (folder / "interrupted_part.py").write_text(INTERRUPTED)
  (folder / "interrupted.gin").write_text(INTERRUPTED_PART)
  done = subprocess.run(
    [sys.executable, "-m", "launch.compare", "interrupted.gin", f"--output={tmp_path / 'out'}"],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 130, done.stderr
  assert "interrupted in stop; the same command continues" in done.stderr


def test_an_output_without_a_comparison_is_told(tmp_path):
  with pytest.raises(UserError, match=r"nothing holds no comparison: .*name a gin file too"):
    compare.main([f"--output={tmp_path / 'nothing'}"])


def test_the_file_of_a_run_is_told_also_without_an_output():
  with pytest.raises(ConfigError, match=r"griffin_quickstart\.gin describes a run, not a"):
    compare.main(["gin/runs/griffin_quickstart.gin"])
  with pytest.raises(SystemExit):
    compare.main(["gin/compare/quick.gin"])  # only --output lacks


def test_a_description_of_recall_names_no_training_of_its_sizes(capsys):
  assert compare.main(["gin/compare/recall.gin", "--describe"]) == 0
  first, *_ = capsys.readouterr().out.splitlines()
  assert first.split() == ["size", "model", "parameters"]


def test_description_allocates_nothing(folder, capsys, tmp_path):
  assert compare.main([str(folder / "tiny.gin"), "--describe"]) == 0
  shown = capsys.readouterr().out
  assert "512" in shown  # tokens
  assert "scaling" in shown
