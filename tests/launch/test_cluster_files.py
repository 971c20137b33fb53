"""The files for clusters are valid for the schedulers, and start a command that exists."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import command, prepare, train
from tests.launch import dockerfiles, hosts
from training.metrics import read_metrics

FOLDER = Path(train.__file__).parent / "cluster"
ROOT = FOLDER.parents[1]
# Long options of sbatch (its manual page, version 24.05) that such a file may need.
SBATCH_OPTIONS = {
  "account", "array", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency", "error",
  "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint",
  "job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist", "nodes",
  "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue", "signal",
  "switches", "time",
}  # fmt: skip


def options_of(command: list[str]) -> None:
  """Parses the arguments of a `python -m launch.train ...`; exits on one that does not exist."""
  arguments = command[command.index("launch.train") + 1 :]
  train.parser().parse_args([a for a in arguments if not a.startswith("--gin.")])


def test_slurm_file():
  file = FOLDER / "slurm.sbatch"
  subprocess.run(["bash", "-n", str(file)], check=True)
  text = file.read_text()
  directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, flags=re.MULTILINE)
  assert len(directives) == text.count("#SBATCH")
  given = dict(directives)
  assert given.keys() <= SBATCH_OPTIONS
  assert int(given["nodes"]) > 1
  assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", given["time"])
  assert re.fullmatch(r"(B:)?[A-Z]+@\d+", given["signal"])
  # Directives after the first command would be ignored.
  assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
  # One process per GPU: JAX's SLURM detection gives each process the GPU of its local index.
  assert given["ntasks-per-node"] == given["gpus-per-node"]
  options_of(re.search(r"^srun (.*) \|\|", text, flags=re.MULTILINE)[1].split())


def test_slurm_file_of_a_preparation():
  file = FOLDER / "prepare.sbatch"
  subprocess.run(["bash", "-n", str(file)], check=True)
  text = file.read_text()
  directives = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, flags=re.MULTILINE)
  assert len(directives) == text.count("#SBATCH")
  assert dict(directives).keys() <= SBATCH_OPTIONS
  # As SLURM would run a task of the array: shares count from 1, as the array does.
  assert re.fullmatch(r"1-\d+", dict(directives)["array"])
  command = text[text.index("exec ") :].replace('"$@"', "my_run.gin --gin.STEPS=5")
  environment = os.environ | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
  words = subprocess.run(
    ["bash", "-c", command.replace("exec .venv/bin/python", "echo python")],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  assert words[:3] == ["python", "-m", "launch.prepare"]
  args = prepare.parser().parse_args([w for w in words[3:] if not w.startswith("--gin.")])
  assert (args.config, args.part) == (["my_run.gin"], "3/8")


def jobset_arguments() -> list[str]:
  """Returns the arguments that the JobSet passes to `launch.train`."""
  job_set = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
  (job,) = job_set["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  return container["command"][3:]


def slurm_arguments() -> list[str]:
  """Returns the arguments that the SLURM script passes to `launch.train`, as documented."""
  page = (ROOT / "docs" / "getting_started.md").read_text()
  config, _, *more = shlex.split(re.search(r"^sbatch \S+ (.*)$", page, flags=re.MULTILINE)[1])
  return [config, *more]


@pytest.mark.parametrize("arguments", [jobset_arguments, slurm_arguments])
def test_the_configuration_fits_sixteen_devices(arguments):
  """Both files start 16 devices: a run file for one device would end every process."""
  told = subprocess.run(
    [sys.executable, "-m", "launch.train"]
    + [a for a in arguments() if a != "--distributed" and not a.startswith("--run_dir")]
    + ["--describe_sharding"],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=16"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert told.returncode == 0, told.stderr
  assert re.search(r"mesh +data=16 x seq=1 x model=1", told.stdout)


# Stands for srun: the next status of a list, or the training itself on this machine.
SRUN = """\
#!{python}
import os, pathlib, sys
folder = pathlib.Path("{folder}")
(folder / "lives").open("a").write("x")
statuses = folder / "statuses"
if statuses.exists():
  first, *rest = statuses.read_text().split()
  statuses.write_text(" ".join(rest))
  sys.exit(int(first))
command = sys.argv[sys.argv.index("-m"):]
command.remove("--distributed")
os.execv(sys.executable, [sys.executable, *command, *{extra!r}])
"""
SCONTROL = """\
#!/bin/sh
test "$1 $2" = "requeue 77" && echo x >> {folder}/requeued
"""


def slurm(folder: Path, *extra: str, most: int = 40, started=None) -> list[int]:
  """Submits the SLURM script to a simulated scheduler that requeues it on request.

  Returns the exit status of each start.
  """
  tools = folder / "tools"
  tools.mkdir()
  (tools / "srun").write_text(SRUN.format(python=sys.executable, folder=folder, extra=extra))
  (tools / "scontrol").write_text(SCONTROL.format(folder=folder))
  for tool in tools.iterdir():
    tool.chmod(0o755)
  statuses = []
  while len(statuses) < most:
    requeued = folder / "requeued"
    requeued.unlink(missing_ok=True)
    job = subprocess.Popen(
      ["bash", FOLDER / "slurm.sbatch", folder / "run.gin", folder / "run", "--gin.STEPS=40"],
      cwd=ROOT,
      env=os.environ
      | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": str(len(statuses)),
      },
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    if started:
      started(job, len(statuses))
    job.communicate(timeout=240)
    statuses.append(job.returncode)
    if not requeued.exists():
      break
  return statuses


@pytest.mark.parametrize(
  ("statuses", "lives"),
  [
    ([0], 1),
    ([command.PREEMPTED, command.PREEMPTED, 0], 3),
    ([1, 137, command.PREEMPTED, 0], 4),
    # A mistake and Ctrl-C end the job; hosts that fail do, at last; preemptions never.
    ([command.USER_ERROR, 0], 1),
    ([command.PREEMPTED, command.USER_ERROR, 0], 2),
    ([command.INTERRUPTED, 0], 1),
    ([1] * 40, 21),
    ([command.PREEMPTED] * 30 + [0], 31),
  ],
)
def test_slurm_starts_again_what_can_go_on(tmp_path, statuses, lives):
  (tmp_path / "statuses").write_text(" ".join(map(str, statuses)))
  assert slurm(tmp_path) == statuses[:lives]


def test_slurm_goes_on_after_sigterm(tmp_path):
  """A real training gets SIGTERM; the requeued job finishes it with the same arguments."""
  hosts.write_run(tmp_path, steps=50)  # An argument of the job makes them 40.

  def preempt(job, life):
    if life == 0:
      hosts.wait_for_step(tmp_path, "run", 3, [job])
      (child,) = subprocess.run(
        ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True
      ).stdout.split()
      os.kill(int(child), signal.SIGTERM)

  arguments = ("--gin.launch.experiment.Experiment.samples=()",)
  found = slurm(tmp_path, *arguments, started=preempt)
  assert found == [command.PREEMPTED, 0]
  steps = [record["step"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
  assert sorted(set(steps)) == list(range(1, 41))


def test_jobset_file():
  job_set = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
  assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job_set["metadata"]["name"])
  assert job_set["spec"].keys() <= {
    "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend",
    "coordinator", "managedBy", "ttlSecondsAfterFinished",
  }  # fmt: skip
  (job,) = job_set["spec"]["replicatedJobs"]
  assert job.keys() == {"name", "replicas", "template"}
  spec = job["template"]["spec"]
  # JAX counts on as many pods as hosts, each of which fails the whole set.
  assert spec["parallelism"] == spec["completions"]
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  (container,) = pod["containers"]
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert x * y == chips * spec["parallelism"]
  options_of(container["command"])


def test_jobset_fits_the_image():
  """The container's folder, command and user are those of the Dockerfile for TPUs."""
  job_set = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
  (job,) = job_set["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  dockerfile = ROOT / "docker/tpu.Dockerfile"
  app = dockerfiles.value_of(dockerfile, "WORKDIR")
  assert container["workingDir"] == app
  found = dockerfiles.instructions(dockerfile)
  settings = [value for name, value in found if name in ("ENV", "ARG")]
  # `python` is that of the environment that the image installs.
  assert container["command"][0] == "python"
  assert any(f'PATH="{app}/.venv/bin:$PATH"' in value for value in settings)
  assert f"USER_ID={pod['securityContext']['fsGroup']}" in settings
  copied = dockerfiles.context()
  assert "launch/train.py" in copied
  for argument in container["command"][3:]:
    assert not argument.endswith(".gin") or argument in copied, argument
  # The run directory lies in a volume that the pod has, or in a bucket.
  (run_dir,) = [a.partition("=")[2] for a in container["command"] if a.startswith("--run_dir=")]
  (mount,) = container["volumeMounts"]
  assert run_dir.startswith(f"{mount['mountPath']}/")
  assert mount["name"] in [volume["name"] for volume in pod["volumes"]]


@pytest.mark.parametrize(
  ("status", "starts_again"),
  [(command.USER_ERROR, False), (command.PREEMPTED, True), (1, True), (137, True)],
)
def test_jobset_starts_again_what_can_go_on(status, starts_again):
  """The rules of Kubernetes' pod failure policy and of JobSet's failure policy, first match
  first.
  """
  spec = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())["spec"]
  (job,) = spec["replicatedJobs"]
  job = job["template"]["spec"]
  containers = {c["name"] for c in job["template"]["spec"]["containers"]}
  reason = "BackoffLimitExceeded"
  assert job["backoffLimit"] == 0
  for rule in job["podFailurePolicy"]["rules"]:
    codes = rule["onExitCodes"]
    assert codes["containerName"] in containers
    assert (rule["action"], codes["operator"]) == ("FailJob", "In")
    if status in codes["values"]:
      reason = "PodFailurePolicy"
      break
  actions = [
    rule["action"]
    for rule in spec["failurePolicy"]["rules"]
    if reason in rule["onJobFailureReasons"]
  ]
  assert (actions[:1] != ["FailJobSet"]) == starts_again
  assert spec["failurePolicy"]["maxRestarts"] > 0


def test_help_says_the_statuses():
  told = train.parser().format_help()
  for status in (0, command.USER_ERROR, command.PREEMPTED, command.INTERRUPTED):
    assert re.search(rf"^  {status} ", told, flags=re.MULTILINE)
