"""Encodes text by the pieces into which a tokenizer.json cuts it, each of which it encodes once.

Most of the `tokenizers` library's time goes into cutting text into pieces (words, as a rule) and
looking them up. Where its rule is one of a few that are known here, Python's regular expressions
cut the same pieces in a fraction of the time, and a table has their ids, which the library made.
"""

from __future__ import annotations

import array
import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Pieces in the table of a process; some 150 bytes each. Longer ones hardly come twice.
_MOST_PIECES = 2**19
_LONGEST = 64

# The library's rule for ByteLevel (GPT-2's), and its rule where Digits comes first: a digit is a
# piece, and what is before it is cut as if the text ended there.
_BYTE_LEVEL = r"'(?:[sdmt]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^{s}{L}{N}]+|[{s}]+(?![^{s}])|[{s}]+"
_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?[{L}]+|[{N}]| ?[^{s}{L}{N}]+|[{s}]+(?![^{s}{N}])|[{s}]+"
# Of Llama 3, and of Qwen 2 and 3; `_translated` writes them as those above.
_SPLITS = tuple(
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
  + numbers
  + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  for numbers in (r"\p{N}{1,3}", r"\p{N}")
)


class PieceCache:
  """The ids of texts, equal to the library's."""

  def __init__(self, library: Any, pattern: str, added: Sequence[str]):
    """Sets the `tokenizers.Tokenizer`, the pattern of its pieces, and its added tokens."""
    self._library = library
    self._pieces = re.compile(pattern).findall
    self._added = added
    self._beginnings = {token[:2] for token in added}
    self._unknown = re.compile(f"[^{_ranges(_known(''))}]").search
    self._ids: dict[str, bytes] = {}

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of texts, int32, without BOS and EOS."""
    cut = [self._pieces(text) if self._is_known(text) else None for text in texts]
    ids = self._ids
    new = [piece for piece in set().union(*filter(None, cut)) if piece not in ids]
    ids.update(zip(new, self._of_library(new), strict=True))
    rest = [text for text, pieces in zip(texts, cut, strict=True) if pieces is None]
    others = iter(self._of_library(rest))
    found = [
      next(others) if pieces is None else b"".join(map(ids.__getitem__, pieces)) for pieces in cut
    ]
    for piece in new:
      if len(piece) > _LONGEST:
        del ids[piece]
    if len(ids) > _MOST_PIECES:
      ids.clear()
    return [np.frombuffer(one, np.int32) for one in found]

  def _of_library(self, texts: list[str]) -> Iterable[bytes]:
    encode = self._library.encode_batch_fast  # Without the places of the tokens in the text.
    found = encode(texts, add_special_tokens=False) if texts else ()
    return [array.array("i", one.ids).tobytes() for one in found]

  def _is_known(self, text: str) -> bool:
    """Whether the pattern cuts a text just as the library does."""
    if not text.isascii() and self._unknown(text):
      return False
    maybe = any(beginning in text for beginning in self._beginnings)
    return not (maybe and any(token in text for token in self._added))


def of(library: Any) -> PieceCache | None:
  """Returns the cache of a `tokenizers.Tokenizer`; None if it does not cut text in a known way."""
  described = json.loads(library.to_str())
  pattern = _pattern(described.get("pre_tokenizer"))
  if pattern is None or described.get("normalizer") is not None:
    return None
  if not _is_taken_once(described.get("post_processor")):
    return None
  return PieceCache(library, pattern, [token["content"] for token in described["added_tokens"]])


def _is_taken_once(described: Any) -> bool:
  """Whether a post-processor leaves the ids of a text as they are, but for special tokens."""
  if described is None:
    return True
  if described["type"] == "Sequence":
    return all(map(_is_taken_once, described["processors"]))
  if described["type"] == "TemplateProcessing":
    return sum("Sequence" in item for item in described["single"]) == 1
  return True


def _pattern(described: Any) -> str | None:
  """Returns the pattern of the pieces that a pre-tokenizer makes; None if it is not known."""
  if not isinstance(described, dict):
    return None
  steps = described["pretokenizers"] if described["type"] == "Sequence" else [described]
  if not steps:
    return None
  *first, last = steps
  if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(first) > 1:
    return None
  pattern = None
  if not first and last["use_regex"]:
    pattern = _BYTE_LEVEL
  elif first and first[0] == {"type": "Digits", "individual_digits": True} and last["use_regex"]:
    pattern = _DIGITS
  elif first and first[0]["type"] == "Split" and not last["use_regex"]:
    split = first[0]
    rule = split["pattern"].get("Regex")
    if rule in _SPLITS and split["behavior"] == "Isolated" and not split["invert"]:
      pattern = _translated(rule)
  if pattern is None:
    return None
  for name in ("L", "N", "s"):
    pattern = pattern.replace(f"{{{name}}}", _ranges(_known(name)))
  return pattern


def _translated(rule: str) -> str:
  """Writes classes of characters in braces, within brackets."""
  for inside in ("[^\\r\\n\\p{L}\\p{N}]", "[^\\s\\p{L}\\p{N}]"):
    plain = inside.replace("\\p{L}", "{L}").replace("\\p{N}", "{N}").replace("\\s", "{s}")
    rule = rule.replace(inside, plain)
  rule = rule.replace("\\p{L}", "[{L}]").replace("\\p{N}", "[{N}]")
  return rule.replace("\\S", "[^{s}]").replace("\\s", "[{s}]")


@functools.cache
def _known(name: str) -> list[int]:
  """Returns the characters of a class (L, N, s for blanks; '' for all) that all libraries agree on.

  Those of Unicode 3.2 that are in the same category today: other versions put no others there.
  """
  found = []
  for code in range(0x10000):
    now = unicodedata.category(chr(code))
    if now != unicodedata.ucd_3_2_0.category(chr(code)) or now in ("Cn", "Cs"):
      continue
    blank = now[0] == "Z" or code in (9, 10, 11, 12, 13, 0x85)
    # The library ignores case in some rules, and these are s and k to it.
    if code in (0x17F, 0x212A):
      continue
    if {"L": now[0] == "L", "N": now[0] == "N", "s": blank, "": True}[name]:
      found.append(code)
  return found


def _ranges(codes: Sequence[int]) -> str:
  """Writes characters as ranges of a regular expression's class."""
  starts = [code for before, code in zip([-2, *codes], codes, strict=False) if code != before + 1]
  ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if after != code + 1]
  return "".join(f"\\u{a:04x}-\\u{b:04x}" for a, b in zip(starts, ends, strict=True))
