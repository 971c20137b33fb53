"""Runs decoding programs, which carry a state from call to call, on one device or a mesh.

On a mesh, rows are split over the data axes, and channels, heads and vocabulary over the model
axes, as in training. The carried state is opaque: each device has its part, of any shape, under a
leading axis with an entry per device. So the state of any model can be carried without sharding
rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallel import shards
from parallel.sharding_plan import ShardingPlan

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]

# The share of a device's memory that two copies of the weights may take: the rest is for the state.
_SHARE_OF_COPIES = 0.8


class DecodeSharding(Protocol):
  """Protocol of running decoding programs; all methods but `place` must run under `jax.jit`.

  Attributes:
    shards: the number of rows of a call must be a multiple of it.
    concurrent: whether several threads may call programs at once.
    lean: whether to use the stored parameters layer by layer, without a copy of all; slower.
  """

  shards: int
  concurrent: bool

  @property
  def lean(self) -> bool: ...

  def place(self, params: Any) -> Any:
    """Moves parameters to the sharding for `start`."""

  def start(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """Calls `function(params, rows)`; returns its result, to hold or carry; `rows` are [B, ...]."""

  def read(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """Calls `function(params, rows)`; returns its arrays [B, ...], replicated."""

  def go_on(
    self, function: Step, held: Any, carried: Any, rows: Any, shared: Any
  ) -> tuple[Any, Any]:
    """Calls `function(held, carried, rows, shared)`; returns arrays [B, ...] and the new carry.

    The arrays are replicated.
    """
    ...

  def abstract(self, tree: Any, kind: str) -> Any:
    """Returns shapes with shardings between calls: of 'rows', 'carried' or 'shared' arrays.

    Held arrays are sharded like carried ones; if `lean`, like the parameters.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneDevice:
  """Runs everything on one device.

  Attributes:
    lean: see `DecodeSharding`.
  """

  shards = 1
  concurrent = True
  lean: bool = False

  def place(self, params: Any) -> Any:
    """Returns the parameters."""
    return params

  def start(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """See `DecodeSharding`."""
    return function(params, rows)

  def read(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
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
  """Runs decoding on the mesh of a sharding plan.

  Parameters are split only over the model axes, for any ZeRO stage: gathering them for each token
  would take too long. If lean, they stay as in training, and each layer's are gathered when it is
  computed: no device ever has all parameters that ZeRO stage 3 has split. Devices along `seq`
  repeat the same work. Threads may not call programs at once, because the devices would mix up the
  collectives of different programs.
  """

  concurrent = False

  def __init__(self, sharding_plan: ShardingPlan, *, lean: bool = False):
    """Sets the sharding plan, for its mesh and rules; see `DecodeSharding` for lean."""
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

  # So that what is compiled for one serves others of the same plan.
  def __eq__(self, other: object) -> bool:
    if not isinstance(other, OverMesh):
      return NotImplemented
    return (self._sharding_plan, self.lean) == (other._sharding_plan, other.lean)

  def __hash__(self) -> int:
    return hash((self._sharding_plan, self.lean))

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

  def read(self, function: Callable[..., Any], params: Any, rows: Any) -> Any:
    """See `DecodeSharding`."""

    def per_device(params, rows):
      with shards.per_device(self._region):
        return jax.tree.map(self._gather, function(params, rows))

    specs = self._sharding_plan.tree(params, self._placement), self._rows
    return self._map(per_device, specs, PartitionSpec())(params, rows)

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


def of(sharding_plan: ShardingPlan, memory: float | None = None) -> DecodeSharding:
  """Returns how to decode with parameters that are stored as a sharding plan says.

  Args:
    sharding_plan: the plan; a mesh of one needs no collectives.
    memory: bytes of a device; None if unknown.
  """
  lean = is_lean(sharding_plan, memory)
  if sharding_plan.mesh.size == 1:
    return OneDevice(lean=lean)
  return OverMesh(sharding_plan, lean=lean)


def is_lean(sharding_plan: ShardingPlan, memory: float | None = None) -> bool:
  """Whether to decode without a copy of the parameters; see `DecodeSharding`.

  So it is where ZeRO has split the parameters, whose copy would be whole, and where the parameters
  and their copy would take most of a device's memory.

  Args:
    sharding_plan: how the parameters are stored.
    memory: bytes of a device; None if unknown.
  """
  if any(place.stored != place.used for place in sharding_plan.param_shardings.values()):
    return True
  held = sum(
    sharding_plan.held_bytes(parameter, sharding_plan.param_shardings[parameter.path].used)
    for parameter in sharding_plan.parameters
  )
  return memory is not None and 2 * held > _SHARE_OF_COPIES * memory


def _owned(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], tree)
