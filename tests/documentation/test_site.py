"""The site of docs/ has a page for every folder of the code, and lists every page."""

from __future__ import annotations

import re

import pytest

from tests.documentation.pages import ROOT
from tests.test_floors import FLOORS

ROOMS = sorted(FLOORS)
DOCS = ROOT / "docs"


def test_every_room_has_an_api_page():
  assert sorted(page.stem for page in (DOCS / "api").glob("*.md")) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_of_a_room_shows_its_code(room):
  assert re.findall(r"^::: (.+)$", (DOCS / "api" / f"{room}.md").read_text("utf-8"), re.M) == [room]


def test_the_navigation_lists_every_page():
  navigation = (
    (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2].partition("\n\n")[0]
  )
  pages = {str(page.relative_to(DOCS)) for kind in ("*.md", "*.ipynb") for page in DOCS.rglob(kind)}
  assert sorted(re.findall(r"\S+\.(?:md|ipynb)", navigation)) == sorted(pages)


def test_warnings_fail_the_site():
  assert "\nstrict: true\n" in (ROOT / "mkdocs.yml").read_text("utf-8")
  # With --quiet mkdocs sees no warnings, so that none would fail it.
  assert re.search(r"/mkdocs build$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
