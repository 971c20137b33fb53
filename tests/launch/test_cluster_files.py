"""The files for clusters say what the schedulers understand, and start a command that exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from launch import train

FOLDER = Path(train.__file__).parent / "cluster"
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
  train.parser().parse_args(arguments)


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
  options_of(re.search(r"^srun .*$", text, flags=re.MULTILINE)[0].split())


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
