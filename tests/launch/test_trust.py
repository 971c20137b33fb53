"""Opening a run that somebody sent runs nobody's code but this project's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch import (
  command,
  compare,
  convert,
  evaluate,
  experiment,
  gin_source,
  run_directory,
  train,
  trust_check,
)
from launch import trained as trained_lib
from launch.command import UserError
from launch.trust import NOBODY, Trust

ROOT = Path(trust_check.__file__).parents[1]
HEAD = """
from __gin__ import dynamic_registration
include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/single.gin'
include 'kernels/auto.gin'
include 'data/python_bytes.gin'
include 'train/adamw.gin'
"""
EVIL = """
from pathlib import Path
(Path(__file__).parent / "ran").write_text("")
import os
def schedule(): return lambda step: 0.0
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
  """A module whose import leaves a file."""
  folder = tmp_path / "modules"
  folder.mkdir()
  (folder / "evil_module.py").write_text(EVIL)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
  yield folder / "ran"
  sys.modules.pop("evil_module", None)


def sent(tmp_path, lines, head=HEAD):
  run = tmp_path / "sent"
  run.mkdir(exist_ok=True)
  (run / "config.gin").write_text(head + lines)
  return run


LINES = {
  "a module": "import evil_module\nfrom training import optimizer\noptimizer.AdamW.learning_rate = @evil_module.schedule()",
  "a module, imported alone": "import evil_module",
  "a module under one of our names": "import evil_module as hawk",
  "the standard library": "import os\nSEED = @os.getpid()",
  "builtins": "import builtins\nSEED = @builtins.exit()",
  "a command": "from launch import command\nSEED = @command.os.getpid()",
  "a command's main": "from launch import train\nSEED = @train.main()",
  "a module of a module": "from models import griffin\nSEED = @griffin.functools.os.getpid()",
  "a re-exported function": "from training import loop\nSEED = @loop.read_metrics()",
  "a re-exported class": "from training import loop\nSEED = @loop.Path()",
  "a function that writes": "from data import vocabularies\nSEED = @vocabularies.save()",
  "a class that writes": "from training import metrics\nSEED = @metrics.MetricsFile()",
  "a private name": "from models import backbone\nSEED = @backbone.__builtins__.exit()",
  "a special method": "from models import backbone\nSEED = @backbone.Backbone.__init__.__globals__()",
  "a package": "import data\nSEED = @data.preparation.prepare()",
  "gin itself": "import gin\nSEED = @gin.config.importlib.import_module()",
  "a benchmark": "from benchmarks import kernels\nSEED = @kernels.main()",
  "its parameter": "from launch import command\ncommand.run.main = 1",
  "in a list": "import os\nSAMPLES = [1, {'a': (@os.getpid(),)}]",
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES.keys())
def test_what_is_not_for_configurations_is_refused_unimported(tmp_path, evil, lines):
  run = sent(tmp_path, lines)
  with pytest.raises(UserError, match="--trust=") as error:
    trust_check.check(run / "config.gin", NOBODY)
  assert len(str(error.value)) < 500
  assert "\n" not in str(error.value)
  assert f"{run}/config.gin:" in str(error.value)
  assert not evil.exists()
  assert "evil_module" not in sys.modules


def commands(run, tmp_path):
  return {
    "evaluate": lambda *more: evaluate.main([f"--run_dir={run}", *more]),
    "convert": lambda *more: convert.main([str(run), str(tmp_path / "target"), *more]),
    "merge": lambda *more: convert.main([str(run), str(tmp_path / "target"), "--merge", *more]),
    "train": lambda *more: train.main([f"--run_dir={run}", *more]),
    "init_from": lambda *more: train.main([f"--init_from={run}", f"--run_dir={tmp_path}/n", *more]),
    "compare": lambda *more: compare.main([f"--output={run}", *more]),
    "loaded": lambda *more: trained_lib.load(
      run_directory.RunDirectory(run), "latest", trust=Trust.of([m[8:] for m in more])
    ),
  }


@pytest.mark.parametrize(
  "name", ["evaluate", "convert", "merge", "train", "init_from", "compare", "loaded"]
)
def test_every_command_that_opens_a_run_asks_for_trust(tmp_path, evil, name):
  run = sent(tmp_path, LINES["a module"])
  with pytest.raises(UserError, match=r"give --trust=evil_module \(or --trust=all\)"):
    commands(run, tmp_path)[name]()
  assert not evil.exists()
  # What is trusted is run; the run has no checkpoint, and is no comparison.
  with pytest.raises(Exception, match=r"."):
    commands(run, tmp_path)[name]("--trust=evil_module")
  assert evil.exists()


def test_generate_answers_in_one_line(tmp_path, evil, capsys, monkeypatch):
  from launch import generate

  run = sent(tmp_path, LINES["a module"])
  monkeypatch.setattr(sys, "argv", ["generate", f"--run_dir={run}", "--prompt=x"])
  with pytest.raises(SystemExit) as ended:
    command.run(generate.main)
  assert ended.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "--trust=evil_module" in line
  assert not evil.exists()


def test_modules_of_registered_tasks_count_where_rows_are_made(tmp_path, evil):
  lines = """
from data import corpora
CORPUS = 'evil_module'
corpora.RegisteredTask.module = %CORPUS
"""
  run = sent(tmp_path, lines)
  trust_check.check(run / "config.gin", NOBODY)  # to generate, no rows are made
  with pytest.raises(UserError, match="--trust=evil_module"):
    trust_check.check(run / "config.gin", NOBODY, makes_rows=True)
  trust_check.check(run / "config.gin", Trust.of(["other,evil_module"]), makes_rows=True)


def test_of_a_trusted_module_only_its_own_names_count(tmp_path, evil):
  run = sent(tmp_path, "import evil_module\nSEED = @evil_module.os.getpid()")
  with pytest.raises(UserError, match="not defined in evil_module"):
    trust_check.check(run / "config.gin", Trust.of(["evil_module"]))
  trust_check.check(run / "config.gin", Trust.of(["all"]))


def test_a_run_that_was_made_here_need_not_be_named_also_if_moved(tmp_path, evil):
  run = sent(tmp_path, LINES["a module"], head="# python -m launch.train x\n" + HEAD)
  trust_check.record(run / "config.gin")
  moved = run.rename(tmp_path / "moved") / "config.gin"
  trust_check.check(moved, NOBODY, makes_rows=True)
  moved.write_text(moved.read_text().replace("evil_module.schedule", "evil_module.os.getpid"))
  with pytest.raises(UserError, match="--trust"):
    trust_check.check(moved, NOBODY)


def test_training_notes_the_configuration_that_it_writes(tmp_path, evil):
  file = tmp_path / "own.gin"
  file.write_text(HEAD + LINES["a module"])
  config = experiment.load(file)
  run = run_directory.RunDirectory(tmp_path / "run")
  run.write_config(config, "python -m launch.train own.gin")
  trust_check.check(run.config_file, NOBODY, makes_rows=True)
  run.write_config(config, "python -m launch.convert", made_here=False)


def test_a_comparison_s_choices_are_looked_into(tmp_path, evil):
  evil_gin = tmp_path / "evil.gin"
  evil_gin.write_text("import evil_module\n")
  for choice in (str(evil_gin), "import evil_module\nX = 1", f"include '{evil_gin}'"):
    run = sent(
      tmp_path,
      f"from launch import comparison\ncomparison.Comparison.shared = [{choice!r}]",
      head="",
    )
    with pytest.raises(UserError, match="--trust"):
      trust_check.check(run / "config.gin", NOBODY, comparison=True)
  assert not evil.exists()


@pytest.mark.parametrize(
  "file",
  sorted(
    str(path.relative_to(ROOT / "gin"))
    for folder in ("runs", "compare")
    for path in (ROOT / "gin" / folder).rglob("*.gin")
  ),
)
def test_every_shipped_run_and_comparison_may_be_opened(file, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
  path = gin_source._find(file, None, None)
  trust_check.check(path, NOBODY, makes_rows=True, comparison="compare/" in file)
