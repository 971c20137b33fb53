"""Configurations as somebody else sends them."""

from __future__ import annotations

import re
from pathlib import Path

from experiment import trust_check

ROOT = Path(trust_check.__file__).parents[1]
INCLUDING = """
from __gin__ import dynamic_registration
include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/single.gin'
include 'kernels/auto.gin'
include 'data/python_bytes.gin'
include 'train/steps.gin'
"""


def flat(text):
  """Returns gin text with its includes expanded: one file, as a run directory keeps it."""
  return re.sub(
    r"^include '(.*)'$",
    lambda line: flat((ROOT / "gin" / line[1]).read_text()),
    text,
    flags=re.MULTILINE,
  )


HEAD = flat(INCLUDING)
COMPARISON = flat((ROOT / "gin/compare/quick.gin").read_text())


def sent(tmp_path, lines, head=HEAD):
  run = tmp_path / "sent"
  run.mkdir(exist_ok=True)
  (run / "config.gin").write_text(head + lines)
  return run
