"""Malformed gin files and arguments: each is one line of error, or is read as intended."""

import subprocess
import sys
from pathlib import Path

import pytest

from config import source
from config.place import ConfigError
from launch import train

ROOT = Path(__file__).parents[2]
GOOD = "include 'runs/hawk_quickstart.gin'\n"


def refused(file: Path | str, *arguments: str) -> str:
  """The message for a gin file that cannot be used."""
  with pytest.raises(ConfigError) as error:
    train.main([str(file), "--print_config", *arguments])
  message = str(error.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (GOOD.encode() + b"# caf\xe9\nSTEPS = 3\n", "odd.gin:2: the file is not UTF-8"),
    (GOOD.encode("utf-16"), "is not UTF-8"),
    (f"{GOOD}STEPS = {'[' * 5000}{']' * 5000}\n".encode(), "nested"),
    (f"{GOOD}STEPS = {'(' * 60}1{',)' * 60}\n".encode(), "nested more than 50 deep"),
    (f"{GOOD}LEARNING_RATE = 1e400\n".encode(), "odd.gin:2: the number inf is not finite"),
    (f"{GOOD}SEED = {10**30}\n".encode(), "a number has 100 bits; at most 64 are allowed"),
    (f"{GOOD}SEED = {'9' * 10_000}\n".encode(), "odd.gin:2"),
    (GOOD.encode() + b"ST\0EPS = 3\n", "odd.gin"),
    (GOOD.encode() + b"STEPS = {[1]: 2}\n", "odd.gin"),
    (b"", "is not a complete run"),
    (b"\n \n# nothing\n", "is not a complete run"),
  ],
)
def test_an_odd_file_is_refused_in_a_line(tmp_path, content, says):
  file = tmp_path / "odd.gin"
  file.write_bytes(content)
  assert says in refused(file)


@pytest.mark.parametrize(
  "content",
  [
    b"\xef\xbb\xbf" + GOOD.encode() + b"STEPS = 77\n",
    GOOD.encode().replace(b"\n", b"\r\n") + b"STEPS = 77\r\n",
  ],
)
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path, content, capsys):
  file = tmp_path / "odd.gin"
  file.write_bytes(content)
  assert train.main([str(file), "--print_config"]) == 0
  assert "STEPS = 77" in capsys.readouterr().out


def test_a_thousand_includes_are_refused(tmp_path):
  for number in range(1000):
    (tmp_path / f"{number}.gin").write_text(f"include '{number + 1}.gin'\n")
  (tmp_path / "1000.gin").write_text(GOOD)
  assert "a chain of more than 100 includes" in refused(tmp_path / "0.gin")


def test_what_is_no_file_is_told(tmp_path):
  assert "is a folder, not a gin file" in refused(tmp_path)
  assert "is a folder, not a gin file" in refused("gin/runs")
  assert "there is no gin file ''" in refused("")
  assert "there is no gin file 'a\\x00b'" in refused("a\0b")
  (tmp_path / "loop.gin").symlink_to(tmp_path / "loop.gin")
  assert "there is no gin file" in refused(tmp_path / "loop.gin")
  assert "File name too long" in refused("x" * 5000)
  assert "did you mean gin/runs/griffin_quickstart.gin?" in refused(
    "gin/runs/griffin_quikstart.gin"
  )
  told = refused("gin/runs/nothing.gin")  # not that of another folder with some of its letters
  assert "; gin/runs has " in told
  assert "griffin_quickstart" in told
  assert refused("model=2").endswith("there is no gin file 'model=2'")
  assert refused("STEPS=3").endswith("; did you mean --gin.STEPS=3?")


@pytest.mark.parametrize(
  "argument",
  [
    "--gin.LEARNING_RATE=1e400",
    "--gin.LEARNING_RATE=nan",
    "--gin.LEARNING_RATE=inf",
    f"--gin.SEED={10**30}",
    "--gin.SEED=10**30",
    f"--gin.SEED={2**40}",
    "--gin.SEED=-1",
    f"--gin.STEPS={'[' * 5000}",
    f"--gin.STEPS={'[' * 5000}{']' * 5000}",
    "--gin.STEPS={[]: 1}",
    "--gin.STEPS=\udcff",
    "--gin.STEPS='\0'",
    "--gin.=1",
    "--gin..=1",
    "--gin.STEPS=",
    "--gin.a..b=1",
    "--gin.STEPS",
  ],
)
def test_an_odd_argument_is_refused(argument):
  given = [argument] if "=" in argument else [f"{argument}=@"]
  with pytest.raises(ConfigError) as error:
    train.main(["gin/runs/hawk_quickstart.gin", "--describe", *given])
  assert "\n" not in str(error.value)


def test_advice_for_a_number_is_one_that_is_taken():
  assert "without quotes" not in refused(
    "gin/runs/hawk_quickstart.gin", "--gin.LEARNING_RATE='inf'"
  )


@pytest.mark.parametrize("command", ["launch.check", "launch.train"])
@pytest.mark.parametrize(
  "module",
  [
    "import sys\nsys.exit(0)\n",
    "raise SystemExit\n",
    "import os\n\ndef model(): raise SystemExit(0)\n",
  ],
)
def test_a_module_that_ends_the_process_is_reported(tmp_path, command, module):
  (tmp_path / "leaver.py").write_text(module)
  (tmp_path / "own.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "import leaver\n"
    f"{GOOD if command == 'launch.train' else ''}"
    "MODEL = @leaver.model()\n"
  )
  more = ["--describe"] if command == "launch.train" else ["--only=causality"]
  ended = subprocess.run(
    [sys.executable, "-m", command, "own.gin", *more],
    cwd=tmp_path,
    env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2, (ended.stdout, ended.stderr)
  assert "SystemExit" in ended.stderr
  assert "leaver" in ended.stderr
  assert "Traceback" not in ended.stderr


def test_bindings_of_general_files_are_no_warning(tmp_path):
  from experiment import experiment

  loaded = experiment.load(["runs/griffin_quickstart.gin", "sizes/14b.gin"])
  assert loaded.warnings == ()
  own = tmp_path / "own.gin"
  own.write_text(f"{GOOD}HEADS = 3\n")
  assert [warning for warning in experiment.load(own).warnings if "HEADS has no effect" in warning]
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.gin").write_text(own.read_text())
  (run / "operative_config.gin").touch()
  assert experiment.load(run / "config.gin").warnings == ()


@pytest.mark.parametrize(
  ("arguments", "flag"),
  [
    (["--gin.WARMUP_STEPS=5000", "--gin.STEPS=4"], "--gin.WARMUP_STEPS=... (now 5000)"),
    (["--gin.BATCH_SIZE=0"], "--gin.BATCH_SIZE=0"),
    (["--gin.SEED=-1"], "--gin.SEED=-1"),
    (["--gin.EVAL_BATCHES=0"], "--gin.EVAL_BATCHES=0"),
  ],
)
def test_a_refused_value_names_the_argument_that_changes_it(arguments, flag):
  with pytest.raises(ConfigError) as error:
    train.main(["gin/runs/hawk_quickstart.gin", "--describe", *arguments])
  assert flag in str(error.value)


def test_a_mesh_that_does_not_fit_names_the_argument_that_changes_it():
  with pytest.raises(ConfigError) as error:
    train.main(
      [
        *("gin/runs/hawk_quickstart.gin", "gin/mesh/data.gin", "--describe_sharding"),
        *("--gin.DATA_SHARDS=3", "--gin.BATCH_SIZE=4"),
      ]
    )
  assert "--gin.DATA_SHARDS=1" in str(error.value)


def test_statements_of_a_file_are_read_in_order(tmp_path):
  file = tmp_path / "a.gin"
  file.write_text("A = 1\nB = 2\n")
  assert [item.selector for item in source.read_file(file).statements] == ["A", "B"]
