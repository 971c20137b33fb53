"""Gin files written for earlier versions: old module paths still work."""

import pytest

from config import config as config_lib
from config import moved_names, source
from experiment.experiment import Experiment
from layers import remat


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
  assert "was renamed" in told
  assert "(and 1 more)" in told
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  "argument",
  [
    "--gin.launch.experiment.Experiment.batch_size=3",
    "--gin.VOCABULARY=@vocabularies.Bytes()",
    "--gin.experiment.Experiment.mesh=@parallel.layout.Parallelism()",
    "--gin.step.Options.accumulate=2",
    "--gin.training.step.Options.accumulate=2",
    "--gin.step.Options.grad_accum_steps=2",
    "--gin.training.step.StepOptions.accumulate=2",
    "--gin.loop.Options.log_every=2",
    "--gin.training.loop.Options.log_every=2",
    "--gin.experiment.Experiment.options=@loop.Options()",
  ],
)
def test_old_names_in_arguments(argument, capsys):
  config_lib.load("runs/griffin_quickstart.gin", Experiment, [argument])
  assert "still works" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "meant"),
  [
    ("Options.log_every", r"; did you mean loop\.LoopOptions\?"),
    ("Options.z_loss", r"; did you mean step\.StepOptions\?"),
    ("LoopOptions.log_every", r"; did you mean loop\.LoopOptions\?"),
    ("Option.log_every", r"; did you mean loop\.LoopOptions\?"),
    ("Options.nonsense", r"; choose from loop\.LoopOptions, step\.StepOptions$"),
  ],
)
def test_a_class_without_its_module_is_suggested_by_its_present_name(name, meant):
  with pytest.raises(config_lib.ConfigError, match=f"imports '{name.partition('.')[0]}'{meant}"):
    config_lib.load("runs/griffin_quickstart.gin", Experiment, [f"--gin.{name}=2"])


def test_the_line_of_an_old_name_is_that_of_its_binding(tmp_path, capsys):
  file = tmp_path / "old.gin"
  text = (
    "from __gin__ import dynamic_registration\nfrom training import loop\n"
    "include 'runs/griffin_quickstart.gin'\nloop.LoopOptions.keep = 3\nloop.Options.log_every = 2\n"
  )
  file.write_text(text)
  config_lib.load(file, Experiment)
  assert f"{file}:5: loop.Options was renamed" in capsys.readouterr().err
  assert [place.line for _, _, place in source.read_text(OLD).moved] == [3, 4]


def test_a_whole_old_path_in_a_file():
  text = "import launch.experiment\nlaunch.experiment.Experiment.seed = 1\n"
  (statement,) = source.read_text(text).statements
  assert statement.selector == "experiment.experiment.Experiment"


def test_an_alias_is_left_alone():
  text = "from data import vocabularies as v\nX = @v.Bytes()\n"
  read = source.read_text(text)
  assert [item.module for item in read.imports] == ["data.tokenizers"]
  assert read.statements[0].value.name == "v.Bytes"


def test_an_old_parameter_in_files(tmp_path, capsys):
  file = tmp_path / "old.gin"
  for line in ("from training import step\nstep", "import training.step\ntraining.step"):
    text = f"{OLD}{line}.Options.accumulate = 2\n"
    file.write_text(text.replace("batch_size = 3", "batch_size = 4"))
    found = config_lib.load(file, Experiment)
    assert "\nstep.StepOptions.grad_accum_steps = 2" in found.operative_text()
    assert "accumulate" not in found.text()
  assert capsys.readouterr().err.count("warning:") == 1


@pytest.mark.parametrize("text", ["mixers", "'mixers'", '"mixers"'])
def test_an_old_value_in_arguments(text, capsys):
  argument = f"--gin.backbone.Backbone.remat={text}"
  found = config_lib.load("runs/griffin_quickstart.gin", Experiment, [argument])
  assert "backbone.Backbone.remat = 'save_mixer_outputs'" in found.operative_text()
  told = capsys.readouterr().err
  assert "remat='mixers' was renamed to remat='save_mixer_outputs'; the old name still" in told


def test_old_classes_in_files(tmp_path, capsys):
  file = tmp_path / "old.gin"
  lines = "from training import loop\nfrom training import step as s\n"
  lines += "loop.Options:\n  log_every = 3\n  step = @x/s.Options()\nx/s.Options.z_loss = 0.5\n"
  file.write_text(OLD + lines)
  found = config_lib.load(file, Experiment)
  assert "\nloop.LoopOptions.log_every = 3" in found.text()
  assert "\nloop.LoopOptions.step = @x/step.StepOptions()" in found.text()
  assert "\nx/step.StepOptions.z_loss = 0.5" in found.text()
  assert capsys.readouterr().err.count("warning:") == 1


def test_old_classes_of_comparisons():
  text = (
    "from launch import comparison\nX = @y/comparison.Trained()\ny/comparison.Measured.part = 1"
  )
  value, binding = source.read_text(text).statements
  assert value.value.name == "comparison.OnTrainedModels"
  assert binding.selector == "comparison.OnUntrainedModels"


def test_classes_of_the_same_name_in_other_modules_are_left_alone():
  text = "from mine import step\nfrom mine import loop as comparison\n"
  text += "step.Options.x = 1\ncomparison.Options.x = 1\ncomparison.Trained.x = 1\n"
  read = source.read_text(text)
  assert [item.selector for item in read.statements] == [
    "step.Options",
    "comparison.Options",
    "comparison.Trained",
  ]
  assert not read.moved


def test_a_text_read_as_it_is_written_keeps_old_names():
  text = "from training import step\nstep.Options.accumulate = 2\n"
  (found,) = source.read_alone(text, as_written=True).statements
  assert (found.selector, found.parameter) == ("step.Options", "accumulate")


def test_an_old_value_in_files(tmp_path, capsys):
  file = tmp_path / "old.gin"
  file.write_text(f"{OLD}from models import backbone\nbackbone.Backbone.remat = 'products'\n")
  found = config_lib.load(file, Experiment)
  assert "backbone.Backbone.remat = 'save_dots'" in found.text()
  assert capsys.readouterr().err.count("warning:") == 1


def test_old_values_are_those_that_models_built_in_python_take():
  (names,) = moved_names._VALUES.values()
  assert names == remat.OLD_NAMES
  assert set(names.values()) < set(remat.POLICIES)
  for old, new in names.items():
    with pytest.warns(FutureWarning, match=f"'{old}' is called '{new}' now"):
      assert remat.policy(old) is remat.policy(new)


def test_an_alias_has_the_parameters_of_its_module():
  text = "from training import step as s\nfrom x import step\n{}.Options.accumulate = 2\n"
  (found,) = source.read_text(text.format("s")).statements
  assert (found.selector, found.parameter) == ("s.StepOptions", "grad_accum_steps")
  (found,) = source.read_text(text.format("step")).statements
  assert found.parameter == "accumulate"  # of another module called step


def test_results_are_found_by_their_first_names():
  assert moved_names.first_form("step.StepOptions.grad_accum_steps") == "step.Options.accumulate"
  assert moved_names.first_form("step.StepOptions.z_loss") == "step.Options.z_loss"
  assert moved_names.first_form("@loop.LoopOptions()") == "@loop.Options()"
  assert moved_names.first_form("'save_mixer_outputs'") == "'mixers'"
  assert moved_names.first_form("@tokenizers.Bytes()") == "@vocabularies.Bytes()"


def test_every_new_name_exists():
  import importlib
  import inspect

  for new in moved_names._MODULES.values():
    importlib.import_module(new)
  for old, new in moved_names._CLASSES.items():
    assert hasattr(importlib.import_module(old.rpartition(".")[0]), new)
  for old, new in moved_names._PARAMETERS.items():
    module, name = old.rpartition(".")[0].rsplit(".", 1)
    assert new in inspect.signature(getattr(importlib.import_module(module), name)).parameters
