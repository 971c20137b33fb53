"""Formats paths of a tree's leaves as text."""

from __future__ import annotations

from typing import Any

import jax


def joined(path: Any, separator: str = "/") -> str:
  """Joins the names, fields and indices of a path of `jax.tree_util`."""
  return separator.join(name(key) for key in path)


def name(key: Any) -> str:
  """Formats one step of a path: a key, a field's name or an index."""
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def by_path(tree: Any, separator: str = "/") -> dict[str, Any]:
  """Returns the leaves of a tree by their joined paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {joined(path, separator): leaf for path, leaf in leaves}
