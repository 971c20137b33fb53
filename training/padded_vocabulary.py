"""Loads embeddings that were saved with another number of padding rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.tree_paths import by_path, joined


class VocabularyRows(NamedTuple):
  """The parameters of a model with an entry for each id and padding after the last.

  Attributes:
    size: number of ids.
    axes: maps the parameter's path, joined by slashes, to the dimension of the ids.
  """

  size: int
  axes: Mapping[str, int]

  @classmethod
  def of(cls, model: LanguageModel) -> VocabularyRows:
    """Finds those of a model of the zoo."""
    axes = {p.path: p.axes.index("vocab") for p in list_parameters(model) if "vocab" in p.axes}
    return cls(model.vocab_size, axes)

  def as_saved(self, wanted: Any, saved: Any) -> Any:
    """Returns abstract arrays with the saved number of padding rows.

    Args:
      wanted: shapes, dtypes and shardings of parameters, or of a tree with copies of them, such as
        an optimizer's state.
      saved: shapes, by the same paths.

    Returns:
      `wanted`; arrays that differ only in padding have the shape of `saved` and are replicated.
      Other arrays are unchanged.
    """
    if not self.axes:
      return wanted
    shapes = {path: tuple(leaf.shape) for path, leaf in by_path(saved).items()}

    def change(path, leaf):
      shape = shapes.get(joined(path))
      if shape is None or not self._differ_in_padding(joined(path), tuple(leaf.shape), shape):
        return leaf
      sharding = leaf.sharding
      if isinstance(sharding, NamedSharding):
        # Replicated, because the mesh may not divide the saved rows.
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(change, wanted)

  def padded_anew(self, loaded: Any, wanted: Any) -> Any:
    """Converts arrays loaded by `as_saved` to the wanted padding rows (zeros) and dtypes.

    Raises:
      ValueError: rows to be removed are not zero: they belong to ids.
    """

    def change(path, leaf, like):
      leaf = leaf.astype(like.dtype)
      if leaf.shape == like.shape:
        return leaf
      kept = tuple(slice(0, min(a, b)) for a, b in zip(leaf.shape, like.shape, strict=True))
      widths = [(0, max(0, b - a)) for a, b in zip(leaf.shape, like.shape, strict=True)]
      if jnp.count_nonzero(leaf) != jnp.count_nonzero(leaf[kept]):
        raise ValueError(
          f"{joined(path)} has shape {leaf.shape} and more ids than the model's {self.size}"
        )
      return jax.jit(lambda x: jnp.pad(x[kept], widths), out_shardings=like.sharding)(leaf)

    return jax.tree_util.tree_map_with_path(change, loaded, wanted)

  def _differ_in_padding(self, path: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the shapes of an array differ only in the number of padding rows."""
    names = path.replace(".", "/")  # other parts of a train state have paths joined by dots
    axis = next((axis for own, axis in self.axes.items() if f"/{names}".endswith(f"/{own}")), None)
    if axis is None or one == other or len(one) != len(other):
      return False
    others_agree = one[:axis] + one[axis + 1 :] == other[:axis] + other[axis + 1 :]
    return others_agree and min(one[axis], other[axis]) >= self.size


# Of a model with the saved padding.
NO_ROWS = VocabularyRows(0, {})
