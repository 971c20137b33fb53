"""Copies folders between this machine and buckets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from base import buckets, temporary_folders
from base.errors import UserError


def upload(folder: Path, target: Path, *, last: Sequence[str], without: Sequence[str] = ()) -> None:
  """Copies all files of a local folder into a bucket.

  Args:
    folder: the local folder.
    target: the place in a bucket.
    last: names of the files that make the whole valid: they are written after all others, in this
      order, so that readers see nothing or all.
    without: names of files that stay here.

  Raises:
    OSError: they cannot be written.
  """
  files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
  files = [file for file in files if file.name not in without]
  groups = [[file for file in files if file.name not in last]]
  groups += [[file for file in files if file.name == name] for name in last]
  for group in groups:
    if group:
      keys = [target / file.relative_to(folder).as_posix() for file in group]
      with buckets.told(target):
        cast(Any, target)._fs.put([str(file) for file in group], [str(key) for key in keys])


def download(source: Path, folder: Path) -> None:
  """Copies all files of a folder in a bucket into a local folder.

  Raises:
    UserError: a name leads out of the local folder.
    OSError: they cannot be read or written.
  """
  files = buckets.files_below(source)
  places = [folder / str(file).removeprefix(f"{source}/") for file in files]
  for parent in {place.parent for place in places}:
    parent.mkdir(parents=True, exist_ok=True)
  if files:
    with buckets.told(source):
      cast(Any, source)._fs.get([str(file) for file in files], [str(place) for place in places])


@contextlib.contextmanager
def local_copy(source: Path) -> Iterator[Path]:
  """Yields a folder itself, or a temporary copy of one in a bucket, under the same name.

  An error of the caller about the copy names the address instead, which the user knows.
  """
  if not buckets.in_bucket(source):
    yield source
    return
  with temporary_folders.made("from-bucket-") as above:
    try:
      download(source, above / source.name)
      yield above / source.name
    except UserError as error:
      named = (part.replace(str(above / source.name), str(source)) for part in map(str, error.args))
      error.args = tuple(named)
      raise
