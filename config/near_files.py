"""Suggestions for the name of a gin file that does not exist."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from base.wording import near
from config.place import GIN_ROOT

# What to name, and the macro to set, to train on a file whose name has this ending.
_DATA = {
  ".jsonl": ("JSON lines", "json_lines_bytes", "JSON_LINES"),
  ".ndjson": ("JSON lines", "json_lines_bytes", "JSON_LINES"),
  ".json": ("JSON lines", "json_lines_bytes", "JSON_LINES"),
  ".parquet": ("its rows", "parquet_bytes", "PARQUET_FILES"),
}
_COMPRESSED = (".gz", ".xz", ".zst")


def to_train_on(path: Path, shown: str, is_text: bool) -> str:
  """Says what to type to train on a file that was given as a gin file.

  Args:
    path: the file.
    shown: its path as messages show it.
    is_text: whether it is valid UTF-8.

  Returns:
    the end of an error's line; '' for a file that cannot be trained on, such as an image.
  """
  packed = path.suffix in _COMPRESSED
  kind = _DATA.get(Path(path.stem).suffix if packed else path.suffix)
  if kind is None and (is_text or packed):
    kind = ("text", "text_files_bytes", "TEXT_FILES")
  if kind is None:
    return ""
  what, file, macro = kind
  given = shlex.quote(f"--gin.{macro}={shown}")
  return f"; to train on {what}, name gin/data/{file}.gin and give {given}"


def suggestion(name: str, folders: Sequence[Path]) -> str:
  """Suggests a file with a similar own name; else lists those of the folder that `name` names.

  Args:
    name: the name of no file.
    folders: the folders in which it was looked for.

  Returns:
    the end of an error's line; '' without a suggestion.
  """
  parent, files = Path(name).parent, _files_near(name, folders)
  found = near(name, [file for file in files if _is_similar(Path(file), Path(name))])
  if "did you mean" in found:
    return found
  beside = sorted(Path(file).stem for file in files if Path(file).parent == parent)
  return f"; {parent} has {', '.join(beside)}" if parent.name and beside else ""


def _is_similar(one: Path, other: Path) -> bool:
  """Whether two files have similar names, more so in different folders."""
  likeness = difflib.SequenceMatcher(None, one.stem.lower(), other.stem.lower()).ratio()
  return likeness >= (0.6 if one.parent == other.parent else 0.8)


def _files_near(name: str, folders: Sequence[Path]) -> list[str]:
  """Lists gin files with names close to `name`, in the same form."""
  found = [
    str(path.relative_to(folder))
    for folder in folders
    if folder not in (Path(), GIN_ROOT.parent)
    for path in folder.rglob("*.gin")
  ]
  if Path(name).parts[0] == GIN_ROOT.name:
    found += [f"{GIN_ROOT.name}/{path.relative_to(GIN_ROOT)}" for path in GIN_ROOT.rglob("*.gin")]
  parent = Path(name).parent
  if parent.is_dir():
    found += [str(parent / path.name) for path in parent.glob("*.gin")]
  return found
