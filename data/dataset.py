"""What text to read, under which vocabulary and in rows of which length: filled in by gin."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.corpora import Corpus
from data.mixture import MixedRows
from data.progress import Progress
from data.rows import RowFiles
from data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class TextDataset:
  """Text packed into rows; the rows are made on first use and kept.

  Attributes:
    corpus: where the documents come from.
    vocabulary: how they become ids.
    sequence_length: tokens per row.
    split: 'train', 'heldout' or 'all' (a registered task or TFDS data set: its own splits' names).
    cache_dir: holds one directory per distinct content; relative to the working directory.
  """

  corpus: Corpus
  vocabulary: Vocabulary
  sequence_length: int
  split: str = "train"
  cache_dir: str = "cache"

  @property
  def cache_path(self) -> Path:
    """The directory of the row files; its name holds a hash of all that decides the content."""
    raise NotImplementedError

  def rows(self, progress: Callable[[Progress], None] | None = None) -> RowFiles:
    """Opens the row files, making them first if they are missing.

    They are made by another process, so that this one never imports TensorFlow.

    Args:
      progress: called about ten times a second while rows are made; by default a progress bar on
        stderr (lines, if it is not a terminal).

    Raises:
      RowFileError: the files are damaged.
      PreparationError: the rows could not be made; it carries the reason.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several datasets read as one, row by row.

  Attributes:
    components: datasets with the same vocabulary and sequence_length.
    weights: share of each among the rows of a training run, in any scale.
  """

  components: Sequence[TextDataset]
  weights: Sequence[float]

  def rows(self, progress: Callable[[Progress], None] | None = None) -> MixedRows:
    """Opens, and if need be makes, the rows of every component."""
    return MixedRows([part.rows(progress) for part in self.components], self.weights)
