"""What text to read, under which vocabulary and in rows of which length: filled in by gin."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from base import small_files
from base.file_paths import KeptPath
from base.ranges import Count, Positive
from data import heldout, preparation, verification
from data.corpora import Corpus, NoFiles, RegisteredTask
from data.file_corpora import FileCorpus
from data.manifest import MANIFEST_FILE, VERSION, Manifest, RowFileError
from data.mixture import MixedRows
from data.progress import PreparationProgress, ProgressBar
from data.rows import RowFiles
from data.tokenizers import Vocabulary

# What a description says that `options` cannot: it takes the files, or says how rows are made of
# them.
_OF_THE_FILES = ("files", "heldout", "empty_answers")


@dataclasses.dataclass(frozen=True)
class TextDataset:
  """Text packed into rows; the rows are made on first use and kept.

  Attributes:
    corpus: where the documents come from.
    vocabulary: how they become ids.
    sequence_length: tokens per row.
    split: 'train', 'heldout' or 'all' (a registered task or TFDS data set: its own splits' names).
    cache_dir: holds one directory per distinct content; relative to the working directory.
    whole_documents: no document that a row can hold lies in two of them, at the price of padding.
  """

  corpus: Corpus
  vocabulary: Vocabulary
  sequence_length: Count
  split: str = "train"
  cache_dir: KeptPath = "cache"
  whole_documents: bool = False

  def __post_init__(self):
    # A registered task or TFDS data set has splits of its own, under names that it alone knows.
    if hasattr(self.corpus, "heldout_fraction"):
      heldout.check_split(self.split)

  @property
  def what(self) -> str:
    """A name for people."""
    return f"{self.corpus.name} ({self.split})"

  def source(self) -> dict[str, Any]:
    """Returns what decides the documents, as JSON values."""
    described = self.corpus.describe()
    if self.split == "all":
      described.pop("heldout", None)  # How the splits are told apart decides nothing here.
    return described | self._options()

  def _options(self) -> dict[str, Any]:
    whole = {"whole_documents": True} if self.whole_documents else {}
    return {"split": self.split} | whole

  @property
  def cache_path(self) -> Path:
    """The directory of the row files; its name holds a hash of all that decides the content.

    Where the corpus is gone, rows that were made of it are as good: the newest are taken.

    Raises:
      CorpusError: the corpus cannot be read, and no rows of it are kept.
    """
    vocabulary = self.vocabulary.describe()
    words = f"{self.corpus.name}-{self.split}-{vocabulary['kind']}-{self.sequence_length}"
    start = Path(self.cache_dir).absolute() / re.sub(r"[^A-Za-z0-9_.-]+", "_", words)
    try:
      content = [VERSION, self.source(), vocabulary, self.sequence_length]
    except NoFiles:
      if kept := self._kept(start):
        return kept
      raise
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return start.with_name(f"{start.name}-{digest}")

  def _kept(self, start: Path) -> Path | None:
    """The newest directory of rows that were made as this dataset says, of whatever files."""
    # Only a corpus of files can be gone.
    options = cast(FileCorpus, self.corpus).options() | self._options()
    vocabulary = self.vocabulary.describe()
    found = []
    for directory in start.parent.glob(f"{glob.escape(start.name)}-*"):
      try:
        manifest = Manifest.read(directory)
      except RowFileError:
        continue
      source = {name: it for name, it in manifest.source.items() if name not in _OF_THE_FILES}
      if source == options and manifest.vocabulary == vocabulary:
        found.append(directory)
    # The directory's own time is that of the last check of its rows.
    return max(found, key=lambda rows: (rows / MANIFEST_FILE).stat().st_mtime_ns, default=None)

  def is_prepared(self) -> bool:
    """Whether the row files are there."""
    return (self.cache_path / MANIFEST_FILE).is_file()

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> RowFiles:
    """Opens the row files, making them first if they are missing.

    They are made by another process, so that this one never imports TensorFlow.

    Args:
      progress: called about ten times a second while rows are made; by default a progress bar on
        stderr (lines, if it is not a terminal).

    Raises:
      CorpusError: the corpus cannot be read, or holds no text.
      PreparationError: the rows could not be made for another reason, which it carries.
      RowFileError: the files are damaged.
    """
    preparation.prepare([self], progress)
    directory = self.cache_path
    try:
      self.corpus.describe()
    except NoFiles as error:
      print(f"{error.args[0]} Reading the rows kept in {directory}.", file=sys.stderr)
    rows = RowFiles(directory).check(self.vocabulary, self.sequence_length)
    return verification.verify(rows)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several datasets read as one, row by row.

  Attributes:
    components: datasets with the same vocabulary and sequence_length.
    weights: share of each among the rows of a training run, in any scale.
  """

  components: Sequence[TextDataset]
  weights: Sequence[Positive]

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> MixedRows:
    """Opens, and if need be makes, the rows of every component."""
    preparation.prepare(self.components, progress)
    return MixedRows([part.rows() for part in self.components], self.weights)


@dataclasses.dataclass(frozen=True)
class RegisteredMixture:
  """A mixture of seqio's registry: its tasks packed one by one and drawn from at its rates.

  seqio mixes examples and stops at the end of the shortest task. Here every task is packed whole
  and rows are drawn, each task's rate weighted by its mean length, so that tokens keep their
  shares.

  Attributes:
    mixture: the registered name.
    vocabulary: that of its tasks.
    sequence_length: tokens per row.
    split: a split that all its tasks have.
    module: the module that registers it when imported.
    features: output features to join, in this order, into one document.
    seed: for tasks whose preprocessing is random; seqio takes none for a source without one.
    loss_on: the features whose tokens the loss is on; None is all.
    cache_dir: holds one directory per task; relative to the working directory.
  """

  mixture: str
  vocabulary: Vocabulary
  sequence_length: Count
  split: str = "train"
  module: str | None = None
  features: Sequence[str] = ("targets",)
  seed: int | None = None
  loss_on: Sequence[str] | None = None
  cache_dir: KeptPath = "cache"

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> MixedRows:
    """Opens, and if need be makes, the rows of every task."""
    kept = self._rates_file()
    if kept.is_file():
      rates = json.loads(small_files.read(kept) or b"")
      preparation.prepare(self.parts(rates), progress)
    else:
      what = f"mixture {self.mixture}"
      rates = preparation.run({"mixture": self}, what, progress or ProgressBar())
      with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
        json.dump(rates, file)
      Path(file.name).rename(kept)
    rows = [part.rows() for part in self.parts(rates)]
    means = [part.counts.tokens / part.counts.documents for part in rows]
    weights = [rate * mean for rate, mean in zip(rates.values(), means, strict=True)]
    return MixedRows(rows, weights)

  def parts(self, rates: dict[str, float]) -> list[TextDataset]:
    """Returns a dataset for each task of `rates`."""
    return [
      TextDataset(
        corpus=RegisteredTask(task, self.module, self.features, self.seed, self.loss_on),
        vocabulary=self.vocabulary,
        sequence_length=self.sequence_length,
        split=self.split,
        cache_dir=self.cache_dir,
      )
      for task in rates
    ]

  def _rates_file(self) -> Path:
    """Keeps what seqio said of the mixture, so that it is asked once."""
    words = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{self.module}-{self.mixture}")
    return Path(self.cache_dir).absolute() / f"rates-{words}.json"
