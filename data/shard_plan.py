"""Decides which parts of a corpus make which shard of rows; independent of who packs them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from data import corpora, encoding, file_corpora, heldout, registered_tasks
from data.encoding import Example, Text
from data.files import compression, mapped, opened_text, source
from data.heldout import in_split
from data.parts import Part, Parted, pieces_between
from data.registered_tasks import Share

# Bytes of text of a shard, unless the dataset sets them: a share of the corpus, within limits.
_SHARDS = 1024
_LEAST, _MOST = 16 * 10**6, 10**9

# Parts of files, or a share of a registered task.
Task = tuple[Part | Share, ...]


def shard_bytes(dataset: Any) -> int:
  """Returns about how many bytes of the corpus one shard of a TextDataset has."""
  if dataset.shard_bytes is not None:
    return dataset.shard_bytes
  return max(_LEAST, min(_MOST, dataset.corpus.total_bytes() // _SHARDS))


def expected_bytes(dataset: Any) -> int:
  """Returns about how many bytes of text a TextDataset has; 0 if that is unknown."""
  corpus = dataset.corpus
  if not hasattr(corpus, "total_bytes"):
    return 0
  held = getattr(corpus, "heldout_fraction", 0.0)
  return int(corpus.total_bytes() * {"heldout": held, "train": 1 - held}.get(dataset.split, 1.0))


def tasks(dataset: Any) -> list[Task] | None:
  """Returns the parts of each shard of a TextDataset; None if one process packs all rows.

  The tasks depend on the corpus alone. One process packs a small corpus, one that is not read from
  files, and one of few documents of which the last are held out. Those of a registered task are
  found by importing seqio.
  """
  corpus = dataset.corpus
  if isinstance(corpus, corpora.RegisteredTask):
    shares = registered_tasks.shares(corpus, dataset.vocabulary, dataset.split, dataset.shard_bytes)
    return None if shares is None else [(share,) for share in shares]
  if not hasattr(corpus, "parts"):
    return None
  size = shard_bytes(dataset)
  if corpus.total_bytes() <= size:
    return None
  if dataset.split != "all" and file_corpora.heldout_rule(corpus):
    parts = _of_tail(corpus, dataset.split, size)
    if parts is None:
      return None
  else:
    parts = _in_split(cast(Parted, corpus).parts(size), dataset.split, corpus.heldout_fraction)
  return _grouped(parts, size)


def suffix(planned: Sequence[Task]) -> str:
  """Returns what names shards of a registered task apart from those of other files; else ''.

  Of a corpus of files, the name of the rows tells the files.
  """
  first = planned[0][0] if planned else None
  return f".{first.plan}" if isinstance(first, Share) else ""


def expected_shards(dataset: Any) -> int:
  """Returns about how many shards a TextDataset has; reads no documents."""
  if not hasattr(dataset.corpus, "parts"):
    return 1
  size = shard_bytes(dataset)
  return max(1, len(_grouped(cast(Parted, dataset.corpus).parts(size), size)))


def examples(dataset: Any, task: Task) -> Iterator[Example]:
  """Yields the tokenized documents of a task that belong to the dataset's split."""
  share = task[0]
  if isinstance(share, Share):
    yield from registered_tasks.examples(dataset.corpus, dataset.vocabulary, dataset.split, share)
  else:
    yield from encoding.examples(texts(dataset, cast(Any, task)), dataset.vocabulary)


def texts(dataset: Any, parts: Sequence[Part]) -> Iterator[Text]:
  """Yields the documents of parts that belong to the dataset's split."""
  corpus, split = dataset.corpus, dataset.split
  for part in parts:
    for text in corpus.texts(part):
      # Of a document in pieces, the plan has decided.
      if part.pieces > 1 or in_split(text.raw, split, corpus.heldout_fraction):
        yield text


def _of_tail(corpus: Any, split: str, size: int) -> list[Part] | None:
  """Returns the pieces of a single file whose end is held out; None if there are more documents."""
  if not file_corpora.is_one_document(corpus):
    return None
  (path,) = (p for p in file_corpora.files_of(corpus) if p.stat().st_size)
  if compression(path):
    return None
  with mapped(path) as (text, first):
    stop = len(text)
    tail = heldout.tail_of([stop - first], corpus.heldout_fraction, corpus=corpus)
    cut = heldout.boundary(text, first + tail.start)
  start, stop = (cut, stop) if split == "heldout" else (first, cut)
  return pieces_between(path, start, stop, size)


def _in_split(parts: list[Part], split: str, fraction: float) -> list[Part]:
  """Leaves out the pieces of documents that are in another split."""
  wanted: dict[str, bool] = {}
  found = []
  for part in parts:
    if part.pieces > 1:
      if part.file not in wanted:
        with opened_text(source(part.file)) as file:
          digest = hashlib.file_digest(cast(Any, file), "sha256").digest()
        wanted[part.file] = heldout.digest_in_split(digest, split, fraction)
      if not wanted[part.file]:
        continue
    found.append(part)
  return found


def _grouped(parts: list[Part], size: int) -> list[Task]:
  """Joins consecutive parts until they have about `size` bytes."""
  found, group, total = [], [], 0
  for part in parts:
    if group and total + part.size / 2 >= size:
      found.append(tuple(group))
      group, total = [], 0
    group.append(part)
    total += part.size
  if group:
    found.append(tuple(group))
  return found
