"""Shardings of a training step: the rules and ZeRO applied to a model on a mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from base.ranges import ZeroStage
from parallel import shards, tree_paths, zero
from parallel.mesh import Device, MeshSpec
from parallel.rules import ParameterLike, Rules, check_replication, named_axes
from parallel.tree_paths import joined

# Logical axes along which devices have different tokens: gradients are summed over them.
TOKENS = ("batch", "time")
# The mesh axes that ZeRO splits over: devices along them would have copies.
_OVER = ("data", "seq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallelism:
  """The options of a mesh file.

  Attributes:
    mesh: sizes of the mesh axes.
    rules: maps logical axes to mesh axes.
    zero: ZeRO stage over the data and seq axes, 0 to 3; see `parallel.zero`.
  """

  mesh: MeshSpec = dataclasses.field(default_factory=MeshSpec)
  rules: Rules = dataclasses.field(default_factory=Rules)
  zero: ZeroStage = 0

  def __post_init__(self):
    zero.check_stage(self.zero)

  def sharding_plan(
    self, parameters: Iterable[ParameterLike], devices: Sequence[Device] | None = None
  ) -> ShardingPlan:
    """Shards a model's parameters over devices; None takes all visible ones.

    Raises:
      ValueError: mesh and devices, or rules and parameters, do not fit; see `Rules.spec`.
    """
    return ShardingPlan(self.mesh.build(devices), self.rules, self.zero, tuple(parameters))


def on_one_device(
  parameters: Iterable[ParameterLike], device: Device | None = None
) -> ShardingPlan:
  """Places a model's parameters on one device; None takes the first of this process."""
  one = jax.local_devices()[0] if device is None else device
  return Parallelism().sharding_plan(parameters, [one])


@dataclasses.dataclass(frozen=True)
class ParamSharding:
  """The shardings of a parameter, its gradient and its optimizer state.

  Attributes:
    used: sharding of the parameter in computations.
    stored, gradient, optimizer: shardings of the stored parameter, of its gradient, and of each of
      the optimizer's copies.
  """

  used: PartitionSpec
  stored: PartitionSpec
  gradient: PartitionSpec
  optimizer: PartitionSpec


class ShardingPlan:
  """Shardings of the parameters, gradients, optimizer state and batches of a model on a mesh.

  One device is a mesh of one, with the same code. Plans that shard in the same way are equal: what
  is compiled for one serves the other.
  """

  def __init__(self, mesh: Mesh, rules: Rules, stage: int, parameters: tuple[ParameterLike, ...]):
    """Computes all shardings; see `Parallelism.sharding_plan`."""
    self.mesh = mesh
    self.stage = stage
    self.sizes = dict(mesh.shape)
    self.parameters = parameters
    self._rules = rules
    over = tuple(name for name in _OVER if self.sizes[name] > 1)
    self.param_shardings: dict[str, ParamSharding] = {}
    self._shapes = {parameter.path: parameter.shape for parameter in parameters}
    for parameter in parameters:
      axes, shape = parameter.axes, parameter.shape
      used = rules.spec(axes, shape, self.sizes, parameter.path)
      split = zero.placement(used, axes, shape, self.sizes, over)
      self.param_shardings[parameter.path] = ParamSharding(
        used,
        *(
          split if stage >= first else used
          for first in (zero.PARAMETERS, zero.GRADIENTS, zero.OPTIMIZER)
        ),
      )
    used = {path: place.stored for path, place in self.param_shardings.items()}
    holding = ("model", *(over if stage >= zero.PARAMETERS else ()))
    check_replication(rules, parameters, used, self.sizes, holding)
    self.region = shards.Region(
      table=tuple((axis, rules.mesh_axes(axis, "rules", self.sizes)) for axis in rules.table),
      sizes=tuple(self.sizes.items()),
      stored_over=over if stage >= zero.PARAMETERS else (),
    )
    self._over = over
    self._rows_here: dict[tuple[int, int], np.ndarray] = {}

  def _identity(self) -> tuple[Any, ...]:
    # The region has what the rules say of every logical axis.
    return self.mesh, self.stage, self.region, self.parameters

  def __eq__(self, other: object) -> bool:
    return isinstance(other, ShardingPlan) and self._identity() == other._identity()

  def __hash__(self) -> int:
    return hash(self._identity())

  def check_batch(self, batch_size: int, length: int, pieces: int = 1) -> None:
    """Raises ValueError if a microbatch's rows, or their tokens, cannot be split evenly."""
    rows = batch_size // pieces
    try:
      self._rules.spec(TOKENS, (rows, length), self.sizes, "batch")
    except ValueError as error:
      if pieces == 1 or rows == batch_size:
        raise
      raise ValueError(
        f"{error} A batch of --gin.BATCH_SIZE={batch_size} is cut into --gin.MICROBATCHES={pieces} "
        f"pieces of {rows}."
      ) from None

  def held_bytes(self, parameter: ParameterLike, spec: PartitionSpec) -> int:
    """Bytes of a parameter on one device, sharded by `spec`."""
    return parameter.bytes // math.prod(self.sizes[name] for name in named_axes(spec))

  def gradient_bytes(self) -> int:
    """Bytes of all gradients on one device, in float32."""
    return sum(
      self.held_bytes(p, self.param_shardings[p.path].gradient) * 4 // p.dtype.itemsize
      for p in self.parameters
    )

  @property
  def batch(self) -> NamedSharding:
    """Sharding of the arrays of a batch, [B, T]."""
    names = (self._rules.mesh_axes(axis, "batch", self.sizes) for axis in TOKENS)
    return NamedSharding(self.mesh, PartitionSpec(*(n or None for n in names)))

  @property
  def everywhere(self) -> NamedSharding:
    """Sharding of replicated arrays."""
    return NamedSharding(self.mesh, PartitionSpec())

  def rows_of(self, process: int, batch_size: int, length: int) -> np.ndarray:
    """Returns the rows of a batch that a process's devices need, ascending.

    They need not be contiguous: on a TPU the order of devices in the mesh follows the rings of the
    torus, not the hosts.
    """
    placed = self.batch.devices_indices_map((batch_size, length))
    parts = {
      rows.indices(batch_size)[:2]
      for device, (rows, _) in placed.items()
      if device.process_index == process
    }
    return np.unique(np.concatenate([np.arange(*part) for part in parts]))

  def rows_here(self, batch_size: int, length: int) -> np.ndarray:
    """Returns the rows of a batch that this process's devices need, ascending."""
    here = self._rows_here.get((batch_size, length))
    if here is None:
      here = self.rows_of(jax.process_index(), batch_size, length)
      self._rows_here[batch_size, length] = here
    return here

  def place(self, batch: dict[str, Any], batch_size: int) -> dict[str, jax.Array]:
    """Makes global arrays from the rows of each process.

    Args:
      batch: [rows, T] arrays: the whole batch, or the rows of `rows_here` in that order.
      batch_size: rows of the whole batch.
    """

    def make(rows):
      shape = (batch_size, rows.shape[1])
      held = None if len(rows) == batch_size else self.rows_here(*shape)
      return jax.make_array_from_callback(
        shape, self.batch, lambda index: part(rows, held, cast(tuple[slice, slice], index))
      )

    return {name: make(rows) for name, rows in batch.items()}

  def tree(self, params: Any, kind: str) -> Any:
    """Returns a tree of PartitionSpecs of the parameters; `kind`: a `ParamSharding` attribute."""
    return jax.tree_util.tree_map_with_path(
      lambda path, _: getattr(self.param_shardings[joined(path)], kind), params
    )

  def state(self, state: Any) -> Any:
    """Returns shardings of a train state, with parameters in `params` and copies elsewhere.

    Other arrays are the optimizer's copies of a parameter if their path ends in its path and they
    have its shape; the rest is small and replicated.
    """

    def sharding(path, leaf):
      names = [tree_paths.name(key) for key in path]
      for start in range(len(names)):
        path_of_copy = "/".join(names[start:])
        place = self.param_shardings.get(path_of_copy)
        if place is not None and leaf.shape == self._shapes[path_of_copy]:
          spec = place.stored if names[0] == "params" else place.optimizer
          return NamedSharding(self.mesh, spec)
      return NamedSharding(self.mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)

  def split_for_update(self, tree: Any) -> Any:
    """Reduces parameters or gradients to the device's part of the optimizer state."""
    return jax.tree.map(
      lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec)),
      tree,
      self.tree(tree, "optimizer"),
    )

  def losses(self, function: Callable[..., Any], carried: Any = None) -> Callable[..., Any]:
    """Runs `function(params, batch) -> [B, T]` once per device, on its parameters and tokens.

    With `carried`, PartitionSpecs of a state, it is `function(params, batch, state) -> ([B, T],
    state)`, of this device's part of the state.
    """

    def per_device(params, batch, *state):
      with shards.per_device(self.region):
        return function(params, batch, *state)

    if carried is None:
      return lambda params, batch: self._map(per_device, params, self.batch.spec)(params, batch)
    out_specs = self.batch.spec, carried
    return lambda params, batch, state: self._map(per_device, params, out_specs, (carried,))(
      params, batch, state
    )

  def gradient(
    self, function: Callable[..., Any], trained: Callable[[Any], Any], carried: Any = None
  ) -> Callable[..., Any]:
    """Runs `function(params, batch, *others) -> (scalars, gradient)` once per device.

    Inside, params and batch are this device's parts, and the scalars must be the same on all
    devices. Each device returns the gradient of its tokens; the result is their sum. The gradients
    are of `trained(params)`, a part of the parameters' tree.

    With `carried`, PartitionSpecs of a state, the function is also called with this device's part
    of a state, last, and returns (scalars, gradient, state).
    """

    def per_device(params, batch, *others):
      with shards.per_device(self.region):
        scalars, gradient, *state = function(params, batch, *others)
        return scalars, self._sum(gradient), *state

    states = () if carried is None else (carried,)

    def call(params, batch, *others):
      out_specs = (PartitionSpec(), self.tree(trained(params), "gradient"), *states)
      specs = (*(PartitionSpec(),) * (len(others) - len(states)), *states)
      return self._map(per_device, params, out_specs, specs)(params, batch, *others)

    return call

  def _map(self, function, params, out_specs, others: Sequence[Any] = ()):
    in_specs = (self.tree(params, "stored"), self.batch.spec, *others)
    # Unchecked: JAX's splash attention does not declare the axes that its results vary along.
    return jax.shard_map(
      function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )

  def _sum(self, gradient: Any) -> Any:
    """Sums gradients over devices with other tokens, by the ZeRO stage."""
    everywhere = tuple(n for axis in TOKENS for n in shards.mesh_axes(axis))

    def scatter(path, leaf):
      place = self.param_shardings[joined(path)]
      if place.gradient == place.used:
        return leaf, everywhere
      if place.stored == place.used:
        leaf = lax.psum_scatter(leaf, self._over, scatter_dimension=_further(place), tiled=True)
      return leaf, tuple(name for name in everywhere if name not in self._over)

    leaves, structure = jax.tree_util.tree_flatten_with_path(gradient)
    scattered = [scatter(path, leaf) for path, leaf in leaves]
    summed = [lax.psum(leaf, names) if names else leaf for leaf, names in scattered]
    return jax.tree.unflatten(structure, summed)


def part(rows: np.ndarray, held: np.ndarray | None, index: tuple[slice, slice]) -> np.ndarray:
  """Returns a device's part of a batch, from the rows of its process.

  Args:
    rows: [rows, T], in the order of `held`.
    held: the rows' numbers in the batch, ascending; None if they are all.
    index: index of the part in the whole batch, [B, T].
  """
  if held is None:
    return rows[index]
  start, stop, _ = index[0].indices(held[-1] + 1)
  first = int(np.searchsorted(held, start))
  found = slice(first, first + stop - start)
  if not np.array_equal(held[found], np.arange(start, stop)):
    raise ValueError(f"rows {start} to {stop} of the batch are needed, and some are missing.")
  return rows[found, index[1]]


def _further(place: ParamSharding) -> int:
  """Returns the dimension that ZeRO splits."""
  used = [*place.used] + [None] * (len(place.gradient) - len(place.used))
  return next(i for i, (a, b) in enumerate(zip(used, place.gradient, strict=True)) if a != b)
