"""Cases of the pages that train, evaluate and generate: how each step is tested."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.documentation.session import Case, Session
from training.step_costs import SPEEDS

# Each kind of Griffin's blocks once.
GRIFFIN = '--gin.models.griffin.griffin.pattern="(\\"recurrent\\", \\"attention\\")"'
SMALL = (
  "--gin.WIDTH=64 --gin.RNN_WIDTH=64 --gin.DEPTH=2 --gin.SEQUENCE_LENGTH=64 --gin.BATCH_SIZE=2 "
  "--gin.WARMUP_STEPS=2 --gin.experiment.experiment.Experiment.eval_batches=2"
)
HEADS = f"--gin.HEADS=4 {GRIFFIN}"
# `make train`, whose model is as small, shows samples.
SILENT = "--gin.experiment.experiment.Experiment.samples='()'"
WITH_SAMPLES = f"{SMALL} {HEADS} --gin.STEPS=6"
SHORT = f"{WITH_SAMPLES} {SILENT}"
ON_A_MESH = (
  f"--gin.WIDTH=64 --gin.RNN_WIDTH=128 --gin.DEPTH=2 {GRIFFIN} --gin.SEQUENCE_LENGTH=64 "
  "--gin.STEPS=2 --gin.WARMUP_STEPS=1 --gin.experiment.experiment.Experiment.eval_batches=1 "
  f"{SILENT}"
)
# A checkpoint every few steps, so that a test can stop the run after one.
MANY = f"{SMALL} {HEADS} --gin.STEPS=100 --gin.training.loop.LoopOptions.checkpoint_every=10"
# Instead of the half megabyte that is held out of the text of CPython.
TWO_FILES = (
  "--data=gin/data/heldout_files_bytes.gin --gin.EVAL_FILES=\"['CHANGELOG.md', 'BUILD_NOTES.md']\""
)
TRAINED = r"held-out bits per byte: \d+\.\d+"
BUCKET = "needs a bucket: tests/launch/test_buckets.py types it with servers on this machine"
INSTALLS = "installs packages from a network"
ENGINE = "needs a container engine: tests/launch/test_container_images.py runs the instructions"
CLUSTER = "needs a cluster: tests/launch/test_cluster_files.py reads the file"
EXECUTOR = "needs Ray or a cluster: tests/data/test_executors.py packs rows so"


def losses(run: Path) -> list[dict]:
  """The metrics of a run, without what depends on the machine's speed."""
  lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in SPEEDS} for line in lines]


def train_kill_and_train_again(session: Session, command: str) -> None:
  """Checks that a killed and resumed run has the metrics of an uninterrupted one.

  Then checks that a finished run stays unchanged.
  """
  run, aside = session.folder / "runs/griffin_quickstart", session.folder / "runs/uninterrupted"
  session.type(command)
  run.rename(aside)
  killed = session.stop(
    command, signal.SIGKILL, "runs/griffin_quickstart/checkpoints/[1-9]*/commit_success.txt"
  )
  assert killed.status != 0
  assert len(losses(run)) < len(losses(aside))
  again = session.type(command)
  assert "held-out bits per byte" in again.out
  assert losses(run) == losses(aside)
  finished = session.type(command)
  assert "runs/griffin_quickstart is finished: 100 steps done" in finished.out
  assert "next: python -m launch.train" in finished.err
  assert "first step done" not in finished.err
  assert losses(run) == losses(aside)


def evaluate_on_a_mesh(session: Session, command: str) -> None:
  """Checks that a mesh finds the figures of one device."""
  found = []
  for typed in (command, f"python {command.partition('python ')[2].partition(' --mesh')[0]}"):
    session.type(f"{typed} --batches=1 --batch_size=8")
    newest = max(
      session.folder.glob("runs/first/evaluations/*.json"), key=lambda f: f.stat().st_mtime
    )
    found.append(json.loads(newest.read_text(encoding="utf-8")))
  mesh, one = found
  assert (mesh["tokens"], mesh["bytes"]) == (one["tokens"], one["bytes"])
  assert mesh["loss"] == pytest.approx(one["loss"], rel=1e-5)


def ask_short_contexts(session: Session, command: str) -> None:
  """Asks one question of each task of RULER, in a context of 2,048 tokens."""
  for typed, short in (("4096,8192", "2048"), ("heldout_examples=88", "heldout_examples=11")):
    assert typed in command
    command = command.replace(typed, short)
  assert re.search(r"niah_multiquery +\d", session.type(command).out)


def stop_and_resume(session: Session, command: str) -> None:
  """Checks that Ctrl-C saves, and that the same command resumes."""
  stopped = session.stop(command, signal.SIGINT, "runs/mine/checkpoints/[1-9]*/commit_success.txt")
  assert "the same command continues" in stopped.out
  assert "held-out bits per byte" in session.type(command).out


def resolve(session: Session, command: str) -> None:
  """Checks only the configuration of a command, for hardware that this machine does not have."""
  words = command.replace("-m launch.plan", "-m launch.train").split()
  shown = session.type(" ".join(w for w in words if not w.startswith("--hardware")))
  assert "SEQUENCE_LENGTH = 2048" in shown.out


CASES = {
  "README.md": {
    "Two commands": [
      Case(
        "make train",
        f"ARGS='{MANY}'",
        instead=train_kill_and_train_again,
        leaves=tuple(
          f"runs/griffin_quickstart/{name}"
          for name in (
            "config.gin",
            "operative_config.gin",
            "data.json",
            "metrics.jsonl",
            "loss.png",
            "checkpoints/100",
          )
        ),
      ),
      Case("make test", "ARGS='-n0 tests/test_floors.py'", prints=r"\d+ passed"),
    ],
    "Launch": [
      Case("my_run.gin"),
      Case("source .venv/bin/activate"),
      Case("python -m launch.train my_run.gin --dry_run", SHORT, r"temporary memory of a step +\d"),
      Case("python -m launch.train my_run.gin --run_dir=runs/mine", MANY, instead=stop_and_resume),
    ],
  },
  "docs/getting_started.md": {
    "A laptop": [
      Case("make train", repeats="README.md"),
      Case("source .venv/bin/activate", repeats="README.md"),
      Case("python -m launch.train gin/runs/griffin_quickstart.gin", SHORT, TRAINED),
      Case(
        "python -m launch.train gin/runs/hawk_quickstart.gin",
        f"{SMALL} --gin.STEPS=6 {SILENT}",
        TRAINED,
      ),
    ],
    "The run directory": [
      Case("python -m launch.train --run_dir=runs/first", prints=r"runs/first is finished"),
      Case(
        "python -m launch.train --run_dir=runs/first --gin.STEPS=",
        "--gin.STEPS=8",
        TRAINED,
        leaves=("runs/first/checkpoints/8",),
      ),
      Case(
        "python -m launch.train --init_from=runs/first --run_dir=runs/second",
        "--gin.STEPS=4",
        TRAINED,
        leaves=("runs/second/checkpoints/4",),
      ),
      Case('export PYTHONPATH="$PWD"'),
      Case(
        "(cd runs && python -m launch.train", SHORT, TRAINED, leaves=("runs/elsewhere/config.gin",)
      ),
      Case("(cd runs && python -m launch.evaluate", "--batches=1", r"bits per byte +\d+\.\d"),
    ],
    "One GPU": [
      Case("make install EXTRAS=gpu", skipped=INSTALLS),
      Case("python -m launch.train", "--print_config", instead=resolve),
    ],
    "A TPU VM": [
      Case("make install EXTRAS=tpu", skipped=INSTALLS),
      Case("python -m launch.train", "--print_config", instead=resolve),
      Case("python -m launch.plan", "--print_config", instead=resolve),
    ],
    "Containers": [
      Case("docker build -f docker/gpu.Dockerfile", skipped=ENGINE),
      Case("docker run --rm --init --gpus all", skipped=ENGINE),
    ],
    "GKE": [
      Case("docker build -f docker/tpu.Dockerfile", skipped=ENGINE),
      Case("docker push", skipped=ENGINE),
      Case("kubectl apply", skipped=CLUSTER),
    ],
    "SLURM": [Case("sbatch launch/cluster/slurm.sbatch", skipped=CLUSTER)],
  },
  "docs/configuration.md": {
    "Look before you launch": [
      Case("python -m launch.train my_run.gin --describe", prints=r"FLOPs per token, forward +\d"),
      Case(
        "python -m launch.train my_run.gin --print_config", prints=r"TEXT_FILES = .*my_run.gin:\d"
      ),
      Case("python -m launch.train my_run.gin --dry_run", repeats="README.md"),
    ],
  },
  "docs/your_own_text.md": {
    "A tokenizer": [
      Case("cat docs/*.md", leaves=("input.txt",)),
      Case("python -m launch.vocabulary", prints=r"2,000 tokens", leaves=("own/tokenizer.json",)),
    ],
    "A run file": [Case("my_text.gin")],
    "Prepare, train, generate": [
      Case("python -m launch.prepare my_text.gin", SHORT, prints=r"padding: 0\.\d+%"),
      Case("python -m launch.train my_text.gin", SHORT, TRAINED),
      Case("python -m launch.evaluate --run_dir=runs/my_text", "--batches=1", "bits per byte"),
      Case("python -m launch.generate", "--max_tokens=8", "^The recurrence"),
    ],
  },
  "docs/data.md": {
    "Your own text": [
      Case("python -m launch.vocabulary", prints=r"2,000 pieces", leaves=("books.model",)),
      Case(
        "python -m launch.train my_run.gin gin/data/text_files_sentencepiece.gin", SHORT, TRAINED
      ),
    ],
    "Corpora": [Case("my_mixture.gin")],
    "Prepare ahead of time": [
      Case("python -m launch.prepare my_run.gin", SHORT, prints=r"train: [\d,]+ rows"),
      Case("python -m launch.prepare my_run.gin --show=2", SHORT, prints=r"--- row 1"),
      Case("python -m launch.prepare my_run.gin gin/executor/ray.gin", skipped=EXECUTOR),
      Case("python -m launch.prepare my_run.gin gin/executor/slurm.gin", skipped=EXECUTOR),
      Case("python -m launch.prepare my_run.gin --part=1/8", SHORT),
      Case("sbatch launch/cluster/prepare.sbatch", skipped=CLUSTER),
    ],
  },
  "docs/distributed_training.md": {
    "Meshes": [
      Case("export XLA_FLAGS="),
      Case(
        "python -m launch.train my_run.gin gin/mesh/zero3.gin --describe_sharding",
        prints=r"data=8 x seq=1 x model=1, ZeRO stage 3",
      ),
      Case("python -m launch.train my_run.gin gin/mesh/zero3.gin", ON_A_MESH, TRAINED),
      Case("python -m launch.train my_run.gin gin/mesh/megatron8_zero1.gin", ON_A_MESH, TRAINED),
      Case("python -m launch.train my_run.gin gin/mesh/sequence8.gin", ON_A_MESH, TRAINED),
      Case("unset XLA_FLAGS"),
    ],
    "Several hosts": [
      Case(
        "python -m launch.train my_run.gin gin/mesh/zero3.gin --run_dir=/shared/run --distributed",
        skipped="needs several hosts: tests/launch/test_several_hosts.py plays them",
      ),
      Case(
        "python -m launch.train my_run.gin gin/mesh/zero3.gin --run_dir=/shared/run --coordinator=",
        skipped="needs two hosts: tests/launch/test_several_hosts.py plays them",
      ),
    ],
  },
  "docs/long_rows.md": {
    "Train in chunks of time": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/train/time_chunks.gin",
        f"{SHORT} --gin.TIME_CHUNK=16",
        TRAINED,
        leaves=("runs/long_rows/loss.png",),
      ),
    ],
    "Carry states from step to step": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/train/carried_state.gin",
        SHORT,
        TRAINED,
        leaves=("runs/carried/loss.png",),
      ),
    ],
    "Score documents to their ends": [
      Case(
        "python -m launch.evaluate --run_dir=runs/carried --stream",
        f"{TWO_FILES} --batch_size=2 --length=2048",
        r"4096-8191 ",
        leaves=("runs/carried/evaluations/*-stream.json",),
      ),
    ],
    "Begin rows with the states of others": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/train/passed_state.gin",
        f"{SHORT} --gin.PASSED_AFTER=2",
        TRAINED,
        leaves=("runs/passed/loss.png",),
      ),
    ],
  },
  "docs/watching.md": {
    "The runs of a folder": [
      Case(
        "python -m launch.runs runs --page=runs.html",
        prints=r"first +finished +8/8",
        leaves=("runs.html",),
      ),
    ],
    "Trackers": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/trackers/wandb.gin",
        f"{WITH_SAMPLES} --gin.training.trackers.WandB.mode=offline",
        TRAINED,
        leaves=("runs/tracked/wandb/offline-run-*/*.wandb", "runs/tracked/tensorboard/*"),
      ),
    ],
    "Profiles": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin --run_dir=runs/profiled",
        skipped="traces steps of a long run: tests/training/test_profiler.py traces some",
      ),
      Case("kill -USR2 PID", skipped="tests/training/test_profiler.py sends the signal"),
      Case("pip install xprof", skipped=INSTALLS),
      Case("xprof --logdir=runs/profiled/profile", skipped="serves a page, and is not installed"),
    ],
    "When memory runs out": [
      Case("pprof -top", skipped="pprof is a program of its own, and nothing ran out of memory"),
    ],
  },
  "docs/buckets.md": {
    "Google Cloud Storage": [
      Case("make install EXTRAS=gcs", skipped=INSTALLS),
      Case("gcloud auth application-default login", skipped="needs an account"),
      Case("python -m launch.train gin/runs/griffin_quickstart.gin", skipped=BUCKET),
      Case("python -m launch.evaluate --run_dir=gs:", skipped=BUCKET),
      Case("python -m launch.generate --run_dir=gs:", skipped=BUCKET),
      Case("python -m launch.train --init_from=gs:", skipped=BUCKET),
      Case("python -m launch.convert gs:", skipped=BUCKET),
    ],
    "S3": [
      Case("make install EXTRAS=s3", skipped=INSTALLS),
      Case("export AWS_PROFILE=me", skipped="needs an account"),
      Case("python -m launch.train gin/runs/griffin_quickstart.gin", skipped=BUCKET),
      Case("python -m launch.evaluate --run_dir=s3:", skipped=BUCKET),
      Case("python -m launch.generate --run_dir=s3:", skipped=BUCKET),
      Case("python -m launch.train --init_from=s3:", skipped=BUCKET),
      Case("python -m launch.convert s3:", skipped=BUCKET),
    ],
  },
  "docs/evaluating_and_generating.md": {
    "Evaluate and generate": [
      Case(
        "python -m launch.evaluate --run_dir=runs/first --by_position",
        "--batches=1",
        r"2048-4095 ",
        leaves=("runs/first/evaluations/*.json", "runs/first/evaluations/*.png"),
      ),
      Case("python -m launch.generate --run_dir=runs/first", "--max_tokens=8", r"^def "),
      Case("XLA_FLAGS=", "--max_tokens=8", r"^def "),
      Case("XLA_FLAGS=", instead=evaluate_on_a_mesh),
    ],
    "Recall": [
      Case(
        "python -m launch.train gin/runs/griffin_induction_heads.gin",
        f"--gin.STEPS=4 --gin.WARMUP_STEPS=2 --gin.BATCH_SIZE=4 --gin.DEPTH=2 {GRIFFIN} "
        "--gin.data.recall.InductionHeads.examples=2000 "
        "--gin.data.recall.InductionHeads.heldout_examples=128",
        r"held-out loss: \d+\.\d+",
      ),
      Case("python -m launch.evaluate --run_dir=runs/recall", prints=r"0\.9-1 +\d+\.\d%"),
    ],
    "Long texts": [
      Case("python -m launch.evaluate", instead=ask_short_contexts),
      Case(
        "python -m launch.evaluate --run_dir=runs/first --data=gin/data/ruler.gin --gin.HAYSTACK",
        skipped="needs books",
      ),
    ],
    "Downstream tasks": [
      Case(
        "python -m launch.evaluate --run_dir=runs/first --harness=hellaswag",
        skipped="needs data sets from a network",
      ),
      Case(
        "python -m launch.evaluate --run_dir=runs/first --harness=my_task", prints=r"my_task.*acc"
      ),
      Case(
        "python -m launch.evaluate --run_dir=runs/first --harness=piqa",
        skipped="needs a copy of a published data set",
      ),
    ],
  },
}

# Mistakes of users, and a part of the one line that reports each.
MISTAKES = [
  ("python -m launch.train gin/runs/grifin_quickstart.gin --run_dir=runs/x", "griffin_quickstart"),
  ("python -m launch.train my_run.gin", "--run_dir"),
  ("python -m launch.train my_run.gin --run_dir=runs/x --gin.STPES=3", "STEPS"),
  ("python -m launch.train my_run.gin --run_dir=runs/x --rundir=y", "--run_?dir"),
  ("python -m launch.train my_run.gin --run_dir=runs/x --gin.STEPS=many", "STEPS"),
  (
    "python -m launch.train my_run.gin --run_dir=runs/x --gin.TEXT_FILES='no/*.txt'",
    r"no/\*\.txt",
  ),
  ("python -m launch.train my_run.gin --run_dir=runs/first", "another --run_dir"),
  ("python -m launch.train --run_dir=runs/nowhere", "runs/nowhere"),
  ("python -m launch.evaluate --run_dir=runs/nowhere", "runs/nowhere"),
  ("python -m launch.evaluate --run_dir=runs/first --contexts=8", "recall"),
  ("python -m launch.evaluate --run_dir=runs/first --checkpoint=999", "999"),
  ("python -m launch.generate --run_dir=runs/first --temperature=-1", "temperature"),
  ("python -m launch.generate --run_dir=runs/first --prompts_file=none.txt", "none.txt"),
  ("python -m launch.generate --run_dir=runs/broken", "runs/broken"),
  ("python -m launch.train --init_from=runs/broken --run_dir=runs/x", "runs/broken"),
]
