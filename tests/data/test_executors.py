"""Rows are the same wherever their shards are packed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data import corpora, dataset, executors, prepare, rows, shard_workers, slurm_jobs
from data.files import CorpusError
from data.preparation import PreparationError
from data.tokenizers import Bytes
from tests.data.deadly import Deadly
from tests.launch.test_cluster_files import SBATCH_OPTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec(tmp_path):
  """Makes a dataset of 3 shards, one of them with a deadly document."""
  rng = random.Random(0)
  texts = ["".join(rng.choices("abc d", k=rng.randrange(200))) for _ in range(100)]
  texts[50] = "a deadly document"
  file = tmp_path / "a.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

  def make(name, executor, deaths=0, fails=False):
    (tmp_path / f"deaths_{name}").mkdir()
    return dataset.TextDataset(
      corpora.JsonLines(str(file), heldout_fraction=0.0),
      Deadly(str(tmp_path / f"deaths_{name}"), deaths, fails),
      32,
      "all",
      str(tmp_path / name),
      shard_bytes=file.stat().st_size // 3 + 1,
      executor=executor,
    )

  return make


def fingerprint(text):
  opened = rows.RowFiles(text.cache_path, verify=True).check(Bytes(), 32)
  assert len(opened.manifest.shards) == 3
  return opened.fingerprint


def deaths(text):
  return len(list(Path(text.vocabulary.folder).iterdir()))


def ignore(event):
  pass


def test_ray_packs_the_same_rows_though_a_worker_is_killed(spec):
  pytest.importorskip("ray")
  alone, spread = spec("alone", executors.Local()), spec("spread", executors.Ray(), deaths=1)
  assert alone.cache_path.name == spread.cache_path.name
  prepare.prepare(alone, ignore, workers=1)
  events = []
  prepare.prepare(spread, events.append, workers=2)
  assert deaths(spread) == 1
  assert fingerprint(spread) == fingerprint(alone)
  assert events[-1]["finished"]
  assert events[-1]["documents"] == 100


@pytest.mark.parametrize(
  ("fails", "told"),
  [(False, "its process was ended"), (True, "OSError: .*the disk of this test failed")],
)
def test_a_shard_that_ray_cannot_pack_is_named(spec, fails, told):
  pytest.importorskip("ray")
  text = spec("failing", executors.Ray(), deaths=9, fails=fails)
  with pytest.raises(PreparationError, match=rf"shard 1 of 3 .*failed 3 times: {told}") as caught:
    prepare.prepare(text, ignore, workers=2)
  assert fails or deaths(text) == 3  # Ray's worker fails again in the same process.
  assert "\n" not in str(caught.value)


def test_ray_that_does_not_answer_is_one_line(spec):
  pytest.importorskip("ray")
  text = spec("nowhere", executors.Ray("127.0.0.1:9"))
  with pytest.raises(PreparationError, match=r"Ray does not answer at '127.0.0.1:9': .*refused"):
    prepare.prepare(text, ignore)


def test_ray_that_is_not_installed_is_one_line(spec, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
  )
  with pytest.raises(PreparationError, match="needs the extra 'ray': make install EXTRAS=ray"):
    prepare.prepare(spec("without", executors.Ray()), ignore)


# Runs the jobs of an array as SLURM would: from 1 to N, each with its number, and an output file.
SBATCH = """#!/bin/bash
[ "$1 $2" = "--parsable --wait" ] || exit 2
echo "$2 $3" >> {folder}/queued
echo "7;here"
count=$(sed -n 's/^#SBATCH --array=1-//p' "$3")
output=$(sed -n 's/^#SBATCH --output=//p' "$3")
for i in $(seq "$count"); do
  SLURM_ARRAY_TASK_ID=$i bash "$3" > "${{output/\\%a/$i}}" 2>&1 || worst=1
done
exit ${{worst:-0}}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A folder of commands with an sbatch that runs the jobs here."""
  folder = tmp_path / "bin"
  folder.mkdir()
  (folder / "sbatch").write_text(SBATCH.format(folder=folder))
  (folder / "sbatch").chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  return folder


def test_slurm_jobs_pack_the_same_rows(spec, slurm, monkeypatch):
  alone = spec("alone", executors.Local())
  shared = spec("shared", executors.Slurm(jobs=2, options=("--partition=cpu",)))
  prepare.prepare(alone, ignore, workers=1)
  monkeypatch.setattr(shard_workers, "_pack_some", None)  # Nothing is packed in this process.
  prepare.prepare(shared, ignore, workers=1)
  assert fingerprint(shared) == fingerprint(alone)
  assert len((slurm / "queued").read_text().splitlines()) == 1
  assert [path.name for path in shared.cache_path.parent.iterdir() if path.is_dir()] == [
    shared.cache_path.name
  ]


def test_the_script_of_slurm_jobs_is_valid(tmp_path):
  folder = tmp_path / "a folder's"
  folder.mkdir()
  text = slurm_jobs.script(executors.Slurm(cores=4, options=("--time=1:00:00",)), folder, 3)
  subprocess.run(["bash", "-n"], input=text, text=True, check=True)
  directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, flags=re.MULTILINE)
  assert len(directives) == text.count("#SBATCH")
  given = dict(directives)
  assert given.keys() <= SBATCH_OPTIONS
  assert (given["array"], given["cpus-per-task"], given["time"]) == ("1-3", "4", "1:00:00")
  # Directives after the first command would be ignored.
  assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
  (folder / "2.request").write_text("of job 2")
  command = text.replace(f"exec {sys.executable} -P -m data.prepare", "exec cat")
  said = subprocess.run(
    ["bash", "-c", command], env={"SLURM_ARRAY_TASK_ID": "2"} | os.environ, capture_output=True
  ).stdout
  assert said == b"of job 2"


def test_what_a_slurm_job_found_wrong_is_told(spec, slurm, tmp_path):
  text = spec("wrong", executors.Slurm(jobs=1))
  with (tmp_path / "a.jsonl").open("a") as file:
    file.write("no JSON\n")
  with pytest.raises(CorpusError, match=r"a\.jsonl:101"):
    prepare.prepare(text, ignore, workers=1)


def test_slurm_that_is_not_here_or_refuses_is_one_line(spec, slurm, monkeypatch):
  text = spec("refused", executors.Slurm())
  (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
  with pytest.raises(PreparationError, match=r"SLURM took no job: .*invalid partition.*options"):
    prepare.prepare(text, ignore)
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(PreparationError, match=r"executors\.Slurm needs sbatch"):
    prepare.prepare(text, ignore)


def test_rows_that_stay_on_another_machine_are_one_line(spec, monkeypatch):
  monkeypatch.setattr(shard_workers, "_SECONDS_TO_SEE", 0.0)
  monkeypatch.setattr(shard_workers, "_pack_elsewhere", lambda *arguments: None)
  with pytest.raises(PreparationError, match=r"shard 0 was packed on another machine, and is not"):
    prepare.prepare(spec("elsewhere", executors.Ray()), ignore)
