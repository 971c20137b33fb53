"""The commands, from a gin file to text, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from base.errors import UserError
from benchmarks import start
from config.config import ConfigError
from launch import command, evaluate, generate, train
from tests import small_run
from training.loop import TrainingError
from training.metrics import read_metrics

ROOT = Path(train.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Text to learn from, and a run file."""
  folder = tmp_path_factory.mktemp("launch")
  small_run.write_text(folder)
  small_run.write(folder / "griffin.gin", text=folder)
  return folder


@pytest.fixture(scope="module")
def run_dir(folder):
  """A finished run."""
  path = folder / "runs" / "griffin"
  assert train.main([str(folder / "griffin.gin"), f"--run_dir={path}"]) == 0
  return path


def test_training_leaves_all_that_is_promised(run_dir, folder):
  for name in (
    "config.gin",
    "operative_config.gin",
    "metrics.jsonl",
    "loss.png",
    "vocabulary.json",
  ):
    assert (run_dir / name).stat().st_size > 0
  records = read_metrics(run_dir / "metrics.jsonl")
  assert [r["step"] for r in records if "heldout_bits_per_byte" in r] == [6]
  assert f"STEPS = 6  # {folder}/" in (run_dir / "config.gin").read_text()
  assert "default" in (run_dir / "operative_config.gin").read_text()


def test_evaluate_finds_the_held_out_figure_of_the_training(run_dir, capsys):
  assert evaluate.main([f"--run_dir={run_dir}", "--by_position"]) == 0
  (file,) = (run_dir / "evaluations").glob("6-*-32.json")
  result = json.loads(file.read_text())
  told = read_metrics(run_dir / "metrics.jsonl")[-1]
  assert result["bits_per_byte"] == pytest.approx(told["heldout_bits_per_byte"], rel=1e-6)
  assert sum(bucket["tokens"] for bucket in result["by_position"]) == result["tokens"]
  assert "16-31" in capsys.readouterr().out
  assert file.with_suffix(".png").stat().st_size > 0
  # A part of the text has a file of its own.
  for rows in (1, 2):
    assert evaluate.main([f"--run_dir={run_dir}", "--batches=1", f"--batch_size={rows}"]) == 0
  assert json.loads(file.read_text()) == result
  parts = [(run_dir / "evaluations").glob(f"6-*-32-batches_1x{rows}.json") for rows in (1, 2)]
  one, two = (json.loads(next(part).read_text())["tokens"] for part in parts)
  assert one < two < result["tokens"]


def test_evaluate_reads_longer_rows_and_other_text(run_dir, folder, capsys):
  (folder / "other").mkdir(exist_ok=True)
  for number in range(40):
    (folder / "other" / f"{number}.jsonl").write_text(json.dumps({"text": "z" * 99}) + "\n")
  arguments = [
    f"--run_dir={run_dir}",
    "--data=gin/data/json_lines_bytes.gin",
    f"--gin.JSON_LINES={folder}/other/*.jsonl",
    "--gin.corpora.JsonLines.heldout_fraction=0.5",
    "--length=128",
    "--by_position",
  ]
  assert evaluate.main(arguments) == 0
  # Documents of 100 tokens: positions that no row of the training had.
  assert "64-127" in capsys.readouterr().out


def test_a_run_directory_can_be_moved_and_is_enough_alone(run_dir, folder, tmp_path, capsys):
  moved = tmp_path / "moved"
  shutil.copytree(run_dir, moved)
  assert generate.main([f"--run_dir={run_dir}", "--prompt=Doc", "--max_tokens=20"]) == 0
  text = capsys.readouterr().out
  hidden = folder.rename(folder.with_name("hidden"))
  try:
    assert generate.main([f"--run_dir={moved}", "--prompt=Doc", "--max_tokens=20"]) == 0
  finally:
    hidden.rename(folder)
  assert capsys.readouterr().out == text
  assert text.startswith("Doc")


def test_streamed_text_is_the_text(run_dir, capsys):
  arguments = [
    f"--run_dir={run_dir}",
    "--prompt=Döc",
    "--max_tokens=70",
    "--temperature=2",
    "--seed=5",
  ]
  assert generate.main(arguments) == 0
  text = capsys.readouterr().out
  assert generate.main([*arguments, "--stream"]) == 0
  assert capsys.readouterr().out == text
  assert generate.main([*arguments[:-1], "--seed=6"]) == 0
  assert capsys.readouterr().out != text


def test_a_run_of_one_device_generates_the_same_on_a_mesh(run_dir, tmp_path, capsys):
  mesh = tmp_path / "mesh.gin"
  mesh.write_text("""
from __gin__ import dynamic_registration
from parallel import sharding_plan
from parallel import rules
include 'mesh/zero3.gin'
rules.Rules.max_replicated = 1.0  # in a model this small, vectors are more than 1% of it
sharding_plan.Parallelism.rules = @rules.Rules()
""")
  arguments = [f"--run_dir={run_dir}", "--prompt=Document", "--temperature=0", "--max_tokens=12"]
  assert generate.main(arguments) == 0
  expected = capsys.readouterr().out
  found = subprocess.run(
    [
      sys.executable,
      "-m",
      "launch.generate",
      *arguments,
      f"--mesh={mesh}",
      "--gin.DATA_SHARDS=4",
    ],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout == expected
  with pytest.raises(SystemExit):
    generate.main([*arguments, "--gin.MODEL_SHARDS=2"])
  assert "--gin.MODEL_SHARDS=2 needs --mesh" in capsys.readouterr().err


def test_a_prompt_of_a_file_is_continued_as_if_alone(run_dir, tmp_path, capsys):
  file = tmp_path / "prompts.txt"
  file.write_text("Document 1\nx\n")
  common = [f"--run_dir={run_dir}", "--max_tokens=30"]
  assert generate.main([*common, f"--prompts_file={file}"]) == 0
  both = capsys.readouterr().out
  for prompt in ("Document 1", "x"):
    assert generate.main([*common, f"--prompt={prompt}"]) == 0
    assert capsys.readouterr().out in both


def test_the_same_command_goes_on_and_a_finished_run_stays_as_it_is(run_dir, folder, capsys):
  before = (run_dir / "metrics.jsonl").read_bytes()
  assert train.main([f"--run_dir={run_dir}"]) == 0
  assert train.main([str(folder / "griffin.gin"), f"--run_dir={run_dir}"]) == 0
  assert (run_dir / "metrics.jsonl").read_bytes() == before
  assert "held-out bits per byte" in capsys.readouterr().out


def test_another_configuration_is_told_and_needs_force(run_dir, folder, tmp_path):
  copied = tmp_path / "run"
  shutil.copytree(run_dir, copied)
  arguments = [
    str(folder / "griffin.gin"),
    f"--run_dir={copied}",
    "--gin.STEPS=8",
    "--gin.LEARNING_RATE=1e-4",
  ]
  with pytest.raises(UserError) as caught:
    train.main(arguments)
  message = str(caught.value)
  assert "loop.LoopOptions.steps: 6 -> 8" in message
  assert "optimizer.warmup_cosine.peak: 0.001 -> 0.0001" in message
  assert "--resume=force" in message
  assert message.count("\n") == 4
  assert "STEPS = 6" in (copied / "config.gin").read_text()
  assert train.main([*arguments, "--resume=force"]) == 0
  steps = [record["step"] for record in read_metrics(copied / "metrics.jsonl")]
  assert steps[-1] == 8
  assert steps == sorted(steps)
  assert "STEPS = 8" in (copied / "config.gin").read_text()


def test_rows_that_changed_under_a_run_are_told(run_dir, tmp_path):
  copied = tmp_path / "run"
  shutil.copytree(run_dir, copied)
  data = json.loads((copied / "data.json").read_text())
  (copied / "data.json").write_text(json.dumps(data | {"training rows": "others"}))
  with pytest.raises(UserError, match="training rows: others -> "):
    train.main([f"--run_dir={copied}"])


def test_looking_makes_no_directory(folder, tmp_path, capsys):
  arguments = [str(folder / "griffin.gin"), f"--run_dir={tmp_path / 'none'}"]
  assert train.main([*arguments, "--print_config"]) == 0
  printed = capsys.readouterr().out
  assert f"WIDTH = 32  # {folder}/griffin.gin:15\n" in printed
  assert "griffin.griffin.heads = %HEADS  # gin/models/griffin.gin:14\n" in printed
  assert train.main([*arguments, "--describe", "--dry_run"]) == 0
  printed = capsys.readouterr().out
  counts = [line.split()[-1] for line in printed.splitlines() if "float32" in line]
  total = sum(int(count.replace(",", "")) for count in counts)
  assert f"parameters  {total:,} (" in " ".join(printed.split()).replace(
    "parameters ", "parameters  "
  )
  assert "FLOPs per token, forward" in printed
  assert "temporary memory of a step" in printed
  assert "memory of a device" in printed
  assert re.search(r"^fits +[\d.]+ \w+ left$", printed, re.MULTILINE)
  assert "does not fit" not in printed
  assert not (tmp_path / "none").exists()


def test_fewer_devices_than_the_mesh_needs_are_told_before_anything_is_written(tmp_path):
  run_file = tmp_path / "mesh.gin"
  run_file.write_text(
    f"include '{ROOT}/gin/runs/griffin_quickstart.gin'\ninclude 'mesh/data.gin'\nDATA_SHARDS = 3\n"
  )
  arguments = [str(run_file), f"--run_dir={tmp_path / 'run'}", "--gin.BATCH_SIZE=6"]
  with pytest.raises(
    ConfigError,
    match=r"mesh axes data=3 need 3 devices, 1 is visible\. Set --gin\.DATA_SHARDS=1, or launch",
  ):
    train.main(arguments)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["train", "gin/runs/grifin.gin", "--run_dir=x"], "there is no gin file 'gin/runs/grifin.gin'"),
    (
      ["train", "gin/runs/griffin_quickstart.gin", "--describe", "--gin.STESP=5"],
      "did you mean STEPS?",
    ),
    (
      ["generate", "--run_dir=nothing"],
      "error: nothing is not a run directory: there is no such folder. ",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, told):
  result = subprocess.run(
    [sys.executable, "-m", f"launch.{arguments[0]}", *arguments[1:]],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert told in result.stderr
  assert len(result.stderr.splitlines()) == 1
  assert result.stdout == ""


@pytest.mark.parametrize("name", start.names())
def test_help_imports_nothing_slow(name):
  code = (
    f"import sys, launch.{name} as c; c.parser().format_help();"
    "print([m for m in ('jax', 'numpy', 'gin', 'matplotlib', 'grain') if m in sys.modules])"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == "[]"


def test_arguments_of_gin_may_have_their_value_apart():
  args, bindings = command.parse(
    train.parser(), ["x.gin", "--gin.STEPS", "5", "--run_dir=r", "--gin.A=b c"]
  )
  assert args.config == ["x.gin"]
  assert bindings == ["--gin.STEPS=5", "--gin.A=b c"]


TASK = """
task: {name}
dataset_path: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" hello", " 7"]
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks(tmp_path):
  """A folder of lm-eval tasks: one whose data lies where it says, one whose data is elsewhere."""
  data = tmp_path / "data"
  data.mkdir()
  lines = [{"question": f"Document {n}: é 🎉 says", "answer": 0} for n in range(5)]
  (data / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (tmp_path / "near.yaml").write_text(TASK.format(name="near", data=data))
  (tmp_path / "far.yaml").write_text(TASK.format(name="far", data=tmp_path / "absent"))
  return tmp_path


def test_evaluate_runs_tasks_of_lm_eval_on_local_data(run_dir, tasks, capsys):
  asked = [f"--run_dir={run_dir}", f"--include_path={tasks}"]
  copy = f"--harness_data=far={tasks / 'data'}"
  assert evaluate.main([*asked, "--harness=near,far", copy, "--length=64", "--limit=4"]) == 0
  output = capsys.readouterr().out
  assert "near" in output
  assert "acc" in output
  (file,) = (run_dir / "evaluations").glob("6-harness-*.json")
  kept = json.loads(file.read_text())
  # The same questions, from two places.
  assert kept["results"]["near"]["acc,none"] == kept["results"]["far"]["acc,none"]
  assert kept["n-samples"]["far"]["effective"] == 4
  with pytest.raises(UserError, match=r"no such task. Did you mean 'near'\?"):
    evaluate.main([*asked, "--harness=nera"])
  with pytest.raises(UserError, match=r"no such task. `lm-eval ls tasks` lists all. Add your own"):
    evaluate.main([*asked, "--harness=such_task"])
  with pytest.raises(UserError, match=r"the data of far .* --harness_data=far=FOLDER") as error:
    evaluate.main([*asked, "--harness=far"])
  # The command that it tells came with the extra.
  told = str(error.value).partition("Where there is a network: ")[2].split()[0]
  assert (Path(sys.executable).parent / told).is_file()
  with pytest.raises(UserError, match="is not TASK=FOLDER with a task of --harness"):
    evaluate.main([*asked, "--harness=near", copy])


def test_evaluate_tells_how_much_is_recalled_and_where(run_dir, capsys):
  asked = [f"--run_dir={run_dir}", "--gin.data.recall_text.Needle.heldout_examples=4"]
  assert evaluate.main([*asked, "--data=data/needle.gin", "--contexts=20,90"]) == 0
  printed = capsys.readouterr()
  lines = [line.split() for line in printed.out.splitlines()]
  assert "next:" not in printed.err  # It would be the command without contexts, which names these.
  assert ["characters", "right", "whole", "answers"] in lines
  (file,) = (run_dir / "evaluations").glob("6-needle-20-90.json")
  kept = json.loads(file.read_text())
  assert [entry["length"] for entry in kept["lengths"]] == [20, 90]
  # Four keys of five digits with a space before, at two lengths.
  for kind in ("position", "distance", "depth"):
    assert sum(share["count"] for share in kept[f"by_{kind}"]) == 2 * 4 * 6
  # Ranges of distances name their last one, as those of positions do.
  after = lines[[line[:1] for line in lines].index(["distance"]) + 1 :]
  for (place, *_), share in zip(after, kept["by_distance"], strict=False):
    start, stop = share["start"], share["stop"]
    assert place == (f"{start}-{stop - 1}" if stop - start > 1 else f"{start}")
  with pytest.raises(SystemExit):
    evaluate.main([f"--run_dir={run_dir}", "--contexts=20"])
  # The next command names the same task.
  asked += ["--data=data/needle.gin", "--gin.HAYSTACK=20", "--trust=mine"]
  assert evaluate.main(asked) == 0
  (line,) = re.findall("^next: (.*)$", capsys.readouterr().err, re.MULTILINE)
  assert shlex.split(line)[2:] == ["launch.evaluate", *asked, "--contexts=20,40,80"]


def test_a_diverged_run_names_the_command_that_goes_on(run_dir, tmp_path):
  copied = tmp_path / "run"
  shutil.copytree(run_dir, copied)
  diverging = ["--resume=force", "--gin.STEPS=40", "--gin.LEARNING_RATE=1e30"]
  with pytest.raises(TrainingError, match="Checkpoint 6 is good") as error:
    train.main([f"--run_dir={copied}", *diverging])
  words = shlex.split(str(error.value))
  named = words[words.index("launch.train") + 1 :]
  assert named[:2] == [f"--run_dir={copied}", "--resume=force"]
  # Half of that rate is no help, but the name is right.
  assert named[2].startswith("--gin.LEARNING_RATE=")
  assert train.main([*named[:2], "--gin.LEARNING_RATE=1e-3", "--gin.STEPS=8"]) == 0


def test_a_held_out_loss_of_nan_is_told_again(run_dir, tmp_path, capsys, monkeypatch):
  copied = tmp_path / "run"
  shutil.copytree(run_dir, copied)
  nan = types.SimpleNamespace(loss=math.nan, bits_per_byte=math.nan)
  monkeypatch.setattr("evaluation.held_out.score", lambda *_, **options: (nan, {}))
  assert train.main([f"--run_dir={copied}", "--resume=force", "--gin.STEPS=7"]) == 0
  assert train.main([f"--run_dir={copied}"]) == 0
  assert capsys.readouterr().out.count("held-out loss: nan\n") == 2
