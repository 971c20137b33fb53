"""Programs that carry a state of their own from call to call, and read and give rows: generation.

On a mesh, rows lie over the data axes, and channels, heads and vocabulary over the model axes, as
in training. What a program carries is opaque here: each device keeps its own part, whatever its
shape, under a leading axis with an entry per device. So the state of any model can be carried, by
no rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallel import shards
from parallel.sharding_plan import ShardingPlan

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class DecodeSharding(Protocol):
  """How such programs are split over devices; all methods but `place` run under `jax.jit`.

  Attributes:
    shards: the rows of a call are a multiple of it.
    concurrent: whether several threads may call programs at once.
    lean: whether parameters are used as they lie: a layer at a time, without a copy of all. Slower.
  """

  shards: int
  concurrent: bool
  lean: bool

  def place(self, params: Any) -> Any:
    """Brings parameters to where `start` wants them."""

  def start(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """What `function(params, rows)` gives, to be held or carried; `rows` are arrays [B, ...]."""

  def go_on(
    self, function: Step, held: Any, carried: Any, rows: Any, shared: Any
  ) -> tuple[Any, Any]:
    """`function(held, carried, rows, shared)`, which gives arrays [B, ...] and what is carried on.

    All see all of the arrays.
    """
    ...

  def abstract(self, tree: Any, kind: str) -> Any:
    """Shapes, with where the arrays lie between calls: 'rows', what is 'carried', or 'shared' by
    all.

    What is held lies as what is carried; if `lean`, as the parameters.
    """


class OneDevice:
  """Everything on one device."""

  shards = 1
  concurrent = True

  def __init__(self, *, lean: bool = False):
    """See `DecodeSharding` for lean."""
    self.lean = lean

  def place(self, params: Any) -> Any:
    """The parameters."""
    return params

  def start(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """See `DecodeSharding`."""
    return function(params, rows)

  def go_on(
    self, function: Step, held: Any, carried: Any, rows: Any, shared: Any
  ) -> tuple[Any, Any]:
    """See `DecodeSharding`."""
    return function(held, carried, rows, shared)

  def abstract(self, tree: Any, kind: str) -> Any:
    """See `DecodeSharding`."""
    del kind
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class OverMesh:
  """On the mesh of a sharding plan.

  Parameters are split over the model axes alone, whatever the ZeRO stage: a token takes too little
  time to gather them for each. If lean, they stay as the training stores them, and each layer's are
  gathered when it is computed, as in training: no device ever holds all that ZeRO stage 3 has
  split. Devices along `seq` do the same work. Threads may not call programs at once: the devices
  would meet in the collectives of different programs.
  """

  concurrent = False

  def __init__(self, sharding_plan: ShardingPlan, *, lean: bool = False):
    """Takes over the mesh and rules of the sharding plan; see `DecodeSharding` for lean."""
    self.lean = lean
    self._sharding_plan = sharding_plan
    self._placement = "stored" if lean else "used"
    table = tuple((axis, names) for axis, names in sharding_plan.region.table if axis != "time")
    stored_over = sharding_plan.region.stored_over if lean else ()
    self._region = sharding_plan.region._replace(table=table, stored_over=stored_over)
    self._over = dict(table)["batch"]
    self._all = PartitionSpec(tuple(sharding_plan.sizes))
    self._rows = PartitionSpec(self._over or None)
    with shards.per_device(self._region):
      self.shards = shards.count("batch")

  def place(self, params: Any) -> Any:
    """Gathers what ZeRO has split, unless lean."""
    if self.lean:
      return params
    used = self._sharding_plan.tree(params, "used")
    shardings = jax.tree.map(lambda spec: NamedSharding(self._sharding_plan.mesh, spec), used)
    return jax.jit(lambda tree: tree, out_shardings=shardings)(params)

  def start(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """See `DecodeSharding`."""

    def per_device(params, rows):
      with shards.per_device(self._region):
        return _owned(function(params, rows))

    specs = self._sharding_plan.tree(params, self._placement), self._rows
    return self._map(per_device, specs, self._all)(params, rows)

  def go_on(
    self, function: Step, held: Any, carried: Any, rows: Any, shared: Any
  ) -> tuple[Any, Any]:
    """See `DecodeSharding`."""

    def per_device(held, carried, rows, shared):
      with shards.per_device(self._region):
        carried = jax.tree.map(lambda x: x[0], carried)
        if not self.lean:
          held = jax.tree.map(lambda x: x[0], held)
        found, carried = function(held, carried, rows, shared)
        return jax.tree.map(self._gather, found), _owned(carried)

    of_held = self._sharding_plan.tree(held, self._placement) if self.lean else self._all
    specs = of_held, self._all, self._rows, PartitionSpec()
    return self._map(per_device, specs, (PartitionSpec(), self._all))(held, carried, rows, shared)

  def abstract(self, tree: Any, kind: str) -> Any:
    """See `DecodeSharding`."""
    spec = {"rows": self._rows, "carried": self._all, "shared": PartitionSpec()}[kind]
    sharding = NamedSharding(self._sharding_plan.mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  def _gather(self, x: jax.Array) -> jax.Array:
    return lax.all_gather(x, self._over, axis=0, tiled=True) if self._over else x

  def _map(self, function, in_specs, out_specs):
    return jax.shard_map(
      function,
      mesh=self._sharding_plan.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )


def _owned(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
