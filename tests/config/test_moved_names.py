"""Gin files written for earlier versions: old paths of modules go on working."""

import pytest

from config import config as config_lib
from config import moved_names, source
from experiment.experiment import Experiment


@pytest.fixture(autouse=True)
def told_anew(monkeypatch):
  monkeypatch.setattr(config_lib, "_moved_names_told", False)


OLD = """
from __gin__ import dynamic_registration
from data import vocabularies
from launch import experiment
include 'runs/griffin_quickstart.gin'
VOCABULARY = @vocabularies.Bytes()
experiment.Experiment.batch_size = 3
"""


def test_old_paths_mean_the_new_modules(tmp_path, capsys):
  file = tmp_path / "old.gin"
  file.write_text(OLD)
  found = config_lib.load(file, Experiment)
  same = file.with_name("new.gin")
  same.write_text(OLD.replace("vocabularies", "tokenizers").replace("launch", "experiment"))
  told = capsys.readouterr().err
  assert found.operative_text().replace("old.gin", "new.gin") == (
    config_lib.load(same, Experiment).operative_text()
  )
  assert told.count("warning:") == 1
  assert "is called" in told
  assert "(and 1 more)" in told
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  "argument",
  [
    "--gin.launch.experiment.Experiment.batch_size=3",
    "--gin.VOCABULARY=@vocabularies.Bytes()",
    "--gin.experiment.Experiment.mesh=@layout.Parallelism()",
    "--gin.parallel.layout.Parallelism.zero=1",
  ],
)
def test_old_names_in_arguments(argument, capsys):
  config_lib.load("runs/griffin_quickstart.gin", Experiment, [argument])
  assert "still works" in capsys.readouterr().err


def test_a_whole_old_path_in_a_file():
  text = "import launch.experiment\nlaunch.experiment.Experiment.seed = 1\n"
  (statement,) = source.read_text(text).statements
  assert statement.selector == "experiment.experiment.Experiment"


def test_an_alias_is_left_alone():
  text = "from data import vocabularies as v\nX = @v.Bytes()\n"
  read = source.read_text(text)
  assert [item.module for item in read.imports] == ["data.tokenizers"]
  assert read.statements[0].value.name == "v.Bytes"


def test_every_new_name_exists():
  import importlib

  for new in moved_names._MODULES.values():
    importlib.import_module(new)
