"""Runs the page that adds an architecture, unchanged except for fewer steps."""

from __future__ import annotations

import json
import re

import pytest

from tests.documentation import pages
from tests.documentation.session import Session

PAGE = pages.ROOT / "docs" / "add_an_architecture.md"
FEWER = (
  ("--gin.STEPS=200", "--gin.STEPS=4 --gin.WARMUP_STEPS=2 --gin.BATCH_SIZE=1"),
  ("'STEPS = 160'", "'STEPS = 4', 'WARMUP_STEPS = 2'"),
  ("SEEDS = (0, 1)", "SEEDS = (0,)"),
)


def script(page: str) -> str:
  """Joins all blocks of the page into one script, which writes the files and runs the commands."""
  for long, short in FEWER:
    assert page.count(long) == 1, f"the page no longer says {long}"
    page = page.replace(long, short)
  parts = ["set -euo pipefail"]
  for language, block in pages.blocks(page):
    if language == "sh":
      parts.append(block)
    else:
      name = re.match(r"# (\w+\.(?:py|gin))\n", block)
      assert name, f"a block does not begin with its file's name: {block[:40]!r}"
      parts.append(f"cat > {name[1]} <<'END OF FILE'\n{block}END OF FILE\n")
  return "\n".join(parts)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """Runs the page; returns its folder and what it printed."""
  session = Session(tmp_path_factory.mktemp("recipe") / "griffin")
  shown = session.type(script(PAGE.read_text(encoding="utf-8"))).out
  return session.folder.parent / "architectures", shown


def test_the_new_architecture_keeps_the_contract_without_a_refusal(done):
  _, shown = done
  outcomes = [line.split("  ")[0] for line in shown.splitlines()]
  assert outcomes.count("passed") >= 45
  assert not {"failed", "refused"} & set(outcomes)


def test_it_is_trained_and_compared_with_griffin(done):
  folder, _ = done
  assert (folder / "runs" / "min_gru_text" / "checkpoints" / "4").is_dir()
  data = json.loads((folder / "against_griffin" / "report" / "data.json").read_text())
  (figure,) = [figure for figure in data["figures"] if figure["name"] == "scaling_difference"]
  assert [series["name"] for series in figure["series"]] == ["minGRU"]
  runs = {path.name.split("-")[0] for path in (folder / "against_griffin/runs").iterdir()}
  assert runs == {"griffin", "mingru"}
  assert (folder / "against_griffin" / "report" / "index.html").is_file()
