"""Reads the steps of a documentation page: files to write, commands to type."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
# In the order in which they are read and typed; the site's navigation has the same.
PAGES = (
  "README.md",
  "docs/getting_started.md",
  "docs/configuration.md",
  "docs/models.md",
  "docs/your_own_text.md",
  "docs/data.md",
  "docs/distributed_training.md",
  "docs/long_rows.md",
  "docs/several_hosts.md",
  "docs/watching.md",
  "docs/buckets.md",
  "docs/planning.md",
  "docs/comparing.md",
  "docs/evaluating_and_generating.md",
  "docs/converting_and_finetuning.md",
  "docs/from_nnx.md",
  "docs/add_an_architecture.md",
  "docs/benchmarks.md",
  "docs/limitations.md",
  "docs/design/configuration.md",
  "docs/design/models.md",
  "docs/design/kernels.md",
  "docs/design/sharding.md",
  "docs/design/data.md",
  "docs/design/checkpoints.md",
  "docs/design/planning.md",
  "docs/design/replay.md",
  "docs/design/comparison.md",
  "docs/design/conversion.md",
  "docs/design/contract.md",
)
# Runs in a separate folder: test_add_an_architecture.py.
RECIPE = "docs/add_an_architecture.md"


class Step(NamedTuple):
  """One step: a command to type, a file to write, or Python to run.

  Attributes:
    kind: 'sh', 'file' or 'python'.
    text: the command without its comment, or the contents.
    name: of a file.
  """

  kind: str
  text: str
  name: str = ""


def sections(page: Path) -> dict[str, list[Step]]:
  """The steps of a page by its headings (`## ...`), in order; headings without any are left out.

  Steps before the first heading are under ''.
  """
  parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
  texts = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
  found = {title: steps(text) for title, text in texts.items()}
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


def paired(cases: dict[str, dict[str, list]]) -> list:
  """Pairs each step of every page but the recipe with its case, as parameters of a test.

  Args:
    cases: page to section to the cases of its steps.

  Returns:
    (step, case) in the order of `PAGES`; None where there is no step or no case.
  """
  pairs = []
  for page in PAGES:
    if page == RECIPE:
      continue
    found, listed = sections(ROOT / page), cases.get(page, {})
    for title in [*found, *(title for title in listed if title not in found)]:
      for step, case in itertools.zip_longest(found.get(title, []), listed.get(title, [])):
        name = f"{Path(page).stem}: {label(step or case.starts)}"
        pairs.append(pytest.param(step, case, id=name))
  return pairs


def typed_on(page: str) -> set[str]:
  """The commands and files of a page."""
  return {step.text for listed in sections(ROOT / page).values() for step in listed}


def label(step: Step | str) -> str:
  """Returns a test's name: the beginning of the step."""
  words = step if isinstance(step, str) else step.name or step.text
  return re.sub(r"[^\w.=/-]+", " ", words)[:90].strip()
