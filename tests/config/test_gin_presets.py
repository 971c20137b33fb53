"""Presets are short, and do not repeat bindings: two presets include a third file with these."""

from __future__ import annotations

import itertools

import pytest

from config import source
from config.place import GIN_ROOT

MOST_LINES = 25
# Bindings that two files may have in common by accident: two sizes with as many heads and blocks,
# say.
MOST_IN_COMMON = 2
FILES = sorted(GIN_ROOT.rglob("*.gin"))


def own_bindings(path) -> set[str]:
  """The bindings that a file makes itself, as text; what it includes is left out."""
  return {
    f"{item.scope}/{item.selector}.{item.parameter} = {item.value!r}".lstrip("/")
    for item in source.read_file(path).statements
    if item.place.source == str(path)
  }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(GIN_ROOT)))
def test_no_preset_is_long(path):
  lines = path.read_text(encoding="utf-8").splitlines()
  assert len(lines) <= MOST_LINES, f"{path}: move what is of one kind into a file to include"


def repeated(files) -> list[str]:
  """Each pair of files that make too many of the same bindings."""
  bindings = {path: own_bindings(path) for path in files}
  return [
    f"{a.name} and {b.name} both say {', '.join(sorted(common))}: move that into a file to include"
    for a, b in itertools.combinations(files, 2)
    if len(common := bindings[a] & bindings[b]) > MOST_IN_COMMON
  ]


def test_no_two_presets_repeat_what_a_shared_include_could_say():
  assert not repeated(FILES)


def test_a_repetition_is_found_whatever_its_order_and_spelling(tmp_path):
  one, other = tmp_path / "one.gin", tmp_path / "other.gin"
  one.write_text("A = 1\nB = 'x'\nf.g:\n  c = %A\n  d = 2\n")
  other.write_text('# Others.\nf.g.c = %A\nE = 3\nB = "x"\nA = 1\n')
  (found,) = repeated([one, other])
  assert "one.gin and other.gin both say A. = 1, B. = 'x', f.g.c = %A" in found
