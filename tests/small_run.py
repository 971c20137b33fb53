"""A Griffin of a few thousand parameters on a little text, for tests of what commands do."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from data import manifest

RUN = """
from __gin__ import dynamic_registration
from data import corpora
from data import dataset
from models import griffin

include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/single.gin'
include 'kernels/auto.gin'
include 'data/text_files_bytes.gin'
include 'train/steps.gin'

WIDTH = 32
RNN_WIDTH = 32
HEADS = 2
DEPTH = 2
SEQUENCE_LENGTH = 32
BATCH_SIZE = 4
STEPS = 6
WARMUP_STEPS = 2
TEXT_FILES = '{text}/*.txt'
corpora.TextFiles.heldout_fraction = 0.3
dataset.TextDataset.cache_dir = '{text}/cache'
# Each kind of block once: a second recurrent block only takes longer to compile.
griffin.griffin.pattern = ('recurrent', 'attention')
"""
DOCUMENTS = [f"Document {number}: é 🎉 says hello.\n" * 3 for number in range(60)]
# Preparing text imports TensorFlow, seconds of a core: done once, for all tests that only read.
DIGEST = hashlib.sha256(repr((manifest.VERSION, DOCUMENTS)).encode()).hexdigest()[:12]
SHARED = Path(__file__).parents[1] / ".pytest_cache" / f"text-{DIGEST}"


def write_text(folder: Path) -> None:
  """Writes the documents, a file each."""
  for number, document in enumerate(DOCUMENTS):
    (folder / f"{number}.txt").write_text(document, encoding="utf-8")


def shared_text() -> Path:
  """The folder of text, and of its rows, that all tests and their processes read."""
  if not SHARED.exists():
    SHARED.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=SHARED.parent))
    write_text(own)
    try:
      own.rename(SHARED)
    except OSError:  # another process was first
      for file in own.iterdir():
        file.unlink()
      own.rmdir()
  return SHARED


def write(file: str | os.PathLike, text: Path | None = None, more: str = "") -> Path:
  """Writes the run's gin file.

  Args:
    file: where; text: the folder of its text, the shared one by default.
    more: statements to append.
  """
  path = Path(file)
  path.write_text(RUN.format(text=text or shared_text()) + more, encoding="utf-8")
  return path
