"""Datasets: a corpus with its tokenizer and row length, set by gin."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from base import paths, small_files
from base.file_paths import KeptPath
from base.ranges import Count, Immaterial, Positive
from data import heldout, mixture, preparation, verification
from data.corpora import Corpus, NoFiles, RegisteredTask
from data.executors import Executor, Local
from data.file_corpora import FileCorpus
from data.manifest import MANIFEST_FILE, VERSION, Manifest, RowFileError
from data.mixture import MixedRows, weights_of_sizes
from data.progress import PreparationProgress
from data.row_halves import RowHalf
from data.rows import RowFiles
from data.tokenizers import Tokenizer

# Entries of a description that `options` lacks: they depend on the files, or on packing.
_OF_THE_FILES = ("files", "indexes", "heldout", "empty_answers")
_LOCAL = Local()


@dataclasses.dataclass(frozen=True)
class TextDataset:
  """Text packed into rows; the rows are made on first use and cached.

  Attributes:
    corpus: source of the documents.
    vocabulary: the tokenizer, which converts them to ids.
    sequence_length: tokens per row.
    split: 'train', 'heldout' or 'all' (registered tasks and TFDS data sets: one of their splits).
    cache_dir: contains one directory per distinct content; relative to the working directory. It
      may lie in a bucket: the rows are then read in blocks, as they are needed.
    half: of held-out rows only those to choose by, 'validation', or those that figures are of,
      'test' (see `data.row_halves`); None is all.
    block_cache_gb: at most so many GB of these blocks stay in cache/blocks.
    whole_documents: do not split documents that fit into a row, at the cost of padding.
    shard_bytes: about how many bytes of text make a shard of rows, which one process packs. None: a
      1,024th of the corpus, from 16 MB to 1 GB. The rows depend on it, not on the processes.
    executor: where the shards are packed: `executors.Local()`, `Ray()` or `Slurm()`.
  """

  corpus: Corpus
  vocabulary: Tokenizer
  sequence_length: Count
  split: str = "train"
  cache_dir: KeptPath = "cache"
  whole_documents: bool = False
  shard_bytes: Count | None = None
  block_cache_gb: Annotated[Positive, Immaterial()] = 20.0
  half: Literal["validation", "test"] | None = None
  executor: Annotated[Executor, Immaterial()] = _LOCAL

  def __post_init__(self):
    # Any string: registered tasks and TFDS data sets name their own splits.
    if hasattr(self.corpus, "heldout_fraction"):
      heldout.check_split(self.split)

  @property
  def what(self) -> str:
    """A name for display."""
    return f"{self.corpus.name} ({self.split})"

  def source(self) -> dict[str, Any]:
    """Returns what determines the documents, as JSON values."""
    described = self.corpus.describe()
    if self.split == "all":
      described.pop("heldout", None)  # With split 'all', the split rule does not matter.
    return described | self._options()

  def _options(self) -> dict[str, Any]:
    whole = {"whole_documents": True} if self.whole_documents else {}
    shards = {} if self.shard_bytes is None else {"shard_bytes": self.shard_bytes}
    return {"split": self.split} | whole | shards

  @property
  def cache_path(self) -> Path:
    """The directory of the row files; its name has a hash of all that determines the content.

    If the corpus is missing, this is the newest directory of rows made from it.

    Raises:
      CorpusError: the corpus cannot be read, and has no cached rows.
    """
    tokenizer = self.vocabulary.describe()
    words = f"{self.corpus.name}-{self.split}-{tokenizer['kind']}-{self.sequence_length}"
    start = paths.of(self.cache_dir).absolute() / re.sub(r"[^A-Za-z0-9_.-]+", "_", words)
    try:
      content = [VERSION, self.source(), tokenizer, self.sequence_length]
    except NoFiles:
      if kept := self._kept(start):
        return kept
      raise
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return start.with_name(f"{start.name}-{digest}")

  def _kept(self, start: Path) -> Path | None:
    """Finds the newest rows with this dataset's options, made from any version of the files."""
    # Only a corpus of files can be missing.
    options = cast(FileCorpus, self.corpus).options() | self._options()
    tokenizer = self.vocabulary.describe()
    found = []
    for directory in start.parent.glob(f"{glob.escape(start.name)}-*"):
      try:
        manifest = Manifest.read(directory)
      except RowFileError:
        continue
      source = {name: it for name, it in manifest.source.items() if name not in _OF_THE_FILES}
      if source == options and manifest.vocabulary == tokenizer:
        found.append(directory)
    # The directory's own time changes with each check of its rows.
    return max(found, key=lambda rows: (rows / MANIFEST_FILE).stat().st_mtime_ns, default=None)

  def known_parts(self) -> Sequence[TextDataset]:
    """The dataset itself; see `RegisteredMixture.known_parts`."""
    return [self]

  def is_prepared(self) -> bool:
    """Whether the row files exist."""
    return (self.cache_path / MANIFEST_FILE).is_file()

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> RowFiles:
    """Opens the row files; makes them first if they are missing.

    Another process makes them, so that this one never imports TensorFlow.

    Args:
      progress: called about ten times a second while rows are made; by default a progress bar on
        stderr (lines, if it is not a terminal).

    Raises:
      CorpusError: the corpus cannot be read, or has no text.
      PreparationError: the rows could not be made for another reason.
      RowFileError: the files are damaged.
    """
    preparation.prepare([self], progress)
    directory = self.cache_path
    try:
      self.corpus.describe()
    except NoFiles as error:
      print(f"{error.args[0]} Reading the cached rows in {directory}.", file=sys.stderr)
    rows = RowFiles(directory, block_cache_bytes=int(self.block_cache_gb * 1e9)).check(
      self.vocabulary, self.sequence_length
    )
    verified = verification.verify(rows)
    return RowHalf(verified, self.half) if self.half else verified


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several datasets, mixed row by row.

  Attributes:
    components: datasets with the same tokenizer and sequence_length.
    weights: relative share of each among the rows of a training run, such as [3, 1], or tokens of
      each, such as [3e9, 1e9]; None: `temperature` decides.
    temperature: without weights, the shares are as tokens ** (1 / temperature). 1 is by size; a
      higher one gives more to small components.
    schedule: pairs of a step and the weights from then on: `[(9000, [1, 4])]`.
    most_tokens: at most so many tokens of each are read in a run, None without a limit; then the
      others share its rows. A part counts with no more tokens where its size decides.
    names: a name for each, for held-out figures; by default those of the corpora.
  """

  components: Sequence[TextDataset]
  weights: Sequence[Positive] | None = None
  temperature: Positive = 1.0
  schedule: Sequence[tuple[Count, Sequence[float]]] = ()
  most_tokens: Sequence[Positive | None] = ()
  names: Annotated[Sequence[str], Immaterial()] = ()

  def __post_init__(self):
    if self.weights is not None and self.temperature != 1:
      raise ValueError(
        f"temperature={self.temperature} has no effect beside weights={list(self.weights)}. Remove"
        " one of them."
      )
    mixture.check(len(self.components), self.weights, self.schedule, self.most_tokens, self.names)

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> MixedRows:
    """Opens the rows of every component; makes missing ones."""
    preparation.prepare(self.components, progress)
    parts = [part.rows() for part in self.components]
    weights = self.weights
    if weights is None:
      sizes: list[float] = [part.counts.tokens for part in parts]
      for number, most in enumerate(self.most_tokens):
        sizes[number] = min(sizes[number], math.inf if most is None else most)
      weights = weights_of_sizes(sizes, self.temperature)
    return MixedRows(parts, weights, self.schedule, self.most_tokens, self.names)


@dataclasses.dataclass(frozen=True)
class RegisteredMixture:
  """A mixture of seqio's registry: its tasks are packed separately and mixed at its rates.

  seqio mixes examples and stops at the end of the shortest task. Here every task is packed
  completely and rows are mixed; each task's rate is weighted by its mean length, so that tokens
  keep their shares.

  Attributes:
    mixture: the registered name.
    vocabulary: the tokenizer of its tasks.
    sequence_length: tokens per row.
    split: a split that all its tasks have.
    module: the module that registers it when imported.
    features: output features to join, in this order, into one document.
    seed: seed of random preprocessing; seqio accepts none for a source without one.
    loss_on: the features in the loss; None is all.
    cache_dir: contains one directory per task; relative to the working directory.
    half: of the held-out rows of each task only those to choose by, 'validation', or those that
      figures are of, 'test' (see `data.row_halves`); None is all.
  """

  mixture: str
  vocabulary: Tokenizer
  sequence_length: Count
  split: str = "train"
  module: str | None = None
  features: Sequence[str] = ("targets",)
  seed: int | None = None
  loss_on: Sequence[str] | None = None
  cache_dir: KeptPath = "cache"
  half: Literal["validation", "test"] | None = None

  def rows(self, progress: Callable[[PreparationProgress], None] | None = None) -> MixedRows:
    """Opens the rows of every task; makes missing ones."""
    preparation.prepare([self], progress)
    rates = json.loads(small_files.read(self._rates_file()) or b"")
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
        half=self.half,
      )
      for task in rates
    ]

  @property
  def what(self) -> str:
    """Name for messages."""
    return f"mixture {self.mixture}"

  def known_parts(self) -> Sequence[TextDataset] | None:
    """Returns a dataset for each task; None before the first preparation, which tells the tasks."""
    kept = self._rates_file()
    return self.parts(json.loads(small_files.read(kept) or b"")) if kept.is_file() else None

  def keep_rates(self, rates: dict[str, float]) -> None:
    """Keeps the rates of the tasks, in examples."""
    file = self._rates_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    small_files.replace(file, json.dumps(rates))

  def _rates_file(self) -> Path:
    """The file that caches the mixture's rates."""
    words = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{self.module}-{self.mixture}")
    return paths.of(self.cache_dir).absolute() / f"rates-{words}.json"
