"""Tokenizers, equal to seqio's vocabularies of the same kind and without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from base import commands, paths, small_files
from base.errors import UserError
from base.file_paths import FilePath
from base.ranges import Count, CountFromZero
from data.files import shortened

DESCRIPTION_FILE = "vocabulary.json"
MODEL_FILE = "vocabulary.model"


class TokenizerError(UserError, ValueError):
  """Missing or invalid tokenizer files; the message says what to do."""


class Tokenizer(Protocol):
  """Protocol of tokenizers.

  Attributes:
    size: number of ids; a model needs at least as many.
    pad_id: the id in padding. Segment id 0 marks padding, never this id.
    bos_id: the input at the first token of every segment, and before every prompt.
    eos_id: the id at the end of every document.
    unk_id: the id of text that the tokenizer cannot encode.
  """

  @property
  def size(self) -> int: ...

  @property
  def pad_id(self) -> int: ...

  @property
  def bos_id(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  @property
  def unk_id(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without BOS and EOS."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of `ids` up to the first EOS."""
    ...

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: the bytes of UTF-8 text of each id (0 for special ids)."""
    ...

  def describe(self) -> dict[str, Any]:
    """Returns what identifies the tokenizer, as JSON values without paths."""
    ...


def _up_to_eos(ids: Iterable[int], eos_id: int) -> list[int]:
  ids = [int(i) for i in ids]
  return ids[: ids.index(eos_id)] if eos_id in ids else ids


@dataclasses.dataclass(frozen=True)
class Bytes:
  """UTF-8 bytes plus three special ids: 0 padding (and BOS), 1 EOS, 2 unknown, byte b is 3 + b.

  Attributes:
    extra_ids: ids added at the end, for tasks that need sentinels.
  """

  extra_ids: CountFromZero = 0

  _SPECIAL = 3

  pad_id = 0
  bos_id = 0  # As in T5: a byte tokenizer has no separate BOS.
  eos_id = 1
  unk_id = 2

  @property
  def size(self) -> int:
    """259 and the extra ids."""
    return self._SPECIAL + 256 + self.extra_ids

  def encode(self, text: str) -> list[int]:
    """Returns one id per byte of UTF-8; a lone surrogate raises UnicodeEncodeError."""
    return [b + self._SPECIAL for b in text.encode("utf-8")]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text, without special ids and invalid UTF-8."""
    values = (i - self._SPECIAL for i in _up_to_eos(ids, self.eos_id))
    return bytes(v for v in values if 0 <= v < 256).decode("utf-8", errors="ignore")

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: 1 for each byte, 0 for special and extra ids."""
    lengths = np.zeros(self.size, np.int32)
    lengths[self._SPECIAL : self._SPECIAL + 256] = 1
    return lengths

  def describe(self) -> dict[str, Any]:
    """Returns the kind, the size and the special ids."""
    return {
      "kind": "bytes",
      "size": self.size,
      "extra_ids": self.extra_ids,
      "bos_id": self.bos_id,
      "eos_id": self.eos_id,
    }


@dataclasses.dataclass(frozen=True)
class Symbols:
  """Abstract symbols for synthetic tasks: 0 padding (and BOS), 1 EOS, 2 unknown, then symbols.

  As text, symbols are numbers separated by spaces: '3 0 15'. Each counts as one byte, so that bits
  per byte are bits per symbol.

  Attributes:
    count: number of symbols; symbol k has the id 3 + k.
  """

  count: Count

  SPECIAL = 3

  pad_id = 0
  bos_id = 0
  eos_id = 1
  unk_id = 2

  @property
  def size(self) -> int:
    """The symbols and the three special ids."""
    return self.SPECIAL + self.count

  def encode(self, text: str) -> list[int]:
    """Returns the ids of numbers separated by spaces; other text is unknown."""
    numbers = [int(word) if word.isdecimal() else -1 for word in text.split()]
    return [self.SPECIAL + n if 0 <= n < self.count else self.unk_id for n in numbers]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the numbers of the symbols, without special ids."""
    numbers = (i - self.SPECIAL for i in _up_to_eos(ids, self.eos_id))
    return " ".join(str(n) for n in numbers if 0 <= n < self.count)

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: 1 for each symbol, 0 for special ids."""
    return (np.arange(self.size) >= self.SPECIAL).astype(np.int32)

  def describe(self) -> dict[str, Any]:
    """Returns the kind, the size and the special ids."""
    return {
      "kind": "symbols",
      "size": self.size,
      "bos_id": self.bos_id,
      "eos_id": self.eos_id,
    }


_MOST_MODEL_BYTES = 2**29


@functools.cache
def _model_bytes(path: str) -> bytes:
  try:
    contents = small_files.read(paths.readable(path), _MOST_MODEL_BYTES)
  except small_files.NotReadable as error:
    raise TokenizerError(f"SentencePiece model {error}. Correct the path.") from None
  except OSError as error:
    raise TokenizerError(
      f"SentencePiece model {path} cannot be read: {error.strerror}. Correct the path."
    ) from None
  if contents is None:
    raise TokenizerError(
      f"SentencePiece model {path} does not exist. Train one ({commands.line('vocabulary')}"
      f" --input=FILES --output={shlex.quote(str(path))}), or correct the path."
    )
  return contents


@functools.cache
def _processor(path: str, extra_ids: int) -> Any:
  """Returns the SentencePieceProcessor; kept here so that the configuration stays plain data."""
  model = _model_bytes(path)
  try:
    processor = _loaded(model, extra_ids)
    pieces = processor.GetPieceSize()
  except Exception:  # From protobuf or C++, depending on the file.
    pieces = 0
  if not pieces:
    raise TokenizerError(
      f"{path} is not a SentencePiece model. Give one of launch.vocabulary or spm_train."
    )
  if processor.eos_id() < 0:
    raise TokenizerError(
      f"SentencePiece model {path} has no EOS id, and every document must end with one."
      " Train it with --eos_id=1 (launch.vocabulary does)."
    )
  return processor


def forget() -> None:
  """Lets model files be read again, after one was written."""
  _model_bytes.cache_clear()
  _processor.cache_clear()


def _loaded(model: bytes, extra_ids: int) -> Any:
  import sentencepiece

  if extra_ids:
    from sentencepiece import sentencepiece_model_pb2

    # protobuf makes the class when the module is imported.
    ModelProto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    proto = ModelProto.FromString(model)
    user_defined = ModelProto.SentencePiece.USER_DEFINED
    for i in reversed(range(extra_ids)):
      proto.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=user_defined)
    model = proto.SerializeToString()
  return sentencepiece.SentencePieceProcessor(model_proto=model)


@dataclasses.dataclass(frozen=True)
class SentencePiece:
  """A SentencePiece model file.

  Attributes:
    path: the `.model` file.
    extra_ids: sentinels `<extra_id_0>`... added at the end, the first with the highest id.
  """

  path: FilePath
  extra_ids: CountFromZero = 0

  pad_id = 0

  @property
  def _processor(self) -> Any:
    return _processor(self.path, self.extra_ids)

  @property
  def size(self) -> int:
    """Number of pieces, extra ids included."""
    return self._processor.GetPieceSize()

  @property
  def bos_id(self) -> int:
    """The model's BOS id; 0 if it has none, as in T5."""
    return max(self._processor.bos_id(), 0)

  @property
  def eos_id(self) -> int:
    """The model's EOS id."""
    return self._processor.eos_id()

  @property
  def unk_id(self) -> int:
    """The model's unknown id."""
    return self._processor.unk_id()

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the model's segmentation."""
    return self._processor.EncodeAsIds(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of several texts."""
    return self._processor.Encode(list(texts), out_type=int, num_threads=1)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; ids beyond the vocabulary count as unknown."""
    size = self.size
    ids = [i if i < size else self.unk_id for i in _up_to_eos(ids, self.eos_id)]
    return self._processor.DecodeIds(ids)

  def byte_lengths(self) -> np.ndarray:
    """Returns [size] int32: bytes of each piece's text, 1 for a byte-fallback piece."""
    processor = self._processor
    lengths = np.zeros(self.size, np.int32)
    for i in range(self.size):
      if processor.IsByte(i) or processor.IsUnknown(i):
        lengths[i] = 1
      elif not processor.IsControl(i):
        lengths[i] = len(processor.IdToPiece(i).replace("▁", " ").encode("utf-8"))
    return lengths

  def describe(self) -> dict[str, Any]:
    """Returns the kind, the size, the special ids and the model file's sha256."""
    return {
      "kind": "sentencepiece",
      "size": self.size,
      "extra_ids": self.extra_ids,
      "bos_id": self.bos_id,
      "eos_id": self.eos_id,
      "sha256": hashlib.sha256(_model_bytes(self.path)).hexdigest(),
    }


def size_of(vocabulary: Tokenizer) -> int:
  """Returns the number of ids, for models sized by their tokenizer.

  Raises:
    TokenizerError: the tokenizer's file is missing or not a model.
  """
  return vocabulary.size


def save(tokenizer: Tokenizer, directory: str | Path) -> None:
  """Writes the tokenizer into `directory`; `load` needs no other file."""
  directory = paths.of(directory)
  directory.mkdir(parents=True, exist_ok=True)
  if isinstance(tokenizer, SentencePiece):
    small_files.replace(directory / MODEL_FILE, _model_bytes(tokenizer.path))
  elif hasattr(tokenizer, "write"):
    cast(Any, tokenizer).write(directory)
  text = json.dumps(tokenizer.describe(), indent=2) + "\n"
  small_files.replace(directory / DESCRIPTION_FILE, text)


def load(directory: str | Path) -> Tokenizer:
  """Loads a tokenizer written by `save`.

  Raises:
    TokenizerError: it has none, or one that is damaged, or of an unknown kind.
  """
  directory = paths.of(directory)
  file = directory / DESCRIPTION_FILE
  described = _described(file, directory)
  kind = described.get("kind")
  try:
    if kind == "bytes":
      tokenizer = Bytes(extra_ids=_count(described, "extra_ids"))
    elif kind == "symbols":
      tokenizer = Symbols(_count(described, "size") - Symbols.SPECIAL)
    elif kind == "sentencepiece":
      tokenizer = SentencePiece(str(directory / MODEL_FILE), _count(described, "extra_ids"))
    elif kind in ("tokenizer.json", "tiktoken"):
      from data import tiktoken_files, tokenizer_json

      of_kind = tokenizer_json if kind == "tokenizer.json" else tiktoken_files
      tokenizer = of_kind.described_in(directory, described)
    else:
      raise TokenizerError(
        f"{file} describes a tokenizer of kind {shortened(kind)};"
        " this version reads 'bytes', 'symbols', 'sentencepiece', 'tokenizer.json' and 'tiktoken'."
      )
  except (KeyError, TypeError):
    raise TokenizerError(f"{file} is incomplete or damaged. Restore it.") from None
  found = tokenizer.describe()
  if found != described:
    different = sorted(n for n in found.keys() | described if found.get(n) != described.get(n))
    copies = {"sentencepiece": MODEL_FILE, "tokenizer.json": kind, "tiktoken": f"tokenizer.{kind}"}
    where = directory / copies[kind] if kind in copies else "this version's tokenizer"
    raise TokenizerError(
      f"{where} does not match {file} (other {', '.join(map(str, different))[:80]})."
      " Restore the file, or prepare again."
    )
  return tokenizer


# A limit, because arrays of this length are made; no tokenizer is larger.
_MOST_IDS = 2**24


def _count(described: dict[str, Any], name: str) -> int:
  value = described[name]
  if type(value) is not int or not 0 <= value <= _MOST_IDS:
    raise TypeError(f"{name}={value!r}")
  return value


def _described(file: Path, directory: Path) -> dict[str, Any]:
  contents: bytes | None = b""
  try:
    contents = small_files.read(file)
    values = json.loads(contents or b"")
  except OSError as error:
    raise TokenizerError(f"{file} cannot be read: {error.strerror}.") from None
  except (ValueError, RecursionError):
    values = None
  if contents is None:
    raise TokenizerError(f"{file} does not exist: {directory} has no saved tokenizer.")
  if not isinstance(values, dict):
    raise TokenizerError(f"{file} is not a JSON object: truncated or damaged. Restore it.")
  return values
