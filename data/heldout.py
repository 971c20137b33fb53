"""Chooses held-out documents: by a hash of each if that fills both splits, else a tail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from base.wording import plural
from data.files import CorpusError

SPLITS = ("train", "heldout", "all")

# Bytes below which a text is not cut in two; a tail has at least a quarter of this.
_LEAST_TEXT = 64

# By corpus description: a launch asks several times.
_found: dict[tuple[str, float], bool] = {}


def _is_heldout(key: bytes, fraction: float) -> bool:
  """Decides by a hash, so that a document's split does not depend on other documents."""
  return digest_is_heldout(hashlib.sha256(key).digest(), fraction)


def digest_is_heldout(digest: bytes, fraction: float) -> bool:
  """Decides by the sha256 of a key."""
  return int.from_bytes(digest[:8], "big") < fraction * 2**64


def digest_in_split(digest: bytes, split: str, fraction: float) -> bool:
  """Whether the document whose text has this sha256 belongs to a split."""
  return split == "all" or digest_is_heldout(digest, fraction) == (split == "heldout")


def in_split(key: bytes, split: str, fraction: float) -> bool:
  """Whether the document of `key` belongs to the split 'train', 'heldout' or 'all'."""
  check_split(split)
  return split == "all" or _is_heldout(key, fraction) == (split == "heldout")


def check_split(split: str) -> None:
  """Raises CorpusError unless the split is one of SPLITS."""
  if split not in SPLITS:
    raise CorpusError(f"unknown split={split!r}. Choose from {', '.join(SPLITS)}.")


def check_fraction(fraction: float) -> None:
  """Raises CorpusError unless a share is between 0 and 1."""
  if not 0 <= fraction <= 1:
    raise CorpusError(f"heldout_fraction={fraction} must be between 0 and 1.")


class _Named(Protocol):
  @property
  def name(self) -> str: ...


def kind_of(corpus: object) -> str:
  """Returns the name of a corpus's class in gin files and flags, such as corpora.TextFiles."""
  return f"{type(corpus).__module__.rpartition('.')[2]}.{type(corpus).__name__}"


def check_intent(corpus: _Named, split: str) -> None:
  """Raises CorpusError if the corpus's heldout_fraction makes the split empty."""
  fraction = getattr(corpus, "heldout_fraction", None)
  if (split, fraction) in (("heldout", 0), ("train", 1)):
    raise CorpusError(
      f"{corpus.name} ({split}) has no text: heldout_fraction={fraction} (both splits need a value "
      f"above 0 and below 1). Set --gin.{kind_of(corpus)}.heldout_fraction=0.05."
    )


def needs_tail(identity: str, fraction: float, keys: Callable[[], Iterable[bytes]]) -> bool:
  """Whether the hash would make a split empty, so that a tail is held out instead.

  Reads until both splits have a document: about twenty documents of an ordinary corpus, all of a
  small one.

  Args:
    identity: description of the corpus, under which the answer is cached in this process.
    fraction: share to hold out; with 0 and 1 one split is empty on purpose.
    keys: identity of each document with text.
  """
  if not 0 < fraction < 1:
    return False
  if (identity, fraction) not in _found:
    seen = set()
    for key in keys():
      seen.add(_is_heldout(key, fraction))
      if len(seen) == 2:
        break
    _found[identity, fraction] = len(seen) < 2
  return _found[identity, fraction]


class TooLittleText(CorpusError):
  """There is too little text to hold some out.

  Attributes:
    what: how much text there is and is needed; the message also has bindings that help.
  """

  def __init__(self, what: str, advice: str = ""):
    super().__init__(f"{what} {advice}" if advice else what)
    self.what = what


class Tail(NamedTuple):
  """Start of the held-out text: a document, and approximately a byte in it."""

  document: int
  start: int


def tail_of(sizes: list[int], fraction: float, *, cut: bool = True, corpus: _Named) -> Tail:
  """Chooses a tail of documents, or a part of the last one if it is long enough.

  Args:
    sizes: bytes of each document, in order; 0 for one without text.
    fraction: share of the bytes to hold out.
    cut: whether a document may be cut in two; else at least one whole document is held out.
    corpus: the corpus, for the error.

  Raises:
    TooLittleText: there is too little text to have two splits.
  """
  full = [index for index, size in enumerate(sizes) if size]
  wanted = max(fraction * sum(sizes), _LEAST_TEXT / 4)
  first, held = len(sizes), 0
  while len(full) > 1 and held + sizes[full[-1]] <= wanted:
    first = full.pop()
    held += sizes[first]
  if held >= wanted / 2:
    return Tail(first, 0)
  # The next document is too long; without it too little is held out.
  size = sizes[full[-1]] if full else 0
  if cut and size >= _LEAST_TEXT:
    longest = size - _LEAST_TEXT // 4
    return Tail(full[-1], size - int(min(wanted - held, longest)))
  if len(full) > 1 and (not held or held + size <= sum(sizes) / 2):
    return Tail(full[-1], 0)
  if held:
    return Tail(first, 0)
  kind = kind_of(corpus)
  count = sum(map(bool, sizes))
  raise TooLittleText(
    f"{corpus.name} has {plural(sum(sizes), 'byte')} of text in {plural(count, 'document')}: too"
    f" little to hold some out (at least {_LEAST_TEXT} bytes, or two documents).",
    "Add text, or train on all of it and hold out other"
    " files: --gin.train/dataset.TextDataset.split=all --gin.heldout/dataset.TextDataset.split=all"
    f" --gin.heldout/dataset.TextDataset.corpus='@own/{kind}()' --gin.own/{kind}.files=OTHER.",
  )


def text_size(text: bytes) -> int:
  """Returns the bytes of a document; 0 if it has only blanks."""
  return 0 if text.isspace() else len(text)


def tail_split(documents: Iterable[bytes], split: str, tail: Tail) -> Iterator[bytes]:
  """Yields the documents, or parts of them, of 'train' or 'heldout' if a tail is held out."""
  heldout = split == "heldout"
  for index, text in enumerate(documents):
    if index != tail.document or not tail.start:
      if (index >= tail.document) == heldout:
        yield text
    else:
      start = boundary(text, tail.start)
      yield text[start:] if heldout else text[:start]


def boundary(text: Any, near: int) -> int:
  """Returns a place to cut a text: after a line, else before a character.

  Both parts are nonempty.

  Args:
    text: bytes, or a memory map of them.
    near: the byte at which to cut about.
  """
  tail = len(text) - near
  if after := text.rfind(b"\n", max(0, near - tail), near) + 1:
    return after
  if after := text.find(b"\n", near, near + tail // 2) + 1:
    return after
  for start in range(near, max(0, near - 4), -1):
    if text[start] & 0xC0 != 0x80:
      return start
  return near  # No UTF-8.
