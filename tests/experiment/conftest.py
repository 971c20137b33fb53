"""Fixtures of the tests of experiments."""

from __future__ import annotations

import sys

import pytest

EVIL = """
from pathlib import Path
(Path(__file__).parent / "ran").write_text("")
import os
def schedule(): return lambda step: 0.0
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
  """A module whose import leaves a file."""
  folder = tmp_path / "modules"
  folder.mkdir()
  (folder / "evil_module.py").write_text(EVIL)
  monkeypatch.syspath_prepend(folder)
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
  yield folder / "ran"
  sys.modules.pop("evil_module", None)
