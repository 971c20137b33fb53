"""Low-rank adapters (LoRA; Hu et al.

2021, arXiv 2106.09685) on the linear maps of any model of the zoo.

A map y = x W becomes y = x W + (alpha / rank) x A B, with W frozen. The maps do not know: adapters
are added where a map is called (`flax.linen.intercept_methods`), with parameters beside the map's
own.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from base.ranges import Count, Positive
from kernels.matmul import matmul
from layers import initial_state
from layers.linear import Linear, scaled_normal
from layers.parameter import parameter
from models.language_model import LanguageModel
from parallel import shards

A, B = "lora_a", "lora_b"


class AdaptedModel(LanguageModel):
  """A language model with adapters; made by `adapted`.

  Attributes:
    rank: columns of A and rows of B.
    alpha: the adapters' share is multiplied by alpha / rank.
    targets: patterns of the adapted maps' names or paths.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] = ("*",)

  def __call__(self, *args, **kwargs):
    """As the model without adapters; see `LanguageModel`."""
    with nn.intercept_methods(self._adapt):
      return super().__call__(*args, **kwargs)

  def hidden(self, *args, **kwargs):
    """As the model without adapters; see `LanguageModel`."""
    with nn.intercept_methods(self._adapt):
      return super().hidden(*args, **kwargs)

  def trains(self, path: str) -> bool:
    """Whether training changes the parameter at this path: adapters, and learned initial states."""
    return path.rpartition("/")[2] in (A, B) or initial_state.is_initial_state(path)

  @nn.nowrap
  def _adapt(self, call, args, kwargs, context):
    y = call(*args, **kwargs)
    module = context.module
    if not isinstance(module, Linear) or context.method_name != "__call__":
      return y
    if not _is_target("/".join(module.path), self.targets):
      return y
    (x,) = args
    rows, columns = module.axes
    # float32 whatever the weights' type: in bfloat16 most updates would be rounded away.
    wide = {"param_dtype": jnp.dtype(jnp.float32)}
    features = shards.local(module.features, columns)
    down = parameter(
      module, A, scaled_normal(1.0), (rows, "lora"), (x.shape[-1], self.rank), **wide
    )
    up = parameter(
      module, B, nn.initializers.zeros, ("lora", columns), (self.rank, features), **wide
    )
    # Each shard of the result sees all of A and gives a part of its gradient.
    down = shards.copy_to_tensor_parallel(down, columns)
    low = shards.reduce_from_tensor_parallel(matmul(x.astype(module.dtype), down), rows)
    return y + (self.alpha / self.rank) * matmul(low, up)


def adapted(
  model: LanguageModel, *, rank: Count = 8, alpha: Positive = 16.0, targets: Sequence[str] = ("*",)
) -> LanguageModel:
  """A model with adapters; training changes these, and initial states that are learned.

  Args:
    model: the model.
    rank: of the adapters.
    alpha: the adapters' share is multiplied by alpha / rank.
    targets: patterns (`*`, `?`) of the names of linear maps ('query', 'linear_*') or of their paths
      ('*/mlp/*').

  Raises:
    ValueError: the rank is below 1, or a pattern matches no linear map; it lists those that there
      are.
  """
  if rank < 1:
    raise ValueError(f"rank={rank} must be at least 1.")
  paths = linear_maps(model)
  for pattern in targets:
    if not any(_is_target(path, [pattern]) for path in paths):
      names = sorted({path.rpartition("/")[2] for path in paths})
      raise ValueError(
        f"targets={list(targets)}: {pattern!r} matches no linear map; there are "
        f"{', '.join(names)}, "
        f"by path {paths[0]} and so on."
      )
  if not targets:
    raise ValueError("targets=[] adapts nothing: name linear maps, or '*' for all.")
  return AdaptedModel(**_fields(model), rank=rank, alpha=alpha, targets=tuple(targets))


def linear_maps(model: LanguageModel) -> list[str]:
  """The paths of a model's linear maps, joined by slashes."""
  found: dict[str, None] = {}

  def note(call, args, kwargs, context):
    if isinstance(context.module, Linear) and context.method_name == "__call__":
      found["/".join(context.module.path)] = None
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  return list(found)


def merged(model: LanguageModel, params: Mapping[str, Any]) -> tuple[LanguageModel, Any]:
  """The model without adapters whose weights are W + (alpha / rank) A B; others as they are.

  Args:
    model: any model of the zoo.
    params: its parameters, without boxes.
  """
  if not isinstance(model, AdaptedModel):
    return model, params

  def merge(tree: Any) -> Any:
    if not isinstance(tree, Mapping):
      return tree
    rest = {name: merge(leaf) for name, leaf in tree.items() if name not in (A, B)}
    if A in tree:
      rest["kernel"] = merged_kernel(model, rest["kernel"], tree[A], tree[B])
    return rest

  return without_adapters(model), merge(params)


def merged_kernel(model: AdaptedModel, kernel: Any, down: Any, up: Any) -> jax.Array:
  """Returns W + (alpha / rank) A B in W's type, from W, A and B, which may be stacked."""
  # The repeats of a scanned stack are a leading axis of all three.
  delta = jnp.einsum("...ir,...ro->...io", down, up, precision="highest")
  scale = model.alpha / model.rank
  return (jnp.asarray(kernel, jnp.float32) + scale * delta).astype(kernel.dtype)


def without_adapters(model: LanguageModel) -> LanguageModel:
  """The model whose parameters `merged` returns; a model without adapters itself."""
  return LanguageModel(**_fields(model)) if isinstance(model, AdaptedModel) else model


def _fields(model: LanguageModel) -> dict[str, Any]:
  return {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(LanguageModel)
    if field.name not in ("parent", "name")
  }


def _is_target(path: str, targets: Sequence[str]) -> bool:
  # A stack that is not scanned numbers its repeats.
  path = re.sub(r"/repeat_\d+/", "/repeats/", path)
  name = path.rpartition("/")[2]
  return any(fnmatch.fnmatch(path, t) or fnmatch.fnmatch(name, t) for t in targets)
