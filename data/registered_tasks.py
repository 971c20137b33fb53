"""Tasks and mixtures of seqio's registry: their examples, in shares of their source's files.

Rows of a task are packed by several processes where its source has several files: each reads its
share by seqio's ShardInfo, so that the rows depend on the files alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import corpora, tokenizers
from data.encoding import Example
from data.files import describe_files, is_utf8
from data.tokenizers import Tokenizer

# A process imports TensorFlow before it packs, which takes as long as so many bytes of files, or
# so many examples.
_WORTH = 64 * 10**6
_FEW = 100_000
_MOST = 1024


@dataclasses.dataclass(frozen=True)
class Share:
  """A share of the files of a task's source.

  Attributes:
    task: the registered name.
    number, count: which of how many shares, from 0.
    files: digest of the source's files; that of their names alone if they are somewhere else.
  """

  task: str
  number: int
  count: int
  files: str

  def __str__(self) -> str:
    return f"share {self.number + 1} of {self.count} of the files of {self.task}"

  @property
  def plan(self) -> str:
    """Names all shares of these files: those of other files do not join with them."""
    return f"{self.count}-{self.files[:12]}"


def _own_tokenizer(task: str, vocabulary: Any) -> Tokenizer:
  """Returns our tokenizer with the ids of seqio's vocabulary."""
  import seqio

  if isinstance(vocabulary, seqio.ByteVocabulary):
    return tokenizers.Bytes(extra_ids=vocabulary.extra_ids)
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return tokenizers.SentencePiece(
      vocabulary.sentencepiece_model_file, extra_ids=vocabulary.extra_ids
    )
  raise corpora.CorpusError(
    f"task {task!r} uses a {type(vocabulary).__name__}, which is not supported. Register it with a"
    " ByteVocabulary or a SentencePieceVocabulary."
  )


def _import_registrations(module: str | None) -> None:
  if module:
    importlib.import_module(module)


def registered(corpus: corpora.RegisteredTask, tokenizer: Tokenizer) -> Any:
  """Returns the seqio task of a corpus.

  Raises:
    CorpusError: it is missing, has other features or another tokenizer.
  """
  import difflib

  import seqio

  _import_registrations(corpus.module)
  names = list(seqio.TaskRegistry.names())
  if corpus.task not in names:
    near = difflib.get_close_matches(corpus.task, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if corpus.task in seqio.MixtureRegistry.names():
      hint = " It is a mixture: use dataset.RegisteredMixture."
    raise corpora.CorpusError(
      f"no seqio task {corpus.task!r} is registered after importing {corpus.module!r}.{hint}"
      " Set RegisteredTask.module to the module that registers it."
    )
  task = seqio.TaskRegistry.get(corpus.task)
  missing = [name for name in corpus.features if name not in task.output_features]
  unused = [name for name in task.output_features if name not in corpus.features]
  if missing or unused:
    raise corpora.CorpusError(
      f"task {corpus.task!r} has the features {sorted(task.output_features)},"
      f" not {list(corpus.features)}. Set RegisteredTask.features to all of them, in the order in"
      " which to join them."
    )
  for feature in corpus.features:
    own = _own_tokenizer(corpus.task, task.output_features[feature].vocabulary)
    if own.describe() != tokenizer.describe():
      raise corpora.CorpusError(
        f"task {corpus.task!r} tokenizes {feature!r} with {own!r}, the dataset has"
        f" {tokenizer!r}. Set the dataset's tokenizer to the task's."
      )
  return task


def examples(
  corpus: corpora.RegisteredTask, tokenizer: Tokenizer, split: str, share: Share | None = None
) -> Iterator[Example]:
  """Yields the examples of a share of a task's files, or of all, in order.

  Raises:
    CorpusError: the task is missing, does not fit, or has no such split; or the files are others
      than when they were shared.
  """
  import seqio

  task = registered(corpus, tokenizer)
  require_split(corpus, split, task.splits)
  if share is not None and _digest(task.source.list_shards(split)) != share.files:
    raise corpora.CorpusError(
      f"{corpus.name}: a file changed while it was read. Start again once nothing writes to it."
    )
  dataset = task.get_dataset(
    sequence_length=None,
    split=split,
    shuffle=False,
    seed=corpus.seed,
    shard_info=seqio.ShardInfo(share.number, share.count) if share else None,
    num_epochs=1,
    try_in_mem_cache=False,
  )
  for values in dataset.as_numpy_iterator():
    yield _example(corpus, tokenizer, values)


def shares(
  corpus: corpora.RegisteredTask, tokenizer: Tokenizer, split: str, size: int | None
) -> list[Share] | None:
  """Returns the shares of a task's files; None if one process reads all.

  It reads all of a source of one file, of little text, and where random preprocessing has a seed,
  which would draw the same in each share.

  Args:
    corpus: the task.
    tokenizer: its tokenizer.
    split: the split.
    size: bytes of the files of a share; None is `_WORTH`.

  Raises:
    CorpusError: see `examples`.
  """
  if corpus.seed is not None:
    return None
  task = registered(corpus, tokenizer)
  require_split(corpus, split, task.splits)
  files = task.source.list_shards(split)
  total = _bytes(files)
  if total is None:
    # Files somewhere else, or TFDS's: of those the number of examples is known.
    examples = task.source.num_input_examples(split)
    count = 1 if examples is not None and examples < _FEW else len(files)
  else:
    count = total // (size or _WORTH)
  count = min(count, len(files), _MOST)
  if count < 2:
    return None
  digest = _digest(files)
  return [Share(corpus.task, n, count, digest) for n in range(count)]


def _digest(files: Sequence[str]) -> str:
  """Returns a digest of files: of names, sizes and times, or of names alone, as `Share` has it."""
  local = files if _bytes(files) is not None else ()
  described = describe_files([Path(file) for file in local])
  return hashlib.sha256(f"{described} {list(files)}".encode(errors="surrogateescape")).hexdigest()


def _bytes(files: Sequence[str]) -> int | None:
  """Returns the bytes of files; None if they are not all files of this machine."""
  if not all(os.path.isfile(file) for file in files):
    return None
  return sum(Path(file).stat().st_size for file in files)


def require_split(corpus: corpora.Corpus, split: str, splits: Sequence[str]) -> None:
  """Raises CorpusError if a corpus has no such split."""
  # TFDS also takes parts of a split: 'train[:1%]'.
  if split.split("[")[0] not in splits:
    raise corpora.CorpusError(
      f"split={split!r} does not exist in {corpus.name}; there are {', '.join(splits)}."
    )


def _example(
  corpus: corpora.RegisteredTask, tokenizer: Tokenizer, values: dict[str, Any]
) -> Example:
  """Joins the features; text sizes are those of pretokenized text, else of the decoded ids."""
  parts = [values[name].reshape(-1) for name in corpus.features]
  tokens, mask = np.concatenate(parts), None
  if corpus.loss_on is not None:
    scored = [name in corpus.loss_on for name in corpus.features]
    mask = np.repeat(scored, [len(part) for part in parts])
    if scored[-1] and len(tokens) and not len(parts[-1]):
      # An empty answer: its end is in the loss.
      tokens, mask = np.append(tokens, tokenizer.eos_id), np.append(mask, True)
  raw = [values.get(name + "_pretokenized") for name in corpus.features]
  texts = [text for text in raw if isinstance(text, bytes)]
  if len(texts) == len(raw):
    text = b"".join(texts)
    return Example(tokens, len(text), not is_utf8(text), mask)
  in_range = tokens[(tokens >= 0) & (tokens < tokenizer.size)]
  return Example(tokens, int(tokenizer.byte_lengths()[in_range].sum()), False, mask)


def mixture_rates(mixture: str, module: str | None) -> dict[str, float]:
  """Returns the rates, in examples, of the tasks of a registered mixture.

  Raises:
    CorpusError: no such mixture is registered.
  """
  import seqio

  _import_registrations(module)
  if mixture not in seqio.MixtureRegistry.names():
    raise corpora.CorpusError(
      f"no seqio mixture {mixture!r} is registered after importing {module!r}."
      " Set RegisteredMixture.module to the module that registers it."
    )
  found = seqio.MixtureRegistry.get(mixture)
  rates = {member.name: float(found.get_rate(member)) for member in found.tasks}
  return {name: rate for name, rate in rates.items() if rate > 0}
