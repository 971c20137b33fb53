"""Handles marked annotations: makes paths absolute, finds values that cannot change a result."""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base import paths
from base.file_paths import NamesFile
from base.ranges import Immaterial
from config.source import Macro

_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


def holds_paths(annotation: Any) -> bool:
  """Whether a value of an annotated type may hold paths."""
  return _is_marked(annotation, NamesFile)


def is_immaterial(annotation: Any) -> bool:
  """Whether a value of an annotated type cannot change a result."""
  return _is_marked(annotation, Immaterial)


def _is_marked(annotation: Any, kind: type) -> bool:
  if any(isinstance(mark, kind) for mark in getattr(annotation, "__metadata__", ())):
    return True
  return any(_is_marked(part, kind) for part in typing.get_args(annotation))


def absolute(annotation: Any, value: Any, folder: Path, macro: Callable[[Macro, Any], None]) -> Any:
  """Makes all relative paths in a value absolute.

  Args:
    annotation: the type of the value; strings marked with `NamesFile` are paths.
    value: literals, references and macros.
    folder: an absolute path, the base of relative ones.
    macro: called with each macro in place of paths, and its annotation.

  Raises:
    ValueError: a string is not a path.
  """
  if not holds_paths(annotation):
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
  # Bucket addresses have a scheme.
  if "://" in text:
    return text
  return str(paths.absolute(os.path.join(folder, os.path.expanduser(text)) if text else text))
