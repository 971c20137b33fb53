"""Files, modules, macros and links that the pages and the help texts name exist."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path

import pytest
import yaml

from experiment import experiment, run_config
from tests.documentation import pages
from tests.documentation.pages import ROOT

ROOT_PAGES = ("README.md", "BUILD_NOTES.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [
  *(ROOT / name for name in ROOT_PAGES if (ROOT / name).exists()),
  *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
FOLDERS = {*ROOMS, "gin", "docs", "tests", "benchmarks", "docker"}
COMMANDS = sorted(
  file.stem for file in (ROOT / "launch").glob("*.py") if "__main__" in file.read_text("utf-8")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def spans(page: Path) -> list[str]:
  """The code spans of a page."""
  text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
  return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
  """Returns the anchors of a page: its headings in lower case, joined by hyphens."""
  text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
  titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
  return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_table_of_gin_files_lists_what_exists():
  text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
  folders = {path.name for path in (ROOT / "gin").iterdir() if path.is_dir()}
  assert {folder for folder, _ in rows} == folders - {"runs"}
  texts = [file.read_text("utf-8") for file in (ROOT / "gin").rglob("*.gin")]
  included = set(re.findall(r"'([\w/]+\.gin)'", "\n".join(texts)))
  for folder, cell in rows:
    cell = re.sub(r"\([^)]*\)", "", cell)  # Notes, not names.
    files = {file.stem for file in (ROOT / "gin" / folder).glob("*.gin")}
    named = set(re.findall(r"`(\w+)`", cell))
    assert named <= files, f"gin/{folder}/ has no {named - files}"
    # Parts of other files are not chosen by themselves; two old names are mentioned below.
    left = files - named - {name for name in files if f"{folder}/{name}.gin" in included}
    assert left <= {"adamw", "adamw_wsd"}, f"the page does not list {left} of gin/{folder}/"


def test_the_table_of_macros_has_every_macro_and_no_other():
  text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  text = text[text.index("## Macros") :]
  cells = re.findall(r"^\| (`[A-Z][^|]*) \|", text, re.MULTILINE)
  listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
  assert len(listed) == len(set(listed)), "a macro stands there twice"
  defined = {
    name
    for file in (ROOT / "gin").rglob("*.gin")
    for name in re.findall(
      r"^(?:default/)?([A-Z][A-Z0-9_]*) *=", file.read_text("utf-8"), re.MULTILINE
    )
  }
  assert set(listed) == defined


def test_the_gin_files_of_all_pages_load(tmp_path):
  found = set()
  for page in pages.PAGES:
    if page == pages.RECIPE:
      continue  # test_add_an_architecture.py launches them, with their module
    for step in itertools.chain.from_iterable(pages.sections(ROOT / page).values()):
      if step.name.endswith(".gin"):
        file = tmp_path / step.name
        file.write_text(step.text, encoding="utf-8")
        # What is no whole run changes one.
        whole = run_config.is_whole([file])
        run = experiment.load([file] if whole else ["runs/griffin_quickstart.gin", file])
        if step.name == "my_mixture.gin":  # which no command of the page reads
          assert len(experiment.build(run).train_data.components) == 2
        found.add(step.name)
  assert {"my_run.gin", "my_text.gin", "my_mixture.gin"} <= found


# Files whose values the page leaves out: what a comparison trains with. Values in other words.
ELSEWHERE = {"quick_comparison", "paper_comparison"}
IN_OTHER_WORDS = ("from the data file", "from `gin/", "that of an example")


def test_the_table_of_macros_has_the_values_that_files_set():
  text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
  rows = re.findall(r"^\| (`[A-Z][^|]*) \| [^|]+ \|([^|]*)\|$", text, re.MULTILINE)
  cells = {name: cell for names, cell in rows for name in re.findall(r"`(\w+)`", names)}
  missing, found = [], 0
  for folder in ("models", "mesh", "train", "data", "optimizer", "schedule"):
    for file in sorted((ROOT / "gin" / folder).glob("*.gin")):
      if file.stem in ELSEWHERE:
        continue
      setting = r"^(?:default/)?([A-Z][A-Z0-9_]*) *= *(\S.*)$"
      lines = re.findall(setting, file.read_text("utf-8"), re.MULTILINE)
      for name, value in lines:
        if value[0] in "@[" or any(words in cells[name] for words in IN_OTHER_WORDS):
          continue
        found += 1
        # As words: 1 is not in 512, and 0.0 is written 0.
        word = re.sub(r"^0\.0$", "0", value.strip("'\""))
        if not re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w]|\.\d)", cells[name]):
          missing.append(f"{name} = {value} of {file.name}")
  assert found > 40
  assert not missing


@each_page
def test_paths_in_the_text_exist(page):
  for name in spans(page):
    if not re.fullmatch(r"[\w./-]+", name):
      continue
    if re.fullmatch(r"\w+/\w+\.gin", name):
      assert (ROOT / "gin" / name).exists() or (ROOT / name).exists(), name
    elif "/" in name and name.split("/")[0] in FOLDERS:
      assert (ROOT / name).exists(), name


@each_page
def test_links_lead_to_files_and_headings(page):
  text = page.read_text(encoding="utf-8")
  inline = re.findall(r"\]\(([^)\s]+)\)", text)
  defined = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, flags=re.MULTILINE))
  for link in [*inline, *defined.values()]:
    if re.match(r"https?://", link):
      continue
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    assert target.is_file(), link
    if page.is_relative_to(ROOT / "docs"):  # The site has no other pages.
      assert target.is_relative_to(ROOT / "docs"), link
    if anchor:
      assert anchor in anchors(target), link
  for name in re.findall(r"(?<=\. )\[(\w+)\]$", text, flags=re.MULTILINE):
    assert name in defined, f"[{name}] leads nowhere"


@each_page
def test_modules_and_what_they_define_exist(page):
  """Names such as `data.corpora.Tfds`, with the whole path."""
  for name in spans(page):
    parts = name.split(".")
    if re.fullmatch(r"\w+(\.\w+)+", name) and parts[0] in ROOMS and parts[-1] not in ("gin", "py"):
      if (
        not (ROOT / parts[0] / f"{parts[1]}.py").exists()
        and not (ROOT / parts[0] / parts[1]).is_dir()
      ):
        # A field, such as `data.json`, or a name that a package defines.
        assert len(parts) == 2, name
        continue
      found, rest = importlib.import_module(".".join(parts[:2])), parts[2:]
      while rest:
        try:
          found, rest = getattr(found, rest[0]), rest[1:]
        except AttributeError:
          fields = getattr(found, "__dataclass_fields__", {})
          if rest[0] in fields or rest[0] in getattr(found, "__annotations__", {}):
            break
          found, rest = importlib.import_module(f"{found.__name__}.{rest[0]}"), rest[1:]


@pytest.mark.parametrize("name", COMMANDS)
def test_paths_in_help_texts_exist(name):
  text = importlib.import_module(f"launch.{name}").parser().format_help()
  for file in re.findall(r"\bgin/[\w/]+\.gin", text):
    assert (ROOT / file).is_file(), f"launch.{name} --help names {file}"


@each_page
def test_commands_in_the_text_exist(page):
  for module in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8")):
    path = ROOT / module.replace(".", "/")
    known = path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    assert known or module in ("pytest", "pip"), module


def test_every_page_with_commands_is_typed():
  """Every page with commands must be in `pages.PAGES`."""
  with_commands = {
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if pages.sections(path)
  }
  assert with_commands <= set(pages.PAGES)
  assert all((ROOT / name).is_file() for name in pages.PAGES)


def listed(nav: list) -> list[str]:
  """The pages of a navigation, in order."""
  found = []
  for entry in nav:
    value = next(iter(entry.values())) if isinstance(entry, dict) else entry
    found += listed(value) if isinstance(value, list) else [value]
  return found


@pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="there is no site")
def test_the_navigation_of_the_site_has_the_order_of_the_pages():
  nav = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
  others = ("index.md", "api/", "notebooks/")  # test_notebook.py runs the notebook
  typed = [f"docs/{name}" for name in nav if not name.startswith(others)]
  assert typed == [name for name in pages.PAGES if name != "README.md"]
