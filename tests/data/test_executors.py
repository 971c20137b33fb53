"""Rows are the same wherever their shards are packed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pickle
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from data import corpora, dataset, executors, preparation, prepare, rows, shard_workers, slurm_jobs
from data.files import CorpusError
from data.preparation import PreparationError
from data.tokenizers import Bytes
from tests.data.deadly import Deadly
from tests.data.test_shard_packing import is_alive, wait_for
from tests.launch.test_cluster_files import SBATCH_OPTIONS
from tests.preparations import SOCKET

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
  """A folder whose name is hard to quote."""
  found = tmp_path / "a folder's 100%a"
  found.mkdir()
  return found


@pytest.fixture
def spec(folder):
  """Makes a dataset of 3 shards, one of them with a deadly document."""
  rng = random.Random(0)
  texts = ["".join(rng.choices("abc d", k=rng.randrange(200))) for _ in range(100)]
  texts[50] = "a deadly document"
  file = folder / "a.jsonl"
  file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

  def make(name, executor, deaths=0, fails=False):
    (folder / f"deaths_{name}").mkdir()
    return dataset.TextDataset(
      corpora.JsonLines(str(file), heldout_fraction=0.0),
      Deadly(str(folder / f"deaths_{name}"), deaths, fails),
      32,
      "all",
      str(folder / name),
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


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A cluster of Ray that was started elsewhere, and knows nothing of this project."""
  pytest.importorskip("ray")
  ray = [str(Path(sysconfig.get_path("scripts"), "ray"))]
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  monkeypatch.setenv("RAY_AUTH_MODE", "token")
  monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
  own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  own["RAY_USAGE_STATS_ENABLED"] = "0"
  command = ["start", "--head", "--num-cpus=2", "--include-dashboard=false", "--block"]
  command += [f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1"]
  command += ["--object-store-memory=80000000"]
  head = subprocess.Popen(
    ray + command, cwd=tmp_path, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  try:
    monkeypatch.setenv("RAY_ADDRESS", address)
    wait_for(lambda: head.poll() is not None or answers(address))
    assert head.poll() is None
    yield
  finally:
    head.terminate()
    head.wait(60)


def answers(address):
  with contextlib.suppress(OSError):
    socket.create_connection(address.split(":")).close()
    return True
  return False


def test_ray_packs_the_same_rows_though_a_worker_is_killed(spec, cluster, folder, monkeypatch):
  (folder / "data").mkdir()
  (folder / "data/__init__.py").write_text("raise ImportError('the wrong data')")
  monkeypatch.chdir(folder)
  monkeypatch.setenv(SOCKET, "")
  alone, spread = spec("alone", executors.Local()), spec("spread", executors.Ray(), deaths=1)
  spread = dataclasses.replace(spread, cache_dir="spread")
  assert alone.cache_path.name == spread.cache_path.name
  prepare.prepare(alone, ignore, workers=1)
  events = []
  preparation.prepare([spread], events.append, workers=2)
  assert deaths(spread) == 1
  assert fingerprint(spread) == fingerprint(alone)
  assert events[-1].finished
  assert events[-1].documents == 100


@pytest.mark.parametrize(
  ("fails", "told"),
  [(False, "its process was ended"), (True, "OSError: .*the disk of this test failed")],
)
def test_a_shard_that_ray_cannot_pack_is_named(spec, fails, told, monkeypatch):
  pytest.importorskip("ray")
  text = spec("failing", executors.Ray(), deaths=9, fails=fails)
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
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
  monkeypatch.delenv("RAY_ADDRESS", raising=False)
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "ray" else found(name)
  )
  with pytest.raises(PreparationError, match="needs the extra 'ray': make install EXTRAS=ray"):
    prepare.prepare(spec("without", executors.Ray()), ignore)


# Runs the jobs of an array as SLURM would: from 1 to N, each with its number, and an output file,
# of which it takes %a and quotes as src/sbatch/opt.c does.
SBATCH = """#!/bin/bash
[ "$1 $2" = "--parsable --wait" ] || exit 2
echo "$2 $3" >> {folder}/queued
echo "7;here"
count=$(sed -n 's/^#SBATCH --array=1-//p' "$3")
eval "output=$(sed -n 's/^#SBATCH --output=//p' "$3")"
script=$(realpath "$3")
cd /
for i in $(seq "$count"); do
  file=$(sed "s/%%/@/g; s/%a/$i/g; s/@/%/g" <<< "$output")
  SLURM_ARRAY_TASK_ID=$i bash "$script" > "$file" 2>&1 || worst=1
done
exit ${{worst:-0}}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A folder of commands with an sbatch that runs the jobs here."""
  found = tmp_path / "bin"
  found.mkdir()
  (found / "sbatch").write_text(SBATCH.format(folder=found))
  (found / "sbatch").chmod(0o755)
  monkeypatch.setenv("PATH", f"{found}:{os.environ['PATH']}")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  return found


def test_slurm_jobs_pack_the_same_rows(spec, slurm, monkeypatch, folder):
  alone = spec("alone", executors.Local())
  shared = spec("shared", executors.Slurm(jobs=2, options=("--partition=cpu",)))
  shared = dataclasses.replace(shared, cache_dir="shared")
  monkeypatch.chdir(folder)
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
  assert f"cd {shlex.quote(os.getcwd())}\n" in text
  command = text.replace(f"exec {sys.executable} -P -m data.prepare", "exec cat")
  said = subprocess.run(
    ["bash", "-c", command], env={"SLURM_ARRAY_TASK_ID": "2"} | os.environ, capture_output=True
  ).stdout
  assert said == b"of job 2"


def test_ctrl_c_cancels_slurm_jobs_and_they_go_on_if_the_command_is_killed(spec, slurm, tmp_path):
  """Ctrl-C in a terminal is a signal to all processes of the command, sbatch among them."""
  (slurm / "sbatch").write_text(f"#!/bin/sh\necho $$ > {slurm}/queued\necho 7\nexec sleep 300\n")
  (slurm / "scancel").write_text(f'#!/bin/sh\nsleep 0.5\necho "$*" > {slurm}/cancelled\n')
  (slurm / "scancel").chmod(0o755)
  (tmp_path / "spec").write_bytes(pickle.dumps([spec("stopped", executors.Slurm())]))
  code = (
    "import pickle; from data import preparation; preparation.prepare(pickle.load(open(0, 'rb')))"
  )
  for number in (signal.SIGKILL, signal.SIGINT):
    with (tmp_path / "spec").open("rb") as request:
      command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=request,
        stderr=subprocess.PIPE,
        env=os.environ | {SOCKET: ""},
        start_new_session=True,
      )
    wait_for((slurm / "queued").is_file)
    time.sleep(0.5)  # so that the process waits for its jobs
    job = (slurm / "queued").read_text().strip()
    (slurm / "queued").unlink()
    if number == signal.SIGKILL:
      command.kill()
    else:
      os.killpg(command.pid, number)
    command.communicate(timeout=60)
    wait_for(lambda job=job: not is_alive(job))
    if number == signal.SIGINT:
      wait_for((slurm / "cancelled").is_file)
      assert (slurm / "cancelled").read_text() == "7\n"
    else:
      time.sleep(1)
      assert not (slurm / "cancelled").exists()


def test_what_a_slurm_job_found_wrong_is_told(spec, slurm, folder):
  text = spec("wrong", executors.Slurm(jobs=1))
  with (folder / "a.jsonl").open("a") as file:
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
