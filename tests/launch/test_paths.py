"""Paths as users type them: relative, from other folders, of files that have moved or gone."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from base import paths
from base.errors import UserError
from comparison import comparison, run_identity
from experiment import experiment
from experiment.run_directory import RunDirectory
from launch import check, convert, evaluate, generate, plan, train
from training import loop
from training.metrics import read_metrics

RUN = """
from __gin__ import dynamic_registration
from data import corpora

include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/single.gin'
include 'kernels/auto.gin'
include 'data/text_files_bytes.gin'
include 'train/steps.gin'

WIDTH = 32
RNN_WIDTH = 32
HEADS = 2
DEPTH = 1
SEQUENCE_LENGTH = 32
BATCH_SIZE = 4
STEPS = 4
WARMUP_STEPS = 2
TEXT_FILES = 'text/*.txt'
corpora.TextFiles.heldout_fraction = 0.3
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A folder in which somebody typed `launch.train mine.gin --run_dir=runs/first`."""
  folder = tmp_path_factory.mktemp("home")
  (folder / "text").mkdir()
  for number in range(40):
    (folder / "text" / f"{number}.txt").write_text(f"Document {number} says hello.\n" * 3)
  (folder / "mine.gin").write_text(RUN)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    assert train.main(["mine.gin", "--run_dir=runs/first"]) == 0
  return folder


@pytest.fixture
def home(trained, tmp_path_factory, monkeypatch):
  """That folder as it was, as the working directory."""
  kept = trained.with_name(f"{trained.name}_kept")
  if not kept.exists():
    shutil.copytree(trained, kept)
  shutil.rmtree(trained, ignore_errors=True)
  shutil.copytree(kept, trained)
  monkeypatch.chdir(trained)
  return trained


def test_a_finished_run_started_again_says_so_and_what_to_type(home, capsys):
  assert train.main(["mine.gin", "--run_dir=runs/first"]) == 0
  captured = capsys.readouterr()
  assert "runs/first is finished: 4 steps done" in captured.out
  assert "--- sample" not in captured.out
  (line,) = re.findall("^next: python -m launch.train (.*)$", captured.err, re.MULTILINE)
  assert train.main(line.split()) == 0
  assert read_metrics(Path("runs/first/metrics.jsonl"))[-1]["step"] == 8


def test_a_signal_during_the_last_step_ends_without_samples(home, capsys, monkeypatch):
  monkeypatch.setattr(loop.Interruption, "requested_at", lambda self, step: step == 4)
  assert train.main(["mine.gin", "--run_dir=late"]) == 0
  told = capsys.readouterr().out
  assert "held-out bits per byte" in told
  assert "--- sample" not in told


def test_a_relative_run_directory_is_read_by_every_command(home, monkeypatch, capsys):
  for folder, run in (("", "runs/first"), ("runs", "first"), ("text", "../runs/first")):
    monkeypatch.chdir(home / folder)
    assert evaluate.main([f"--run_dir={run}"]) == 0
    assert generate.main([f"--run_dir={run}", "--max_tokens=2"]) == 0
    child = f"from_{folder or 'home'}"
    options = [f"--init_from={run}", f"--run_dir={child}", "--gin.STEPS=3"]
    assert train.main(options) == 0
    assert train.main([*options[:2], "--gin.STEPS=3"]) == 0
    assert train.main([options[1]]) == 0
  monkeypatch.chdir(home)
  with pytest.raises(UserError, match="runs/first has no adapters"):
    convert.main(["runs/first", "merged", "--merge"])


def test_paths_are_recorded_absolute(home, capsys):
  text = (home / "runs/first/config.gin").read_text()
  assert f"TEXT_FILES = '{home}/text/*.txt'" in text
  assert f"cache_dir = '{home}/cache'" in text
  options = ["--init_from=runs/first", "--run_dir=child", "--gin.STEPS=3"]
  capsys.readouterr()
  assert train.main(options) == 0
  introduced = r"^child: [\d.]+ M parameters from runs/first, 3 steps"
  assert re.search(introduced, capsys.readouterr().err, re.MULTILINE)
  assert f"init_from = '{home}/runs/first'" in (home / "child/config.gin").read_text()


def relative_paths(configuration):
  """The paths in force of a configuration that are not absolute."""
  marked = configuration.path_names()
  found = []
  for line in configuration.operative_text().splitlines():
    left, _, right = line.lstrip("# ").partition(" = ")
    if left in marked:
      values = ast.literal_eval(right.rpartition("  #")[0])
      values = [values] if isinstance(values, str) else list(values or ())
      found += [f"{left}: {value}" for value in values if not Path(value).is_absolute()]
  return found


@pytest.mark.parametrize(
  "arguments",
  [
    ["data/text_files_bytes.gin", "--gin.TEXT_FILES=['a/*.txt', '~/b.txt', '../c']"],
    ["data/json_lines_bytes.gin", "--gin.JSON_LINES=x.jsonl"],
    ["data/instructions_bytes.gin", "--gin.JSON_LINES=x.jsonl"],
    ["data/python_sentencepiece.gin"],
    ["data/c4_sentencepiece.gin", "--gin.corpora.Tfds.data_dir=tfds"],
    ["data/mixture_bytes.gin"],
    ["data/mqar.gin", "--gin.launch.experiment.Experiment.init_from=runs/x"],
  ],
  ids=lambda arguments: arguments[0],
)
def test_no_path_in_force_is_relative(arguments, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files = ["runs/griffin_quickstart.gin", arguments[0]]
  configuration = experiment.load(files, arguments[1:])
  assert configuration.path_names()
  assert not relative_paths(configuration)
  # What is written is read back as it was, wherever one stands.
  (tmp_path / "kept.gin").write_text(configuration.text())
  monkeypatch.chdir("/")
  kept = experiment.load(tmp_path / "kept.gin")
  assert kept.operative_text().count(str(tmp_path)) == configuration.operative_text().count(
    str(tmp_path)
  )
  assert not relative_paths(kept)


def test_a_bucket_keeps_its_address():
  configuration = experiment.load(
    "runs/griffin_quickstart.gin", ["--gin.launch.experiment.Experiment.init_from=gs://bucket/run"]
  )
  assert configuration.build().init_from == "gs://bucket/run"


def test_a_comparison_is_opened_from_elsewhere(home, monkeypatch):
  Path("own.gin").write_text("WIDTH = 16\nRNN_WIDTH = 16\nHEADS = 1\nDEPTH = 1\n")
  arguments = [
    "--gin.SIZES={'one': ['own.gin', 'STEPS = 2']}",
    "--gin.SHARED=['mesh/single.gin', 'kernels/auto.gin', 'data/text_files_bytes.gin', "
    "'train/quick_comparison.gin',"
    " 'TEXT_FILES = \"text/*.txt\"', 'WARMUP_STEPS = 1']",
    "--gin.MODELS={'Griffin': ['models/griffin.gin']}",
    "--gin.LOADED={'Griffin, one, seed 0': 'runs/first'}",
    "--gin.PARTS={'scaling': %SCALING}",
    "--gin.BASELINE=Griffin",
    "--gin.TUNING=None",
  ]
  Path("compare.gin").write_text(comparison.load("compare/quick.gin", arguments).text())
  monkeypatch.chdir("/")
  compared = comparison.load(home / "compare.gin").build()
  assert compared.loaded == {"Griffin, one, seed 0": f"{home}/runs/first"}
  config = compared.model_config("Griffin", compared.sizes["one"])
  assert config.build().train_data.corpus.files == f"{home}/text/*.txt"
  assert config.build().model.width == 16


def test_a_moved_folder_goes_on_with_what_it_holds(home, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  moved = tmp_path / "moved"
  home.rename(moved)
  monkeypatch.chdir(moved)
  assert train.main(["mine.gin", "--run_dir=runs/first"]) == 0
  assert "is finished" in capsys.readouterr().out


def test_text_that_exists_elsewhere_is_another_text(home):
  Path("other").mkdir()
  Path("other/a.txt").write_text("Other text.\n" * 90)
  Path("other/b.txt").write_text("Yet another text.\n" * 90)
  with pytest.raises(UserError, match=r"corpora.TextFiles.files: .*text.* -> .*other"):
    train.main(["mine.gin", "--run_dir=runs/first", "--gin.TEXT_FILES=other/*.txt"])


def test_a_run_is_evaluated_and_continued_without_its_corpus(home, capsys):
  shutil.rmtree("text")
  assert evaluate.main(["--run_dir=runs/first"]) == 0
  assert "Reading the cached rows in" in capsys.readouterr().err
  assert train.main(["--run_dir=runs/first", "--resume=force", "--gin.STEPS=5"]) == 0
  with pytest.raises(ValueError, match=r"no file matches .*text/\*.txt"):
    evaluate.main(["--run_dir=runs/first", "--length=16"])


def test_a_pattern_without_files_is_told_with_its_flag_and_place(home):
  """In training, from a file and from the command line, and in the evaluation of other text."""
  Path("lost.gin").write_text("include 'mine.gin'\nTEXT_FILES = 'books/**/*.txt'\n")
  told = (
    r"no file matches '.*books/\*\*/\*\.txt'\..*'a\.txt', 'b\.txt'.* "
    r"--gin\.TEXT_FILES=\.\.\. \(now '.*', lost\.gin:2\)"
  )
  with pytest.raises(ValueError, match=told):
    train.main(["lost.gin", "--run_dir=runs/lost"])
  with pytest.raises(ValueError, match=r"--gin\.TEXT_FILES=\.\.\. \(now '.*none\.txt'\)"):
    train.main(["mine.gin", "--run_dir=runs/lost", "--gin.TEXT_FILES=none.txt"])
  assert not Path("runs/lost").exists()
  other = ["--data=gin/data/json_lines_bytes.gin", "--gin.JSON_LINES=none.jsonl"]
  with pytest.raises(ValueError, match=r"--gin\.JSON_LINES=\.\.\. \(now '.*none\.jsonl'\)"):
    evaluate.main(["--run_dir=runs/first", *other])


def test_as_many_rows_at_a_time_as_there_are(home, capsys):
  assert evaluate.main(["--run_dir=runs/first"]) == 0
  usual = capsys.readouterr().out
  assert evaluate.main(["--run_dir=runs/first", f"--batch_size={2**31}"]) == 0
  assert capsys.readouterr().out.splitlines()[0] == usual.splitlines()[0]


def test_a_run_of_one_file_is_evaluated_after_it_moved_away(home, capsys):
  Path("input.txt").write_text("A line of the only file.\n" * 200)
  assert train.main(["mine.gin", "--run_dir=runs/one", "--gin.TEXT_FILES=input.txt"]) == 0
  Path("input.txt").rename("moved.txt")
  assert evaluate.main(["--run_dir=runs/one"]) == 0
  assert "Reading the cached rows in" in capsys.readouterr().err


def test_gin_files_that_describe_no_whole_run_change_that_of_the_directory(home, capsys):
  Path("longer.gin").write_text("STEPS = 6\nLEARNING_RATE = 1e-2\n")
  with pytest.raises(UserError, match=r"loop\.LoopOptions\.steps: 4 -> 6"):
    train.main(["longer.gin", "--run_dir=runs/first"])
  assert train.main(["longer.gin", "--run_dir=runs/first", "--resume=force"]) == 0
  err = capsys.readouterr().err
  (was, now) = re.search(
    r"learning rate jumps from (\S+) \(logged at step 4\) to (\S+)", err
  ).groups()
  assert float(was) < float(now)
  assert "LEARNING_RATE = 0.01" in Path("runs/first/config.gin").read_text()


def test_an_unchanged_schedule_is_no_jump(home, capsys):
  arguments = ["--run_dir=runs/first", "--resume=force", "--gin.loop.LoopOptions.log_every=3"]
  assert train.main(arguments) == 0
  assert "warning" not in capsys.readouterr().err


def test_fewer_steps_than_are_done_are_refused(home):
  before = Path("runs/first/config.gin").read_bytes()
  with pytest.raises(UserError, match=r"has done 4 steps, more than STEPS=3.*--gin.STEPS=4"):
    train.main(["--run_dir=runs/first", "--resume=force", "--gin.STEPS=3"])
  assert Path("runs/first/config.gin").read_bytes() == before


def test_a_tokenizer_that_is_gone_is_read_from_the_run(home, monkeypatch, capsys):
  from data import corpora
  from data.tokenizer_training import train_sentencepiece

  train_sentencepiece(corpora.TextFiles("text/*.txt"), 290, "cache/own.model")
  text = Path("mine.gin").read_text()
  text += "VOCABULARY = @tokenizers.SentencePiece()\nVOCAB_SIZE = 290\n"
  text += "tokenizers.SentencePiece.path = 'cache/own.model'\n"
  Path("own.gin").write_text(
    text.replace("import corpora", "import corpora\nfrom data import tokenizers")
  )
  assert train.main(["own.gin", "--run_dir=runs/own"]) == 0
  Path("cache/own.model").unlink()
  monkeypatch.chdir("/")
  assert evaluate.main([f"--run_dir={home}/runs/own"]) == 0
  assert train.main([f"--run_dir={home}/runs/own", "--resume=force", "--gin.STEPS=5"]) == 0


def test_shown_paths_are_as_short_as_they_can_be(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert paths.shown(paths.absolute("runs/x")) == "runs/x"
  assert paths.shown("/somewhere/else") == "/somewhere/else"
  assert paths.absolute("~/x") == Path.home() / "x"
  for wrong in ("", "a\0b"):
    with pytest.raises(ValueError, match="is not a path"):
      paths.absolute(wrong)
  assert paths.absolute("a/../b") == tmp_path / "b"


def test_padding_of_the_vocabulary_makes_no_other_run(home, capsys):
  assert train.main(["mine.gin", "--run_dir=runs/first", "--gin.VOCAB_MULTIPLE=64"]) == 0
  assert "is finished" in capsys.readouterr().out
  # An older run had none.
  run, file = RunDirectory(home / "runs/first"), home / "runs/first/operative_config.gin"
  lines = [line for line in file.read_text().splitlines() if "vocab_multiple" not in line]
  file.write_text("\n".join(lines) + "\n")
  assert run.differences(experiment.load("mine.gin")) == []


def test_a_moved_comparison_keeps_its_runs(home, tmp_path):
  def identity_in(folder):
    config = experiment.load("runs/griffin_quickstart.gin", ["--gin.SEED=3"])
    text = experiment.load(
      ["runs/griffin_quickstart.gin", "data/text_files_bytes.gin"],
      [f"--gin.TEXT_FILES={folder}/a.txt"],
    )
    return run_identity.identity(config, str(folder)), run_identity.identity(text, str(folder))

  assert identity_in(home) == identity_in(tmp_path)
  assert len(set(identity_in(home))) == 2


@pytest.mark.parametrize("file", ["/", ".", "/dev/null/plan.json", "mine.gin/plan.json"])
@pytest.mark.parametrize("command", [plan, check])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_compiled(
  command, file, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  Path("mine.gin").touch()
  with pytest.raises(SystemExit) as ended:
    command.main(["gin/runs/griffin_quickstart.gin", f"--json={file}"])
  assert ended.value.code == 2
  assert "argument --json: " in capsys.readouterr().err
