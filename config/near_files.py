"""Suggestions for the name of a gin file that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from base.wording import near
from config.place import GIN_ROOT


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
