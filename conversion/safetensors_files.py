"""Reads and writes Hugging Face's folders of safetensors: one file, or many with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from base import small_files
from base.errors import UserError
from conversion.safetensors_header import check_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")
_METADATA = {"format": "pt"}  # transformers rejects files without it


class TensorFileError(UserError, ValueError):
  """Files that cannot be read; the message names the file and the fault."""


class TensorFiles(Mapping[str, np.ndarray]):
  """The tensors of a folder by name; each is read when it is looked up, and not cached.

  Attributes:
    shapes: shapes by name.
    types: safetensors' dtypes ('BF16', 'F32') by name.
  """

  def __init__(self, folder: Path):
    """Reads the files' headers.

    Raises:
      TensorFileError: there are no such files, or one is missing, damaged or does not match the
        index.
    """
    self._files: dict[str, Any] = {}
    self._place: dict[str, Path] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.types: dict[str, str] = {}
    index = folder / INDEX_FILE
    listed = _weight_map(index) if index.is_file() else {}
    if not listed and not (folder / SINGLE_FILE).is_file():
      raise TensorFileError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}.")
    for name in dict.fromkeys(listed.values()) or [SINGLE_FILE]:
      self._open(folder / name)
    for tensor, name in listed.items():
      if self._place.get(tensor) != folder / name:
        raise TensorFileError(f"{index} places {tensor} in {name}, which does not contain it.")

  def _open(self, file: Path) -> None:
    import safetensors

    if not file.is_file():
      raise TensorFileError(f"{file} is missing, though {INDEX_FILE} lists it. Download it again.")
    try:
      check_header(file)
      # Not memory-mapped: pages of a mapped file stay in memory while the file is open.
      opened = safetensors.safe_open(file, framework="np", backend="pread")
      for name in opened.keys():  # noqa: SIM118  no mapping
        part = opened.get_slice(name)
        if name in self._place:
          raise TensorFileError(
            f"{self._place[name]} and {file} both contain {name[:120]!r}. Download them again."
          )
        self._place[name] = file
        self.shapes[name] = tuple(part.get_shape())
        self.types[name] = part.get_dtype()
    except TensorFileError:
      raise
    except (safetensors.SafetensorError, ValueError, OSError) as error:
      raise TensorFileError(f"{file} is damaged ({str(error)[:250]}). Download it again.") from None
    self._files[str(file)] = opened

  def __getitem__(self, name: str) -> np.ndarray:
    return self._files[str(self._place[name])].get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._place)

  def __len__(self) -> int:
    return len(self._place)


def _weight_map(index: Path) -> dict[str, str]:
  """Returns the file name of each tensor, in the index's folder."""
  try:
    found = dict(json.loads(small_files.read(index) or b"")["weight_map"])
  except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
    raise TensorFileError(
      f"{index} is not an index of safetensors files ({repr(error)[:200]})."
    ) from None
  for tensor, name in found.items():
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
      raise TensorFileError(
        f"{index} places {str(tensor)[:80]!r} in {str(name)[:80]!r}, which must be the name of a "
        ".safetensors file in the same folder."
      )
  return found


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> None:
  """Writes tensors into files of at most `max_bytes` each (a larger tensor is alone in a file).

  One file's tensors are in memory at a time. A single file has no index.

  Args:
    folder: an existing folder without such files.
    tensors: names and C-contiguous arrays.
    max_bytes: the most bytes of arrays in a file.
  """
  from safetensors.numpy import save_file

  parts: list[list[str]] = []
  waiting: dict[str, np.ndarray] = {}
  total = 0

  def flush() -> None:
    save_file(waiting, _part(folder, len(parts)), metadata=_METADATA)
    _part(folder, len(parts)).chmod(0o644)  # the library makes files readable only by their owner
    parts.append(list(waiting))
    waiting.clear()

  for name, array in tensors:
    if waiting and sum(a.nbytes for a in waiting.values()) + array.nbytes > max_bytes:
      flush()
    waiting[name] = array
    total += array.nbytes
  flush()
  if len(parts) == 1:
    _part(folder, 0).rename(folder / SINGLE_FILE)
    return
  weight_map = {}
  for number, names in enumerate(parts):
    file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
    _part(folder, number).rename(folder / file)
    weight_map |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _part(folder: Path, number: int) -> Path:
  return folder / f"part-{number}.safetensors"
