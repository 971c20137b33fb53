"""Opening a received run runs only this project's code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from base.errors import UserError
from config import source
from experiment import experiment, run_config, run_directory, running, trust_check
from experiment import trained as trained_lib
from experiment.trust import NOBODY, Trust
from launch import command, compare, convert, evaluate, train
from tests.experiment.received_configs import HEAD, INCLUDING, sent

LINES = {
  "a module": "import evil_module\nfrom training import optimizer\n"
  "optimizer.AdamW.learning_rate = @evil_module.schedule()",
  "a module, imported alone": "import evil_module",
  "a module under one of our names": "import evil_module as hawk",
  "the standard library": "import os\nSEED = @os.getpid()",
  "builtins": "import builtins\nSEED = @builtins.exit()",
  "a command": "from launch import command\nSEED = @command.os.getpid()",
  "a command's main": "from launch import train\nSEED = @train.main()",
  "a module of a module": "from models import griffin\nSEED = @griffin.functools.os.getpid()",
  "a re-exported function": "from training import loop\nSEED = @loop.read_metrics()",
  "a re-exported class": "from training import loop\nSEED = @loop.Path()",
  "a function that writes": "from data import tokenizers\nSEED = @tokenizers.save()",
  "a class that writes": "from training import metrics\nSEED = @metrics.MetricsFile()",
  "a private name": "from models import backbone\nSEED = @backbone.__builtins__.exit()",
  "a special method": "from models import backbone\n"
  "SEED = @backbone.Backbone.__init__.__globals__()",
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
TASKS = 'evil_module'
corpora.RegisteredTask.module = %TASKS
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


UNUSED = """
from comparison import comparison
comparison.Comparison.shared = ['import evil_module']
"""


@pytest.mark.parametrize("option", ["--run_dir={run}", "--init_from={run}"])
def test_what_is_made_of_a_received_run_is_not_the_user_s_own(tmp_path, evil, option, monkeypatch):
  """A string that a training does not parse is parsed as gin by a comparison."""
  run = sent(tmp_path, UNUSED)
  made = []
  monkeypatch.setattr(
    running, "train", lambda *_, made_here, **__: made.append(made_here) or sys.exit(7)
  )
  target = run if "run_dir" in option else tmp_path / "new"
  arguments = [option.format(run=run), f"--run_dir={target}", "--gin.STEPS=700", "--resume=force"]
  arguments = list(dict.fromkeys(arguments))
  for _ in range(2):
    with pytest.raises(SystemExit):
      train.main(arguments)
    trust_check.record(run / "config.gin")  # from now on it is
  assert made == [False, True]


def test_what_was_not_made_here_is_asked_about_again(tmp_path, evil):
  received = sent(tmp_path, UNUSED)
  config = experiment.load(received / "config.gin")
  run = run_directory.RunDirectory(tmp_path / "run")
  run.write_config(config, "x", made_here=False)
  assert not run_config.is_own(run)
  run.write_config(config, "x")
  assert run_config.is_own(run)


@pytest.mark.parametrize("where", ["first", "last"])
def test_what_a_received_configuration_includes_is_not_read(tmp_path, evil, monkeypatch, where):
  """The name is that of a run that was made here, seen from the working directory."""
  monkeypatch.chdir(tmp_path)
  own = tmp_path / "runs" / "mine"
  own.mkdir(parents=True)
  config = experiment.load("gin/runs/griffin_quickstart.gin")
  run_directory.RunDirectory(own).write_config(config, "x")
  received = tmp_path / "runs" / "evil"
  (received / "runs" / "mine").mkdir(parents=True)
  line = "include 'runs/mine/config.gin'\n"
  if where == "last":
    line = config.text() + line
  (received / "config.gin").write_text(line)
  inner = received / "runs" / "mine" / "config.gin"
  inner.write_text("import evil_module\n" + config.text())
  assert not trust_check.is_recorded(received / "config.gin")
  with pytest.raises(UserError, match=r"includes 'runs/mine/config.gin'.*--trust=all"):
    run_config.load(run_directory.RunDirectory(received), makes_rows=True)
  assert not evil.exists()
  trust_check.record(received / "config.gin")
  assert not trust_check.is_recorded(received / "config.gin")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_the_name_of_a_file_does_not_become_gin(tmp_path, evil, end):
  folder = tmp_path / f"a{end}import evil_module{end}#"
  folder.mkdir()
  (folder / "x.gin").write_text("SEED = 3\n")
  file = folder / "run.gin"
  file.write_text(INCLUDING + "include 'x.gin'\n")
  config = experiment.load(file)
  for text in (config.text(), config.operative_text()):
    assert "import evil_module" not in text.splitlines()
    assert [i.module for i in source.read_text(text).imports].count("evil_module") == 0
  run = run_directory.RunDirectory(folder)
  run.write_config(config, f"python -m launch.train {file}")
  experiment.build(run_config.load(run))
  assert not evil.exists()


ROWS = {
  "a folder of TFDS": "corpora.Tfds.data_dir = 'sent/tfds'",
  "a folder by macros": "A0 = '/tfds'\n"
  + "\n".join(f"A{n + 1} = %A{n}" for n in range(20))
  + "\ncorpora.Tfds.data_dir = %A20",
  "a folder in a scope": "heldout/corpora.Tfds.data_dir = 'sent/tfds'",
  "a folder in a name": "corpora.Tfds.dataset = 'x:1.0.0/data_dir=sent'",
  "a namespace": "corpora.Tfds.dataset = 'somebody:x:1.0.0'",
  "a module by macros": "A0 = 'evil_module'\n"
  + "\n".join(f"A{n + 1} = %A{n}" for n in range(20))
  + "\ncorpora.RegisteredTask.module = %A20",
}


@pytest.mark.parametrize("lines", ROWS.values(), ids=ROWS.keys())
def test_what_seqio_and_tfds_would_import_counts_where_rows_are_made(tmp_path, lines):
  run = sent(tmp_path, f"from data import corpora\n{lines}")
  with pytest.raises(UserError, match="--trust="):
    trust_check.check(run / "config.gin", NOBODY, makes_rows=True)
  trust_check.check(run / "config.gin", NOBODY)
  trust_check.check(run / "config.gin", Trust.of(["all"]), makes_rows=True)


@pytest.mark.parametrize(
  "lines",
  [
    "trackers.MLflow.uri = 'http://elsewhere'",
    "a/trackers.WandB.entity = %NAME\nNAME = 'somebody'",
    "trackers.Trackio.space_id = 'somebody/space'",
  ],
)
def test_a_received_run_sends_nothing_where_its_maker_wants(tmp_path, lines):
  run = sent(tmp_path, f"from training import trackers\n{lines}")
  with pytest.raises(UserError, match=r"sends metrics, samples and configuration .*--trust=all"):
    trust_check.check(run / "config.gin", NOBODY, trains=True)
  trust_check.check(run / "config.gin", NOBODY)
  trust_check.check(run / "config.gin", Trust.of(["all"]), trains=True)
  run = sent(tmp_path, "from training import trackers\ntrackers.MLflow.uri = None")
  trust_check.check(run / "config.gin", NOBODY, trains=True)


@pytest.mark.parametrize("option", ["--run_dir={run}", "--init_from={run}"])
def test_training_asks_before_it_sends(tmp_path, option, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run = sent(tmp_path, "from training import trackers\ntrackers.MLflow.uri = 'http://elsewhere'")
  arguments = [option.format(run=run)]
  if option.startswith("--init"):
    arguments.append("--run_dir=new")
  with pytest.raises(UserError, match="sends metrics"):
    train.main(arguments)


@pytest.mark.parametrize("name", ["c4/en:3.1.0", "wikipedia/20230601.en:1.0.0", "c4", "x:1.*.*"])
def test_a_data_set_of_tfds_s_own_folder_may_be_read(tmp_path, name):
  lines = f"from data import corpora\ncorpora.Tfds.dataset = {name!r}\ncorpora.Tfds.data_dir = None"
  trust_check.check(sent(tmp_path, lines) / "config.gin", NOBODY, makes_rows=True)


def test_without_a_home_a_run_is_made_and_told_not_to_be_noted(tmp_path, capsys, monkeypatch):
  def no_home(_):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_STATE_HOME", raising=False)
  monkeypatch.setattr(Path, "expanduser", no_home)
  run = sent(tmp_path, "")
  trust_check.record(run / "config.gin")
  (line,) = capsys.readouterr().err.splitlines()
  assert "--trust" in line
  assert "XDG_STATE_HOME" in line
  assert not trust_check.is_recorded(run / "config.gin")
