"""A job per run of a sweep, for the schedulers of clusters, from the user's own job file."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from base import buckets, paths, small_files
from base.errors import UserError

_SCRIPT, FOLDER = "jobs.sh", "jobs"
# Of launch.train in a JobSet: what the sweep sets itself.
_REPLACED = re.compile(r"--(gin\.|run_dir\b)")
# The names of pods have a part of their own behind the JobSet's, and 63 characters in all.
_LONGEST_NAME = 30


@dataclasses.dataclass(frozen=True)
class Job:
  """A training to start.

  Attributes:
    says: what it is, in a line.
    run_dir: its run directory.
    arguments: arguments of launch.train but the run directory, a gin file first.
  """

  says: str
  run_dir: Path
  arguments: tuple[str, ...]


def write(template: Path, jobs: Sequence[Job], output: Path) -> list[str]:
  """Writes jobs into the sweep's folder.

  Args:
    template: a script for sbatch that takes what `launch/cluster/slurm.sbatch` takes, or a JobSet
      in YAML whose container starts launch.train.
    jobs: a job for each run.
    output: the sweep's folder; where it is in a bucket, the jobs are written into the working
      directory, under the name and a digest of that folder.

  Returns:
    The command, in words, that queues the jobs.

  Raises:
    UserError: the template is neither.
  """
  if template.suffix in (".yaml", ".yml"):
    return _job_sets(template, jobs, output)
  return _script(template, jobs, output)


def _script(template: Path, jobs: Sequence[Job], output: Path) -> list[str]:
  if not re.search(r"^#SBATCH\b", _text(template), flags=re.MULTILINE):
    raise UserError(
      f"{paths.shown(template)} has no line that starts with #SBATCH, and its name does not end in "
      ".yaml. Name a script as launch/cluster/slurm.sbatch, or a JobSet as "
      "launch/cluster/gke_jobset.yaml."
    )
  lines = ["#!/bin/sh", "# Queues a job for each run of the sweep that is not finished.", "set -e"]
  # Jobs start in the folder where they were queued, and take .venv and the gin files from there.
  lines.append(f"cd {shlex.quote(os.getcwd())}")
  for job in jobs:
    first, *more = job.arguments
    lines.append(shlex.join(["sbatch", str(template), first, str(job.run_dir), *more]))
  file = _place(output, _SCRIPT)
  file.parent.mkdir(parents=True, exist_ok=True)
  small_files.replace(file, "".join(line + "\n" for line in lines))
  return ["sh", paths.shown(file)]


def _job_sets(template: Path, jobs: Sequence[Job], output: Path) -> list[str]:
  job_set = _job_set(template)
  folder = _place(output, FOLDER)
  folder.mkdir(parents=True, exist_ok=True)
  for old in folder.glob("*.yaml"):
    if re.fullmatch(r"\d{3,}", old.stem):  # the user's own files stay
      old.unlink()
  for number, job in enumerate(jobs):
    own = copy.deepcopy(job_set)
    own["metadata"]["name"] = _name(own["metadata"], job)
    for words in _commands(own):
      start = words.index("launch.train") + 1
      words[start:] = [*job.arguments, f"--run_dir={job.run_dir}", *_kept(words[start:])]
    text = yaml.safe_dump(own, sort_keys=False)
    small_files.replace(folder / f"{number:03d}.yaml", f"# {' '.join(job.says.split())}\n{text}")
  return ["kubectl", "apply", "-f", paths.shown(folder)]


def _place(output: Path, name: str) -> Path:
  """Where jobs are written: for a bucket in the working directory, under the sweep's own name."""
  if not buckets.in_bucket(output):
    return output / name
  return Path.cwd() / f"{output.name}-{_digest(output)}-{name}"


def _digest(path: Path) -> str:
  return f"{zlib.crc32(os.fsencode(str(path))):08x}"


def _name(metadata: dict[str, Any], job: Job) -> str:
  """A name that no other run has: JobSets of one name, also of another sweep, would be one."""
  base = str(metadata.get("name", "sweep"))[:_LONGEST_NAME].rstrip("-.")
  return f"{base}-{_digest(job.run_dir)}"


def _kept(words: Sequence[Any]) -> list[Any]:
  """The arguments of launch.train in a JobSet that the sweep does not set itself."""
  kept, waiting = [], iter(words)
  for word in waiting:
    if _REPLACED.match(str(word)):
      if "=" not in str(word):
        next(waiting, None)  # its value
    elif not str(word).endswith(".gin"):
      kept.append(word)
  return kept


def _job_set(template: Path) -> dict[str, Any]:
  """Reads a JobSet whose containers start launch.train."""
  try:
    found = yaml.safe_load(_text(template))
    if found["kind"] == "JobSet" and isinstance(found["metadata"], dict) and _commands(found):
      return found
  except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
    pass
  raise UserError(
    f"{paths.shown(template)} is not a JobSet whose container has a command with launch.train, as "
    "launch/cluster/gke_jobset.yaml is. Name such a file."
  )


def _commands(job_set: dict[str, Any]) -> list[list[Any]]:
  """Returns the lists of words in a JobSet that start launch.train."""
  found = []
  for job in job_set["spec"]["replicatedJobs"]:
    for container in job["template"]["spec"]["template"]["spec"]["containers"]:
      for name in ("command", "args"):
        words = container.get(name)
        if isinstance(words, list) and "launch.train" in words:
          found.append(words)
  return found


def _text(template: Path) -> str:
  try:
    return template.read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or "it is no text"
    raise UserError(f"{paths.shown(template)} cannot be read: {reason}.") from None
