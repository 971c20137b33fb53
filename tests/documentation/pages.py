"""Reads what a page of documentation tells its reader to do: files to write, commands to type."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Step(NamedTuple):
  """One thing to do: a command to type, a file to write, or Python to run.

  Attributes:
    kind: 'sh', 'file' or 'python'.
    text: the command without its comment, or the contents.
    name: of a file.
  """

  kind: str
  text: str
  name: str = ""


def sections(page: Path) -> dict[str, list[Step]]:
  """The steps of a page by its headings (`## ...`), in order; headings without any are left out."""
  parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
  found = {title: steps(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}
  return {title: listed for title, listed in found.items() if listed}


def blocks(text: str) -> list[tuple[str, str]]:
  """The fenced blocks of a page: language and contents."""
  return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def steps(text: str) -> list[Step]:
  """The steps of all fenced blocks.

  A block in no language whose first line names no file is shown only.
  """
  result = []
  for language, block in blocks(text):
    name = re.match(r"# (\w+\.(?:gin|py))\n", block)
    if language == "sh":
      result += [Step("sh", command) for command in commands(block)]
    elif name:
      result.append(Step("file", block, name[1]))
    elif language == "python":
      result.append(Step("python", block))
  return result


def commands(block: str) -> list[str]:
  """The commands of a shell block: continued lines joined, comments dropped."""
  lines = block.replace("\\\n", " ").splitlines()
  stripped = (re.sub(r"\s+#\s.*$|^#.*$", "", line) for line in lines)
  return [" ".join(line.split()) for line in stripped if line.strip()]


def paired(page: Path, cases: dict[str, list]) -> list:
  """The steps of the named sections, each beside its case, as parameters of a test.

  None stands where one of the lists is shorter.
  """
  found = sections(page)
  return [
    pytest.param(step, case, id=label(step or case.starts))
    for title, listed in cases.items()
    for step, case in itertools.zip_longest(found.get(title, []), listed)
  ]


def label(step: Step | str) -> str:
  """A test's name: how the step begins."""
  words = step if isinstance(step, str) else step.name or step.text
  return re.sub(r"[^\w.=/-]+", " ", words)[:90].strip()
