"""Fixtures of the tests of comparisons."""

from __future__ import annotations

import pytest

from tests.comparison.small_comparison import COMPARISON, PATTERN, SIZE, TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Text to learn from, and the files of a comparison."""
  folder = tmp_path_factory.mktemp("compare")
  for number in range(60):
    (folder / f"{number}.txt").write_text(f"Document {number}: é says hello.\n" * 30)
  (folder / "tiny.gin").write_text(COMPARISON.format(folder=folder))
  (folder / "text.gin").write_text(TEXT.format(folder=folder))
  (folder / "size.gin").write_text(SIZE)
  (folder / "pattern.gin").write_text(PATTERN)
  return folder
