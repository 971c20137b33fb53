"""Gin files and folders of the wrong kind: a run in place of a comparison, or the reverse."""

import shlex

import pytest

from base.errors import UserError
from config.place import ConfigError
from experiment.run_directory import RunDirectory
from launch import check, compare, evaluate, generate, train

RUN = "gin/runs/griffin_quickstart.gin"
COMPARISON = "gin/compare/quick.gin"
KEPT = {
  "run": "from experiment import experiment\nexperiment.Experiment.batch_size = 1\n",
  "comparison": "from comparison import comparison\ncomparison.Comparison.title = 'x'\n",
}


def folder_with(path, kind):
  path.mkdir(parents=True)
  (path / "config.gin").write_text(f"from __gin__ import dynamic_registration\n{KEPT[kind]}")
  return path


@pytest.mark.parametrize("file", [COMPARISON, "gin/compare/paper.gin", "gin/compare/recall.gin"])
def test_a_comparison_is_not_trained_as_a_run(file, tmp_path):
  told = (
    f"{file} describes a comparison, not a run. Type: python -m launch.compare {file} --output="
  )
  for arguments in ([f"--run_dir={tmp_path}/x"], ["--describe"], ["--print_config"]):
    with pytest.raises(ConfigError, match=told):
      train.main([file, *arguments])
  assert not (tmp_path / "x").exists()


def test_a_run_is_not_compared(tmp_path):
  told = f"{RUN} describes a run, not a comparison. Type: python -m launch.train {RUN} --run_dir="
  for arguments in ([f"--output={tmp_path}/x"], ["--describe"]):
    with pytest.raises(ConfigError, match=told):
      compare.main([RUN, *arguments])
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("main", "file", "told"),
  [
    (
      train.main,
      "gin/sizes/tiny.gin",
      "not a complete run. Put it after a file that is, such as gin/runs/",
    ),
    (
      train.main,
      "gin/train/lora.gin",
      "gin/train/lora.gin is not a complete run. .* with --init_from=RUN.",
    ),
    (
      train.main,
      "gin/compare/parts/scaling.gin",
      "Include it in a file that describes a comparison",
    ),
    (compare.main, "gin/compare/parts/scaling.gin", "as gin/compare/quick.gin does"),
    (compare.main, "gin/sizes/tiny.gin", "not a complete comparison"),
  ],
)
def test_a_file_that_describes_no_whole_is_told_where_it_belongs(main, file, told):
  with pytest.raises(ConfigError, match=told):
    main([file, "--describe"])


@pytest.mark.parametrize("main", [train.main, evaluate.main, generate.main])
def test_the_folder_of_a_comparison_is_no_run(main, tmp_path):
  output = folder_with(tmp_path / "quick", "comparison")
  run = folder_with(output / "runs" / "griffin_0", "run")
  with pytest.raises(UserError, match="quick contains a comparison, not a run") as error:
    main([f"--run_dir={output}"])
  assert str(run) in str(error.value)


def test_the_folder_of_a_run_is_no_comparison(tmp_path):
  run = folder_with(tmp_path / "first", "run")
  with pytest.raises(UserError, match=r"launch\.train --run_dir=.*first"):
    compare.main([f"--output={run}"])


@pytest.mark.parametrize(
  ("name", "contents", "told", "macro"),
  [
    ("cat.jpg", b"\xff\xd8\xff\xe0\x00", "line 1: the file is not UTF-8", None),
    (
      "input.txt",
      b"Hello world.\nThis is text.\n",
      "line 1: cannot read 'Hello world.'",
      "TEXT_FILES",
    ),
    ("input.gz", b"\x1f\x8b\x08\x00\xff", "line 1: the file is not UTF-8", "TEXT_FILES"),
    ("my text.txt", b"Hello world.\n", "line 1: cannot read 'Hello world.'", "TEXT_FILES"),
    ("conf.json", b'{"a": 1}', "line 1: cannot read", "JSON_LINES"),
    ("a.jsonl.zst", b"(\xb5/\xfd", "line 1: the file is not UTF-8", "JSON_LINES"),
    ("a.parquet", b"PAR1\x15\xff", "line 1: the file is not UTF-8", "PARQUET_FILES"),
  ],
)
def test_a_file_of_another_kind_is_no_gin_file(tmp_path, monkeypatch, name, contents, told, macro):
  (tmp_path / name).write_bytes(contents)
  monkeypatch.chdir(tmp_path)
  for arguments in ([name], [RUN, name]):
    with pytest.raises(ConfigError) as error:
      train.main([*arguments, "--run_dir=r"])
    assert str(error.value).startswith(f"{name} is no gin file: {told}")
    advice = str(error.value).partition("Gin files end in .gin")[2]
    given = shlex.quote(f"--gin.{macro}={name}")
    assert advice.endswith(f" and give {given}." if macro else ".")
    assert ("to train on" in advice) == bool(macro)


def test_a_missing_text_names_its_argument_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = ["gin/data/text_files_bytes.gin", "--gin.TEXT_FILES=nothing/*.txt"]
  with pytest.raises(UserError, match=r"^no file matches '.*nothing/\*\.txt'\. ") as error:
    train.main([RUN, *text, "--run_dir=r"])
  assert "--gin.TEXT_FILES=..." in str(error.value)
  assert "TextFiles" not in str(error.value)


def test_a_run_does_not_start_from_itself(tmp_path, capsys):
  run = folder_with(tmp_path / "first", "run")
  with pytest.raises(SystemExit):
    train.main([f"--init_from={run}", f"--run_dir={tmp_path}/x/../first"])
  assert "--init_from and --run_dir are both" in capsys.readouterr().err


def test_two_models_are_not_checked_as_one(tmp_path, capsys):
  with pytest.raises(SystemExit):
    check.main(["gin/models/hawk.gin", "--model=griffin"])
  told = "gin/models/hawk.gin and --model=griffin are two models. Give one"
  assert told in capsys.readouterr().err


def test_a_file_of_prompts_that_cannot_be_read_names_the_option(tmp_path):
  for file, told in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
    with pytest.raises(UserError, match=rf"--prompts_file=.* cannot be read: {told}.*Name a text"):
      generate._prompts([], file)


@pytest.mark.parametrize("main", [train.main, evaluate.main, generate.main])
def test_a_folder_of_runs_names_those_in_it(main, tmp_path, monkeypatch):
  for name in ("first", "second"):
    folder_with(tmp_path / "runs" / name, "run")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as error:
    main(["--run_dir=runs"])
  assert str(error.value) == (
    "runs is not a run directory: it has no config.gin. Runs nearby: runs/first, runs/second."
  )
  # Those beside a name that does not exist, as ever.
  with pytest.raises(UserError, match=r"no such folder\. Runs nearby: runs/first, runs/second"):
    RunDirectory(tmp_path / "runs" / "third").require_run()
