"""Parameters, FLOPs and bytes of any model, without allocating it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from base.errors import UserError
from models.language_model import LanguageModel


class ModelError(UserError, ValueError):
  """The sizes of a model do not fit each other."""


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One array of the parameter tree.

  Attributes:
    path: names from the root, joined by '/'.
    shape: the array's shape; repeats of the pattern add a leading axis.
    dtype: the stored type.
    axes: one logical axis name per dimension.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  axes: tuple[str | None, ...]

  @property
  def count(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Bytes of the stored array."""
    return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Account:
  """What a model costs; the embedding's padding rows count as what they are, memory and operations.

  Attributes:
    parameters: one entry per array.
    forward_flops: operations of the matrix products per token, forward.
    training_flops: the same for forward and backward, without recomputation (3 times forward).
    forward_bytes: bytes read and written per token by a forward pass that reads each parameter once
      per batch and the input and output of each mixer and MLP once: a lower bound.
    state_bytes: bytes of the decode state per sequence.
    length: tokens per row that the figures hold for.
    batch_size: rows that share one reading of the parameters.
  """

  parameters: tuple[Parameter, ...]
  forward_flops: float
  training_flops: float
  forward_bytes: float
  state_bytes: int
  length: int
  batch_size: int

  @property
  def parameter_count(self) -> int:
    """Number of parameters."""
    return sum(parameter.count for parameter in self.parameters)

  @property
  def parameter_bytes(self) -> int:
    """Bytes of all parameters."""
    return sum(parameter.bytes for parameter in self.parameters)


def account(model: LanguageModel, *, batch_size: int, length: int) -> Account:
  """Counts a model's parameters, FLOPs and bytes.

  Args:
    model: any model of the zoo.
    batch_size: rows per step.
    length: tokens per row.
  """
  parameters = list_parameters(model)
  forward = model.matmul_flops(length)
  sub_blocks = model.depth * (1 if model.mlp is None else 2)
  activation = 2 * sub_blocks * model.width * jnp.dtype(model.dtype).itemsize
  parameter_bytes = sum(parameter.bytes for parameter in parameters)
  return Account(
    parameters=parameters,
    forward_flops=forward,
    training_flops=3 * forward,
    forward_bytes=parameter_bytes / (batch_size * length) + activation,
    state_bytes=state_bytes(model, length),
    length=length,
    batch_size=batch_size,
  )


def mfu(model_flops: float, peak_flops: float, seconds: float) -> float:
  """Model-FLOPs utilisation of a step (Chowdhery et al. 2022, appendix B).

  Args:
    model_flops: a device's share of `Account.training_flops` times the tokens of a step: without
      recomputation.
    peak_flops: the device's bfloat16 FLOP/s, whatever dtype the model computes in.
    seconds: time of the step.
  """
  return model_flops / (peak_flops * seconds)


def state_bytes(model: LanguageModel, length: int) -> int:
  """Bytes of the decode state of one sequence that has room for `length` tokens."""
  return tree_bytes(jax.eval_shape(lambda: model.initial_state(1, length)))


def list_parameters(model: LanguageModel) -> tuple[Parameter, ...]:
  """The model's parameters in tree order, from shapes alone."""
  # flax hashes modules by their fields, which no type says.
  return _list_parameters(cast(Hashable, model))


# Shapes are small. A comparison of eleven models, each sized by three counts, asks for all of them
# at each of its parts.
_KEPT_MODELS = 128


@functools.lru_cache(maxsize=_KEPT_MODELS)
def _list_parameters(model: Any) -> tuple[Parameter, ...]:
  """Kept, as the shapes are: a start asks four times, and each trace takes a tenth of a second."""
  boxed = abstract_parameters(model)
  axes = nn.get_partition_spec(boxed)
  leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(boxed))
  specs = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec))
  return tuple(
    Parameter("/".join(key.key for key in path), leaf.shape, np.dtype(leaf.dtype), tuple(spec))
    for (path, leaf), spec in zip(leaves, specs, strict=True)
  )


def abstract_parameters(model: LanguageModel) -> Any:
  """The parameter tree as shapes and types, boxed with logical axes."""
  return jax.tree.map(lambda leaf: leaf, _abstract_parameters(cast(Hashable, model)))  # a copy


@functools.lru_cache(maxsize=_KEPT_MODELS)
def _abstract_parameters(model: Any) -> Any:
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  try:
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  except ValueError as error:
    # JAX appends a hint of several lines on its traceback.
    raise ModelError(str(error).partition("\n----")[0]) from error


def tree_bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree, abstract or not."""
  return sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
