"""Makes the paths among the values of a configuration absolute, by the annotations of their parameters."""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.file_paths import NamesFile
from launch import paths
from launch.gin_source import Macro

_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


def marks(annotation: Any) -> list[NamesFile]:
  """The marks of all paths that a value of an annotated type may hold."""
  if typing.get_origin(annotation) is typing.Annotated:
    return [mark for mark in annotation.__metadata__ if isinstance(mark, NamesFile)]
  return [mark for part in typing.get_args(annotation) for mark in marks(part)]


def absolute(annotation: Any, value: Any, folder: Path, macro: Callable[[Macro, Any], None]) -> Any:
  """The value with every relative path in it taken from a folder.

  Args:
    annotation: the type of the value; strings that it marks with `NamesFile` are paths.
    value: literals, references and macros.
    folder: an absolute path.
    macro: called with each macro that stands for paths, and their annotation.

  Raises:
    ValueError: a string is not a path.
  """
  if not marks(annotation):
    return value
  if isinstance(value, Macro):
    macro(value, annotation)
    return value
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Annotated:
    return _absolute(value, folder) if isinstance(value, str) else value
  if origin in (typing.Union, types.UnionType):
    for choice in arguments:
      value = absolute(choice, value, folder, macro)
    return value
  if origin in _SEQUENCES and isinstance(value, list | tuple):
    return type(value)(absolute(arguments[0], item, folder, macro) for item in value)
  if origin in _MAPPINGS and isinstance(value, dict):
    return {
      absolute(arguments[0], key, folder, macro): absolute(arguments[1], item, folder, macro)
      for key, item in value.items()
    }
  return value


def _absolute(text: str, folder: Path) -> str:
  # A bucket's address has a scheme.
  if "://" in text:
    return text
  return str(paths.absolute(os.path.join(folder, os.path.expanduser(text)) if text else text))
