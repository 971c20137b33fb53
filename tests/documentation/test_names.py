"""What the pages and the help texts name is there."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.documentation.pages import ROOT, sections

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
  file.stem for file in (ROOT / "launch").glob("*.py") if "__main__" in file.read_text("utf-8")
)


def test_the_table_of_gin_files_lists_them_all():
  text = PAGES[0].read_text(encoding="utf-8")
  for folder, cell in re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE):
    cell = re.sub(r"\([^)]*\)", "", cell)  # Notes, not names.
    files = {file.stem for file in (ROOT / "gin" / folder).glob("*.gin")}
    named = set(re.findall(r"`(\w+)`", cell))
    assert named <= files, f"gin/{folder}/ has no {named - files}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_text_exist(page):
  spans = re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8"))
  links = re.findall(r"\]\(([\w./-]+)\)", page.read_text(encoding="utf-8"))
  folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
  for name in spans:
    if name.split("/")[0] in {"gin", "launch", "benchmarks", "docs"} & folders:
      assert (ROOT / name).exists(), name
    elif re.fullmatch(r"\w+/\w+\.gin", name):
      assert (ROOT / "gin" / name).exists(), name
  for name in links:
    assert (page.parent / name).exists(), name


@pytest.mark.parametrize("name", COMMANDS)
def test_paths_in_help_texts_exist(name):
  text = importlib.import_module(f"launch.{name}").parser().format_help()
  for file in re.findall(r"\bgin/[\w/]+\.gin", text):
    assert (ROOT / file).is_file(), f"launch.{name} --help names {file}"


def test_modules_in_the_text_exist():
  for page in PAGES:
    for module in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8")):
      path = ROOT / module.replace(".", "/")
      assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_page_is_typed():
  """A page that is added needs a test beside those of README and this one, if it has commands."""
  typed = ["README.md", "add_an_architecture.md"]
  assert [page.name for page in PAGES if sections(page)] == typed
