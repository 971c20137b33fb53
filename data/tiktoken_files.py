"""Tokenizers in tiktoken's files of ranks, read by tiktoken itself, so that ids are its own."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from base import paths, small_files
from base.file_paths import FilePath
from data.tokenizers import TokenizerError

FILE = "tokenizer.tiktoken"

# The largest published ones have 4 MB.
_MOST_BYTES = 2**28
# Each id is a row of the embedding, and of tables.
_MOST_IDS = 2**24

END_OF_TEXT = "<|endoftext|>"


class Encoding(NamedTuple):
  """What a file of ranks lacks.

  Attributes:
    ranks: number of ranks of its published file, by which it is recognized.
    pattern: the regular expression that cuts a text into pieces, each encoded by itself.
    special: special tokens with their ids.
    bos, eos: the special tokens that begin and end a text.
    size: number of ids of the models that use it.
  """

  ranks: int
  pattern: str
  special: Mapping[str, int]
  bos: str
  eos: str
  size: int


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BLANKS = (r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")
# Patterns and ids as published: the first three in tiktoken (tiktoken_ext/openai_public.py), for
# r50k_base.tiktoken, cl100k_base.tiktoken and o200k_base.tiktoken; the last in Meta's llama3
# (llama/tokenizer.py), for its tokenizer.model.
ENCODINGS = {
  "gpt2": Encoding(
    50256,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    {END_OF_TEXT: 50256},
    END_OF_TEXT,
    END_OF_TEXT,
    50257,
  ),
  "cl100k_base": Encoding(
    100256,
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    {
      END_OF_TEXT: 100257,
      "<|fim_prefix|>": 100258,
      "<|fim_middle|>": 100259,
      "<|fim_suffix|>": 100260,
      "<|endofprompt|>": 100276,
    },
    END_OF_TEXT,
    END_OF_TEXT,
    100277,
  ),
  "o200k_base": Encoding(
    199998,
    "|".join(
      (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        *_BLANKS,
      )
    ),
    {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    END_OF_TEXT,
    END_OF_TEXT,
    200019,
  ),
  "llama3": Encoding(
    128000,
    "|".join(
      (
        _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        *_BLANKS,
      )
    ),
    {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001},
    "<|begin_of_text|>",
    "<|end_of_text|>",
    128256,
  ),
}


class _Loaded(NamedTuple):
  """tiktoken's encoding of a file, and what was set for it."""

  encoding: Any
  chosen: Encoding
  contents: bytes
  lengths: np.ndarray


@functools.cache
def _ranks(path: str) -> tuple[dict[bytes, int], bytes]:
  """Reads a file of ranks: lines with a token in base64 and its rank."""
  try:
    contents = small_files.read(paths.readable(path), _MOST_BYTES)
  except small_files.NotReadable as error:
    raise TokenizerError(f"tokenizer {error}. Correct the path.") from None
  except OSError as error:
    raise TokenizerError(
      f"tokenizer {path} cannot be read: {error.strerror}. Correct the path."
    ) from None
  if contents is None:
    raise TokenizerError(f"tokenizer {path} does not exist. Correct the path.")
  ranks: dict[bytes, int] = {}
  for number, line in enumerate(contents.splitlines(), start=1):
    if not line.strip():
      continue
    try:
      token, rank = line.split()
      value = int(rank)
      ranks[base64.b64decode(token, validate=True)] = value
      if not 0 <= value < _MOST_IDS:
        raise ValueError
    except (ValueError, binascii.Error):
      raise TokenizerError(
        f"{path}:{number}: not a token in base64 and its rank. Give a file of tiktoken's, such as"
        " cl100k_base.tiktoken."
      ) from None
  missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
  if missing or len(set(ranks.values())) < len(ranks):
    what = f"the byte {missing[0]}" if missing else "a rank of its own for each token"
    raise TokenizerError(f"{path} lacks {what}: it is cut off or damaged. Replace it.")
  return ranks, contents


def _chosen(path: str, ranks: Mapping[bytes, int], given: Tiktoken) -> Encoding:
  """Returns what the file lacks: as set, or of the published file with as many ranks."""
  if given.pattern is not None:
    eos, first = given.eos or END_OF_TEXT, max(ranks.values()) + 1
    bos = given.bos or eos
    special = {token: first + n for n, token in enumerate(dict.fromkeys((bos, eos)))}
    return Encoding(len(ranks), given.pattern, special, bos, eos, first + len(special))
  names = ", ".join(ENCODINGS)
  name = given.encoding
  if name is None:
    name = next((n for n, known in ENCODINGS.items() if known.ranks == len(ranks)), None)
    if name is None:
      raise TokenizerError(
        f"{path} has {len(ranks):,} ranks, as no published file. Set"
        f" --gin.tiktoken_files.Tiktoken.encoding to one of {names}, or .pattern to the regular"
        " expression that cuts its text."
      )
  if name not in ENCODINGS:
    raise TokenizerError(f"encoding={name!r} is unknown. Choose from {names}, or set pattern.")
  chosen = ENCODINGS[name]
  taken = max(ranks.values())
  if taken >= min(chosen.special.values()):
    raise TokenizerError(
      f"{path} has the rank {taken:,}, which is a special token's in {name!r}. Set another"
      " encoding, or pattern."
    )
  for option, token in (("bos", given.bos), ("eos", given.eos)):
    if token is not None and token not in chosen.special:
      raise TokenizerError(
        f"{option}={token!r} is none of the special tokens of {name!r}:"
        f" {', '.join(chosen.special)}. Choose one of them."
      )
  return chosen._replace(bos=given.bos or chosen.bos, eos=given.eos or chosen.eos)


@functools.cache
def _loaded(given: Tiktoken) -> _Loaded:
  try:
    import tiktoken
  except ImportError:
    raise TokenizerError(
      f"{given.path} is read with tiktoken, which is not installed. Install the extra 'tiktoken'."
    ) from None
  ranks, contents = _ranks(given.path)
  chosen = _chosen(given.path, ranks, given)
  try:
    encoding = tiktoken.Encoding(
      given.path,
      pat_str=chosen.pattern,
      mergeable_ranks=ranks,
      special_tokens=dict(chosen.special),
    )
  except ValueError as error:
    said = " ".join(str(error).split())[:150]
    raise TokenizerError(f"pattern={chosen.pattern!r}: {said}. Correct it.") from None
  lengths = np.zeros(max(chosen.size, max(ranks.values()) + 1), np.int32)
  for token, rank in ranks.items():
    lengths[rank] = len(token)
  return _Loaded(encoding, chosen, contents, lengths)


@dataclasses.dataclass(frozen=True)
class Tiktoken:
  """A file of ranks, such as cl100k_base.tiktoken; ids are those of tiktoken's `encode_ordinary`.

  Special tokens that a text spells out stay text.

  Attributes:
    path: the file.
    encoding: the pattern and special tokens: 'gpt2', 'cl100k_base', 'o200k_base' or 'llama3'; None
      recognizes them by the number of ranks.
    pattern: a regular expression in place of an encoding; bos and eos then follow the last rank.
    bos: the special token that begins a text; None is the encoding's, or eos.
    eos: the special token that ends a text; None is the encoding's, or <|endoftext|>.
  """

  path: FilePath
  encoding: str | None = None
  pattern: str | None = None
  bos: str | None = None
  eos: str | None = None

  def __post_init__(self):
    if self.encoding is not None and self.pattern is not None:
      raise TokenizerError(
        f"encoding={self.encoding!r} has no effect beside a pattern. Remove one of them."
      )

  @property
  def size(self) -> int:
    """Number of ids, special and unused ones included."""
    return len(_loaded(self).lengths)

  @property
  def eos_id(self) -> int:
    """The id of the EOS."""
    chosen = _loaded(self).chosen
    return chosen.special[chosen.eos]

  @property
  def bos_id(self) -> int:
    """The id of the BOS."""
    chosen = _loaded(self).chosen
    return chosen.special[chosen.bos]

  @property
  def pad_id(self) -> int:
    """The EOS."""
    return self.eos_id

  @property
  def unk_id(self) -> int:
    """The EOS: every text can be encoded."""
    return self.eos_id

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without BOS and EOS.

    Raises:
      TokenizerError: tiktoken cannot encode it.
    """
    encode = _loaded(self).encoding.encode_ordinary
    try:
      return encode(text)
    except BaseException as error:
      # A BaseException: the regular expression has no room for more than a million blanks.
      if type(error).__name__ != "PanicException":
        raise
      said = " ".join(str(error).split())[:150]
      raise TokenizerError(
        f"{self.path}: tiktoken cannot encode a text of {len(text):,} characters ({said}), such as"
        " a million blanks in a row. Shorten the blanks, or use another tokenizer."
      ) from None

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of several texts."""
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` up to the first EOS, without special ids and invalid UTF-8."""
    encoding, _, _, lengths = _loaded(self)
    ids, eos = [int(i) for i in ids], self.eos_id
    ids = ids[: ids.index(eos)] if eos in ids else ids
    known = [i for i in ids if 0 <= i < len(lengths) and lengths[i]]
    return encoding.decode_bytes(known).decode("utf-8", errors="ignore")

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: the bytes of each id, 0 for special ids."""
    return _loaded(self).lengths

  def describe(self) -> dict[str, Any]:
    """Returns the kind, the size, the pattern, the special ids and the file's sha256."""
    chosen = _loaded(self).chosen
    return {
      "kind": "tiktoken",
      "size": self.size,
      "pattern": chosen.pattern,
      "own_pattern": self.pattern is not None,
      "bos": chosen.bos,
      "eos": chosen.eos,
      "bos_id": self.bos_id,
      "eos_id": self.eos_id,
      "sha256": hashlib.sha256(_loaded(self).contents).hexdigest(),
    }

  def write(self, directory: Path) -> None:
    """Writes the file into a directory."""
    small_files.replace(directory / FILE, _loaded(self).contents)


def described_in(directory: Path, described: dict[str, Any]) -> Tiktoken:
  """Returns the tokenizer that a directory has a copy of.

  Raises:
    TypeError: the description's pattern, BOS or EOS is not text.
  """
  pattern, bos, eos = (described[name] for name in ("pattern", "bos", "eos"))
  if not all(isinstance(value, str) for value in (pattern, bos, eos)):
    raise TypeError(f"pattern={pattern!r}, bos={bos!r}, eos={eos!r}")
  path = str(directory / FILE)
  if described["own_pattern"]:
    return Tiktoken(path, None, pattern, bos, eos)
  name = next((name for name, known in ENCODINGS.items() if known.pattern == pattern), None)
  return Tiktoken(path, name, None, bos, eos)
