"""Embeddings that were saved with another number of padding rows than the model has."""

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
  """The parameters of a model that have an entry for each id, and padding behind the last.

  Attributes:
    size: number of ids.
    axes: the parameter's path, joined by slashes, to the dimension of the ids.
  """

  size: int
  axes: Mapping[str, int]

  @classmethod
  def of(cls, model: LanguageModel) -> VocabularyRows:
    """Those of a model of the zoo."""
    axes = {p.path: p.axes.index("vocab") for p in list_parameters(model) if "vocab" in p.axes}
    return cls(model.vocab_size, axes)

  def as_saved(self, wanted: Any, saved: Any) -> Any:
    """Abstract arrays with the number of padding rows that they were saved with.

    Args:
      wanted: shapes, types and shardings: parameters, or what holds copies of them, such as an
        optimizer's state.
      saved: shapes, by the same paths.

    Returns:
      `wanted`; arrays whose padding differs have the shape of `saved` and lie whole on every
      device. What differs in anything else stays as it is.
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
        # No mesh need divide the rows that were saved.
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
      return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(change, wanted)

  def padded_anew(self, loaded: Any, wanted: Any) -> Any:
    """What was loaded as `as_saved` says, with the padding rows (zeros) and the types that are
    wanted.

    Raises:
      ValueError: rows to be cut are not zero: they are those of ids.
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
    """Whether the shapes of an array differ in the number of padding rows alone."""
    names = path.replace(".", "/")  # the rest of a train state has paths joined by dots
    axis = next((axis for own, axis in self.axes.items() if f"/{names}".endswith(f"/{own}")), None)
    if axis is None or one == other or len(one) != len(other):
      return False
    others_agree = one[:axis] + one[axis + 1 :] == other[:axis] + other[axis + 1 :]
    return others_agree and min(one[axis], other[axis]) >= self.size


# Of a model whose padding is what was saved.
NO_ROWS = VocabularyRows(0, {})
