"""A sweep trains ordinary runs, passes over those that diverge, and says which is best."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from base.errors import UserError
from comparison.sweep import sweep as sweep_lib
from comparison.sweep.cells import Cell
from experiment import run_list, running
from experiment.trust import NOBODY
from launch import sweep, train
from tests import small_run
from training.memory_report import OutOfMemory

CLUSTER = Path(train.__file__).parent / "cluster"
RATES = "LEARNING_RATE=1e-3,4e-3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweep")
  small_run.write(folder / "run.gin", text=small_run.shared_text())
  return folder


def command(folder, *more, output="swept"):
  return [str(folder / "run.gin"), f"--output={folder / output}", *more]


@pytest.fixture(scope="module")
def swept(folder):
  """A finished sweep of two rates."""
  assert sweep.main(command(folder, "--over", RATES)) == 0
  return folder / "swept"


def steps(path):
  return {run.name: (run.state, run.step) for run in run_list.runs_in(path)}


def test_a_run_is_the_one_that_training_would_make(folder, swept):
  own = folder / "own"
  assert train.main([str(folder / "run.gin"), f"--run_dir={own}", "--gin.LEARNING_RATE=4e-3"]) == 0
  other = swept / "LEARNING_RATE=4e-3"
  losses = [
    [line.get("loss") for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    for run in (own, other)
  ]
  assert losses[0] == losses[1]
  # The same command of both goes on in it.
  more = ["--run_dir=" + str(other), "--gin.LEARNING_RATE=4e-3"]
  assert train.main([str(folder / "run.gin"), *more]) == 0


def test_the_best_is_told_and_more_values_train_only_what_is_missing(folder, swept, capsys):
  before = {p: p.stat().st_mtime_ns for p in swept.glob("*/metrics.jsonl")}
  assert len(before) == 2
  more = ["--over", "LEARNING_RATE=1e-3,4e-3,8e-3"]
  assert sweep.main(command(folder, *more)) == 0
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert set(steps(swept).values()) == {("finished", 6)}
  out, told = capsys.readouterr()
  assert "run 1 of 1: LEARNING_RATE=8e-3" in told
  rows = [line.split() for line in out.splitlines() if line.startswith("finished")]
  losses = [float(row[2]) for row in rows]
  assert losses == sorted(losses)
  assert len(rows) == 3
  best = rows[0][3]
  assert re.search(rf"best: \S+ bits per byte held out, with LEARNING_RATE={best}\n", out)
  at_edge = f"LEARNING_RATE={float(best):g} is the"
  assert (at_edge in out) == (best != "4e-3")
  page = (swept / "sweep.html").read_text()
  assert "Held-out loss by LEARNING_RATE" in page
  assert "LEARNING_RATE=8e-3" in page


def test_what_diverges_is_noted_passed_over_and_not_tried_again(folder, capsys):
  # Ends at the first skipped step: the rate makes the second loss infinite.
  diverges = ["--over", "LEARNING_RATE=1e-3,1e30", "--gin.step.StepOptions.max_skips=1"]
  for again in (False, True):
    assert sweep.main(command(folder, *diverges, output="diverged")) == 1
    out, told = capsys.readouterr()
    assert re.search(r"^failed: LEARNING_RATE=1e30: .*\S", out, flags=re.MULTILINE)
    assert re.search(r"^best: .* with LEARNING_RATE=1e-3$", out, flags=re.MULTILINE)
    assert ("run 2 of 2" in told) == (not again)


def test_what_a_job_has_begun_meanwhile_is_left_to_it(folder, monkeypatch):
  trained = []

  def train_one(self, cell, *_, **__):
    trained.append(str(cell))
    return SimpleNamespace(interrupted=None)

  monkeypatch.setattr(sweep_lib.Sweep, "train", train_one)
  # Of three runs, another process takes the second while the first is trained.
  monkeypatch.setattr(sweep_lib.Sweep, "left", lambda self: self.cells[2 * len(trained) :])
  assert sweep.main(command(folder, "--over", "SEED=1,2,3", output="shared")) == 0
  assert trained == ["SEED=1", "SEED=3"]


def test_seeds_are_averaged(folder, swept, capsys):
  assert sweep.main(command(folder, "--over", RATES, "--over", "SEED=0,1", output="seeds")) == 0
  out = capsys.readouterr().out
  assert re.search(r"lowest mean over 2 seeds: \S+ \(95% interval .*\), with LEARNING_RATE=", out)
  assert sweep.main(command(folder, "--over", RATES, "--collect", output="seeds")) == 0
  assert capsys.readouterr().out.count("not started") == 2


def test_all_runs_are_checked_before_the_first_is_trained(folder, swept):
  for more, message in (
    (["--over", "LEARNING_RATE=1e-3,fast"], "LEARNING_RATE=fast: "),
    (["--over", "BATCH_SIZE=4,0"], "BATCH_SIZE=0: "),
    (
      ["--over", "LERNING_RATE=1,2"],
      "^--over LERNING_RATE=1: no binding uses the macro LERNING_RATE; did you mean LEARNING_RATE",
    ),
    (["--over", "file=nothing.gin"], "nothing.gin"),
    (["--over", RATES, "--gin.STEPS=7"], r"another configuration than the sweep's LEARNING_RATE"),
    (["--over", RATES, f"--jobs={folder}"], "cannot be read: Is a directory"),
  ):
    output = "swept" if "STEPS" in more[-1] else "unborn"
    with pytest.raises(UserError, match=message):
      sweep.main(command(folder, *more, output=output))
  assert not (folder / "unborn").exists()


def test_a_file_is_no_folder_of_a_sweep(folder):
  with pytest.raises(UserError, match=r"run.gin is a file, or lies in one. Name a folder"):
    sweep.main(command(folder, "--over", RATES, output="run.gin"))


def test_a_value_may_be_without_effect_in_some_runs_but_not_in_all(folder):
  files = "file=gin/models/griffin.gin,gin/models/hawk.gin"
  more = ["--over", files, "--gin.HEADS=2", "--gin.DEPTH=3", "--jobs=launch/cluster/slurm.sbatch"]
  more.append("--trust=mine,theirs")
  assert sweep.main(command(folder, *more, output="models")) == 0
  lines = (folder / "models" / "jobs.sh").read_text().splitlines()
  assert [("HEADS" in line, "DEPTH" in line) for line in lines[-2:]] == [
    (True, True),
    (False, True),
  ]
  # Each is a command that training takes.
  _, _, file, _, *rest = shlex.split(lines[-1])
  assert rest[-2:] == ["--trust=mine", "--trust=theirs"]
  assert train.main([file, *rest, "--describe"]) == 0
  with pytest.raises(UserError, match=r"--gin.DATA_SHARDS=2: no effect in any run"):
    sweep.main(command(folder, *more, "--gin.DATA_SHARDS=2", output="models"))


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ([], "no axis is given"),
    (["--over", "A"], "must be a name and its values"),
    (["--over", RATES, "--random=0"], "--random=0 must be at least 1"),
    (["--over", RATES, "--draw_seed=1"], "without --random"),
    (["--over", RATES, "--describe", "--collect"], "with --describe"),
  ],
)
def test_wrong_options_are_one_line(folder, capsys, more, message):
  with pytest.raises(SystemExit) as ended:
    sweep.main(command(folder, *more))
  assert ended.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


def test_a_description_trains_nothing(folder, capsys):
  more = ["--over", "DEPTH=2,4", "--describe"]
  assert sweep.main(command(folder, *more, output="described")) == 0
  rows = capsys.readouterr().out.splitlines()
  assert rows[0].split() == ["parameters", "tokens", "FLOPs", "DEPTH"]
  assert int(rows[1].split()[0].replace(",", "")) < int(rows[2].split()[0].replace(",", ""))
  assert not (folder / "described").exists()


def test_a_script_for_slurm_queues_what_is_left(folder, swept, tmp_path):
  """sbatch is a script here that starts what SLURM would start, with its arguments."""
  rates = "LEARNING_RATE=1e-3,4e-3,2e-3,3e-3"
  template = CLUSTER / "slurm.sbatch"
  more = ["--over", rates, f"--jobs={template}", "--gin.SEED=5"]
  assert sweep.main(command(folder, *more, output="jobs 1")) == 0
  sbatch = tmp_path / "sbatch"
  sbatch.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/queued\n')
  sbatch.chmod(0o755)
  script = folder / "jobs 1" / "jobs.sh"
  subprocess.run(["sh", str(script)], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
  queued = (tmp_path / "queued").read_text().splitlines()
  assert len(queued) == 4
  file, run = folder / "run.gin", folder / "jobs 1" / "LEARNING_RATE=1e-3"
  assert queued[0] == f"{template} {file} {run} --gin.SEED=5 --gin.LEARNING_RATE=1e-3"
  lines = [shlex.split(line) for line in script.read_text().splitlines() if "sbatch" in line]
  _, _, first, run_dir, *rest = lines[1]
  assert train.main([first, f"--run_dir={run_dir}", *rest]) == 0
  assert sweep.main(command(folder, *more, output="jobs 1")) == 0
  assert script.read_text().count("\nsbatch ") == 3


def test_job_sets_start_each_run_under_a_name_of_its_own(folder, tmp_path):
  template = CLUSTER / "gke_jobset.yaml"
  more = ["--over", "SEED=1,2,3", f"--jobs={template}"]
  names = []
  for output in ("sets", "other sets", "sets"):
    assert sweep.main(command(folder, *more, output=output)) == 0
    files = sorted((folder / output / "jobs").glob("*.yaml"))
    found = [yaml.safe_load(file.read_text()) for file in files]
    names.append([job["metadata"]["name"] for job in found])
  assert len({*names[0], *names[1]}) == 6
  assert names[0] == names[2]  # Queued again, a run is not started twice.
  assert all(re.fullmatch(r"griffin-[0-9a-f]{8}", name) for name in names[0])
  (job,) = found[1]["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  assert container["command"] == [
    "python", "-m", "launch.train", str(folder / "run.gin"), "--gin.SEED=2",
    f"--run_dir={folder / 'sets' / 'SEED=2'}", "--distributed",
  ]  # fmt: skip
  broken = (
    ("x.yaml", "kind: Pod"), ("y.sbatch", "echo"), ("z.yaml", "[" * 3000),
    ("v.yaml", template.read_text().replace("- name: train", "- train")),
    ("w.yaml", "kind: 2026-99-99"),
  )  # fmt: skip
  for name, text in broken:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} (is not a JobSet|has no line that starts)"):
      sweep.main(command(folder, *more[:-1], f"--jobs={tmp_path / name}", output="sets"))


def test_a_job_set_s_own_file_stays_and_its_options_may_be_two_words(folder):
  template = folder / "jobs" / "jobs" / "mine.yaml"
  template.parent.mkdir(parents=True)
  text = (CLUSTER / "gke_jobset.yaml").read_text()
  pieces = "--run_dir\n                    - /runs/griffin"
  template.write_text(re.sub(r"--run_dir=\S+", pieces, text))
  assert sweep.main(command(folder, "--over", "SEED=1", f"--jobs={template}", output="jobs")) == 0
  assert sorted(file.name for file in template.parent.iterdir()) == ["000.yaml", "mine.yaml"]
  assert "/runs/griffin" not in (template.parent / "000.yaml").read_text()


@pytest.mark.parametrize("count", [1, 2])
def test_a_lack_of_memory_ends_a_sweep_of_several_processes(folder, monkeypatch, count):
  """It may be on one host alone; the others would wait for it."""

  def train(*_, **__):
    raise OutOfMemory("not enough memory")

  monkeypatch.setattr(running, "train", train)
  monkeypatch.setattr(sweep_lib, "processes", SimpleNamespace(count=lambda: count, is_first=bool))
  cell = Cell((("SEED", "1"),))
  made = sweep_lib.Sweep((str(folder / "run.gin"),), (), (), (cell,), folder / "full", NOBODY)
  (folder / "full").mkdir(exist_ok=True)
  told = {"require_mine": lambda: None, "peak_flops": lambda _: None}
  if count == 1:
    assert made.train(cell, "", **told) is None
  else:
    with pytest.raises(OutOfMemory):
      made.train(cell, "", **told)
