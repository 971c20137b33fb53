"""Reads Dockerfiles and .dockerignore as an engine does."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.documentation.pages import ROOT


class Instruction(NamedTuple):
  """One instruction, such as WORKDIR, and what follows it."""

  name: str
  value: str


def instructions(file: Path) -> list[Instruction]:
  """The instructions of a Dockerfile, without comments, continued lines joined."""
  text = re.sub(r"^\s*#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE)
  lines = text.replace("\\\n", " ").splitlines()
  return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]


def value_of(file: Path, name: str) -> str:
  """What follows an instruction that a Dockerfile has once."""
  (found,) = [value for instruction, value in instructions(file) if instruction == name]
  return found


def context() -> list[str]:
  """The files that an engine would get: those of git, without those of .dockerignore."""
  listed = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  return [name for name in listed if (ROOT / name).is_file() and not ignored(name)]


def ignored(name: str) -> bool:
  """Whether .dockerignore leaves a file out: it or a folder above it matches a pattern."""
  lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
  patterns = [line for line in lines if line and not line.startswith("#")]
  parts = name.split("/")
  for end in range(1, len(parts) + 1):
    for pattern in patterns:
      anywhere = pattern.startswith("**/")
      path = parts[end - 1] if anywhere else "/".join(parts[:end])
      # In Docker's patterns a star stays inside a folder.
      if path.count("/") == pattern.removeprefix("**/").count("/") and fnmatch.fnmatchcase(
        path, pattern.removeprefix("**/")
      ):
        return True
  return False
