"""Documents to token ids, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data.tokenizers import Bytes, Tokenizer

# Documents encoded in one call.
_GROUP = 64
_GROUP_BYTES = 2**20

# A longer text is encoded in pieces: a tokenizer takes about a hundred bytes per token.
_PIECE_CHARACTERS = 2**22


class Text(NamedTuple):
  """A document, or a piece of a large one.

  Attributes:
    raw: its bytes, UTF-8 or not.
    ends: whether the document ends here; else the next text continues it.
  """

  raw: bytes
  ends: bool = True


class Example(NamedTuple):
  """A tokenized document; its fields are the arguments of `packing.Packer.add`.

  Attributes:
    tokens: [n] ids.
    text_bytes: bytes of its text as UTF-8.
    invalid_utf8: whether its raw bytes were invalid UTF-8.
    loss_mask: [n] bool, True on the tokens in the loss; None is all.
    ends: whether the document ends here.
  """

  tokens: np.ndarray
  text_bytes: int
  invalid_utf8: bool
  loss_mask: np.ndarray | None = None
  ends: bool = True


def examples(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[Example]:
  """Tokenizes documents in order; each ends with EOS. Invalid UTF-8 becomes U+FFFD."""
  group: list[Text] = []
  size = 0
  for text in texts:
    group.append(text)
    size += len(text.raw)
    if len(group) == _GROUP or size >= _GROUP_BYTES:
      yield from _encoded(group, tokenizer)
      group, size = [], 0
  if group:
    yield from _encoded(group, tokenizer)


def _encoded(group: list[Text], tokenizer: Tokenizer) -> Iterator[Example]:
  clean: list[bytes] = []
  strings: list[str] = []
  for text in group:
    string = text.raw.decode("utf-8", errors="replace")
    # Only a text with U+FFFD may have been changed.
    clean.append(string.encode() if "\ufffd" in string else text.raw)
    strings.append(string)
  for text, raw, ids in zip(group, clean, _ids(strings, clean, tokenizer), strict=True):
    if text.ends:
      ended = np.empty(len(ids) + 1, np.int32)  # np.append takes twice the time.
      ended[:-1], ended[-1] = ids, tokenizer.eos_id
      ids = ended
    yield Example(ids, len(raw), raw != text.raw, None, text.ends)


def _ids(strings: list[str], raw: list[bytes], tokenizer: Tokenizer) -> list[np.ndarray]:
  """Returns the ids of texts, given as strings and as their UTF-8."""
  if isinstance(tokenizer, Bytes):
    first = tokenizer.encode("\0")[0]
    return [np.frombuffer(text, np.uint8).astype(np.int32) + first for text in raw]
  pieces = [list(_pieces(string)) for string in strings]
  flat = [piece for parts in pieces for piece in parts]
  of_arrays = getattr(tokenizer, "encode_arrays", None)
  batch = of_arrays or getattr(tokenizer, "encode_batch", None)
  found: Any = batch(flat) if batch else [tokenizer.encode(piece) for piece in flat]
  arrays = iter(found if of_arrays else [np.array(ids, np.int32) for ids in found])
  return [
    next(arrays) if len(parts) == 1 else np.concatenate([next(arrays) for _ in parts])
    for parts in pieces
  ]


def _pieces(text: str) -> Iterator[str]:
  """Cuts a long text, after the end of a line or before a space if there is one."""
  start = 0
  while len(text) - start > _PIECE_CHARACTERS:
    stop = start + _PIECE_CHARACTERS
    cut = text.rfind("\n", start + 1, stop) + 1 or text.rfind(" ", start + 1, stop)
    if cut <= start:
      cut = stop
    yield text[start:cut]
    start = cut
  yield text[start:]
