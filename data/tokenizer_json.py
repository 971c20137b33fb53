"""Tokenizers of Hugging Face's `tokenizers` library, in a `tokenizer.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from base import buckets, commands, paths, small_files
from base.file_paths import FilePath
from data import piece_cache
from data.tokenizers import TokenizerError

FILE = "tokenizer.json"
# Beside it, with the names of its special tokens.
CONFIG_FILE = "tokenizer_config.json"

# The largest published ones have some 30 MB.
_MOST_BYTES = 2**29
# The largest published ones have a million ids. Each id is a row of the embedding, and of tables.
_MOST_IDS = 2**24

# Names of the end and the beginning of a text, where no tokenizer_config.json tells them.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "[CLS]")


class _Loaded(NamedTuple):
  """A tokenizer of the library and what its files say about it."""

  tokenizer: Any
  contents: bytes
  config: dict[str, Any]
  config_contents: bytes | None


def file_of(path: str | os.PathLike) -> Path:
  """Returns the `tokenizer.json` that a path names: itself, or the one in a folder."""
  return _file_at(path) if buckets.is_address(os.fspath(path)) else _file_of(path)


@functools.cache
def _file_at(address: str | os.PathLike) -> Path:
  """As `file_of`; asks for each address once."""
  return _file_of(address)


def _file_of(path: str | os.PathLike) -> Path:
  place = paths.readable(path)
  return place / FILE if place.is_dir() else place


def _contents(file: Path) -> bytes | None:
  try:
    return small_files.read(file, _MOST_BYTES)
  except small_files.NotReadable as error:
    raise TokenizerError(f"tokenizer {error}. Correct the path.") from None
  except OSError as error:
    raise TokenizerError(
      f"tokenizer {file} cannot be read: {error.strerror}. Correct the path."
    ) from None


@functools.cache
def _loaded(path: str) -> _Loaded:
  import tokenizers as library

  file = file_of(path)
  contents = _contents(file)
  if contents is None:
    raise TokenizerError(
      f"tokenizer {file} does not exist. Train one ({commands.line('vocabulary')}"
      f" --input=FILES --output={shlex.quote(str(file))}), or correct the path."
    )
  with _told(
    f"{file} is not a tokenizer.json of the tokenizers library",
    "Give the file that launch.vocabulary --output=NAME.json or save_pretrained writes.",
  ):
    tokenizer = library.Tokenizer.from_buffer(contents)
  largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
  if largest >= _MOST_IDS:
    raise TokenizerError(
      f"{file} has the id {largest:,}; at most {_MOST_IDS - 1:,} is allowed. Number its tokens"
      " from 0 on."
    )
  # A file may tell to cut texts at a model's length.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  if getattr(tokenizer.model, "dropout", None):
    tokenizer.model.dropout = None  # Rows are a function of the text.
  config_contents = _contents(file.with_name(CONFIG_FILE)) if file.name == FILE else None
  config = {}
  if config_contents is not None:
    try:
      config = json.loads(config_contents)
    except (ValueError, RecursionError):
      config = None
    if not isinstance(config, dict):
      raise TokenizerError(f"{file.with_name(CONFIG_FILE)} is not a JSON object. Restore it.")
  return _Loaded(tokenizer, contents, config, config_contents)


@contextlib.contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
  """Turns errors of the tokenizers library into TokenizerError."""
  try:
    yield
  except BaseException as error:
    # From a fault in the library, a BaseException.
    known = (Exception, ValueError)
    if type(error) not in known and type(error).__name__ != "PanicException":
      raise
    said = " ".join(str(error).split())[:150]
    raise TokenizerError(f"{what} ({said}). {remedy}") from None


def _encoding(path: str) -> contextlib.AbstractContextManager[None]:
  return _told(
    f"{file_of(path)} cannot encode a text",
    "Correct its unknown token or its normalizer, or use another tokenizer.",
  )


def _named(config: dict[str, Any], name: str) -> str | None:
  """Returns the special token of a tokenizer_config.json, written as text or as an object."""
  value = config.get(f"{name}_token")
  value = value.get("content") if isinstance(value, dict) else value
  return value if isinstance(value, str) else None


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
  """A `tokenizer.json`: ids are those of `transformers` without the tokens that it adds.

  The dropout of a BPE is off: the same text has the same ids.

  Special tokens that a text spells out become their ids, as there. Where the files name no BOS, no
  unknown token or no padding, the EOS takes their place.

  Attributes:
    path: the file, or the folder with it; a tokenizer_config.json beside it names BOS and EOS.
    bos: the token that starts a text; None is the one that the files name.
    eos: the token that ends a text; None is the one that the files name.
  """

  path: FilePath
  bos: str | None = None
  eos: str | None = None

  @property
  def library(self) -> Any:
    """The `tokenizers.Tokenizer`."""
    return _loaded(self.path).tokenizer

  @property
  def size(self) -> int:
    """The largest id and one, added tokens included."""
    return _size(self.path)

  def _special(self, given: str | None, name: str, usual: Sequence[str] = ()) -> str | None:
    """Returns the token that was given, or that the files name; None without one."""
    tokenizer, _, config, config_contents = _loaded(self.path)
    token = given or _named(config, name)
    if token is None and config_contents is None:
      token = next((one for one in usual if tokenizer.token_to_id(one) is not None), None)
    if token is not None and tokenizer.token_to_id(token) is None:
      where = f"{name}={token!r}" if given else f"{CONFIG_FILE} names the {name} {token!r}, which"
      raise TokenizerError(
        f"{where} is not a token of {file_of(self.path)}. Set"
        f" --gin.tokenizer_json.TokenizerJson.{name}=TOKEN."
      )
    return token

  @property
  def eos_token(self) -> str:
    """The token at the end of every document."""
    token = self._special(self.eos, "eos", _ENDS)
    if token is None:
      raise TokenizerError(
        f"{file_of(self.path)} names no end of a text, and every document must end with one. Set"
        " --gin.tokenizer_json.TokenizerJson.eos=TOKEN."
      )
    return token

  @property
  def bos_token(self) -> str:
    """The token before every document; the EOS if the files name none."""
    return self._special(self.bos, "bos", _STARTS) or self.eos_token

  @property
  def eos_id(self) -> int:
    """The id of the EOS."""
    return self.library.token_to_id(self.eos_token)

  @property
  def bos_id(self) -> int:
    """The id of the BOS."""
    return self.library.token_to_id(self.bos_token)

  @property
  def pad_id(self) -> int:
    """The id of the padding."""
    token = _named(_loaded(self.path).config, "pad")
    found = None if token is None else self.library.token_to_id(token)
    return self.eos_id if found is None else found

  @property
  def unk_id(self) -> int:
    """The id of text that the tokenizer cannot encode; the EOS if it can encode all."""
    token = getattr(self.library.model, "unk_token", None) or _named(
      _loaded(self.path).config, "unk"
    )
    found = _unigram_unknown(self.path) if token is None else self.library.token_to_id(token)
    return self.eos_id if found is None else found

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without BOS and EOS."""
    with _encoding(self.path):
      return self.library.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of several texts."""
    encode = self.library.encode_batch_fast  # Without the places of the tokens in the text.
    with _encoding(self.path):
      return [found.ids for found in encode(list(texts), add_special_tokens=False)]

  def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of several texts, int32: those of `encode_batch`, by the pieces it knows."""
    cache = _piece_cache(self.path)
    if cache is None:
      return [np.array(ids, np.int32) for ids in self.encode_batch(texts)]
    with _encoding(self.path):
      return cache.encode(texts)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` up to the first EOS, without special tokens."""
    ids, eos = [int(i) for i in ids], self.eos_id
    ids = ids[: ids.index(eos)] if eos in ids else ids
    return self.library.decode([i for i in ids if 0 <= i < self.size], skip_special_tokens=True)

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: the bytes of UTF-8 text of each id, 0 for special ids."""
    return _byte_lengths(self.path)

  def describe(self) -> dict[str, Any]:
    """Returns the kind, the size, BOS and EOS and the file's sha256."""
    return {
      "kind": "tokenizer.json",
      "size": self.size,
      "bos": self.bos_token,
      "eos": self.eos_token,
      "bos_id": self.bos_id,
      "eos_id": self.eos_id,
      "sha256": hashlib.sha256(_loaded(self.path).contents).hexdigest(),
    }

  def write(self, directory: Path) -> None:
    """Writes `tokenizer.json` into a directory, and tokenizer_config.json if there is one."""
    loaded = _loaded(self.path)
    small_files.replace(directory / FILE, loaded.contents)
    if loaded.config_contents is not None:
      small_files.replace(directory / CONFIG_FILE, loaded.config_contents)


def described_in(directory: Path, described: dict[str, Any]) -> TokenizerJson:
  """Returns the tokenizer that a directory has a copy of.

  Raises:
    TypeError: the description's BOS or EOS is not text.
  """
  bos, eos = described["bos"], described["eos"]
  if not isinstance(bos, str) or not isinstance(eos, str):
    raise TypeError(f"bos={bos!r}, eos={eos!r}")
  return TokenizerJson(str(directory / FILE), bos, eos)


def forget() -> None:
  """Lets files be read again, after one was written."""
  for kept in (_file_at, _loaded, _piece_cache, _size, _unigram_unknown, _byte_lengths):
    kept.cache_clear()


@functools.cache
def _piece_cache(path: str) -> piece_cache.PieceCache | None:
  return piece_cache.of(_loaded(path).tokenizer)


@functools.cache
def _size(path: str) -> int:
  return max(_loaded(path).tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


@functools.cache
def _unigram_unknown(path: str) -> int | None:
  """Returns the id of unknown text of a Unigram model, which names it by its number alone."""
  tokenizer = _loaded(path).tokenizer
  if type(tokenizer.model).__name__ != "Unigram":
    return None
  return json.loads(tokenizer.to_str())["model"].get("unk_id")


@functools.cache
def _byte_lengths(path: str) -> np.ndarray:
  tokenizer = _loaded(path).tokenizer
  described = json.loads(tokenizer.to_str())
  text_of = _spelling(described)
  lengths = np.zeros(_size(path), np.int32)
  for token, number in tokenizer.get_vocab(with_added_tokens=False).items():
    lengths[number] = text_of(token)
  for number, token in tokenizer.get_added_tokens_decoder().items():
    lengths[number] = 0 if token.special else len(token.content.encode("utf-8"))
  return lengths


def _spelling(described: dict[str, Any]) -> Any:
  """Returns a function from a token to the bytes of its text, by the kind of its decoder."""
  kinds = set(_types(described.get("decoder")))
  if "ByteLevel" in kinds:
    return len  # A character per byte.
  prefix = ""
  if "WordPiece" in kinds:
    prefix = "##"

  def spelled(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
      return 1
    return len(token.removeprefix(prefix).replace("▁", " ").encode("utf-8"))

  return spelled


def _types(part: Any) -> Iterable[str]:
  """Yields the types of a part of tokenizer.json and of those in it."""
  if isinstance(part, dict):
    if isinstance(part.get("type"), str):
      yield part["type"]
    for value in part.values():
      yield from _types(value)
  elif isinstance(part, list):
    for value in part:
      yield from _types(value)
