"""Exchanges between the shards of the time axis.

A row's tokens are on several devices, the earliest on the first. Three things cross devices, and
their size does not depend on the length of the row: the tokens before a shard that a convolution or
local attention looks back to, the state that enters a recurrence, and in the backward pass the
adjoint that enters it from the right. Only global attention moves all keys and values.

Call these functions only if `is_split`: inside `shards.per_device`, with time split. Section 4 of
the Griffin paper does not split time; the exchange is the scan over affine maps of Blelloch 1990,
one map per shard.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from base.custom_gradient import custom_vjp
from parallel import shards

AXIS = "time"
# A segment id that no token has.
NOWHERE = -1

Run = Callable[..., tuple[jax.Array, jax.Array | None]]
LogDecay = Callable[..., jax.Array]
StateMap = Callable[..., tuple[jax.Array, jax.Array]]


def is_split() -> bool:
  """Whether the tokens of a row are split over devices here."""
  return shards.count(AXIS) > 1


def before(x: jax.Array, count: int, first: jax.Array | None = None) -> jax.Array:
  """Returns the tokens before this shard.

  Args:
    x: [B, T, ...] this shard's tokens.
    count: number of tokens; if more than T, they come from several shards.
    first: [B, n, ...] the n tokens before those of all shards, the same on each; before these, and
      for None, are zeros.

  Returns:
    [B, count, ...]. Each shard sends only the tokens that the next ones need; the gradient goes
    back the same way.
  """
  length, parts = x.shape[1], []
  if not count:
    return x[:, :0]
  for distance in range(1, -(-count // length) + 1):
    needed = min(length, count - (distance - 1) * length)
    parts.append(_shift(x[:, length - needed :], distance))
  halo = jnp.concatenate(parts[::-1], axis=1)
  if first is None:
    return halo
  # The first shards look back beyond the others' tokens, where the halo is zero.
  first = first[:, max(0, first.shape[1] - count) :].astype(x.dtype)
  margins = [(0, 0), (count - first.shape[1], count), *[(0, 0)] * (x.ndim - 2)]
  passed = jnp.minimum(number() * length, count)
  return halo + lax.dynamic_slice_in_dim(jnp.pad(first, margins), passed, count, axis=1)


def ids_before(ids: jax.Array, count: int, first: jax.Array | None = None) -> jax.Array:
  """Returns `before` of segment ids [B, T]; `NOWHERE` before the start of the row."""
  first = None if first is None else first - NOWHERE
  return before(ids - NOWHERE, count, first) + NOWHERE


def of_last(x: jax.Array) -> jax.Array:
  """Returns the last shard's x on all shards; x itself where time is not split."""
  if not is_split():
    return x
  return _of_last(x) if jnp.issubdtype(x.dtype, jnp.inexact) else _sum_of_last(x)


def _sum_of_last(x):
  return lax.psum(jnp.where(number() == shards.count(AXIS) - 1, x, 0), shards.mesh_axes(AXIS))


@jax.custom_vjp
def _of_last(x):
  return _sum_of_last(x)


def _to_last(_, g):
  everything = lax.psum(g, shards.mesh_axes(AXIS))
  return (jnp.where(number() == shards.count(AXIS) - 1, everything, 0),)


_of_last.defvjp(lambda x: (_sum_of_last(x), None), _to_last)


def number() -> jax.Array | int:
  """Returns the number of this shard, in the order of time; 0 where time is not split."""
  return lax.axis_index(shards.mesh_axes(AXIS)) if is_split() else 0


def all_until_here(x: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gathers all shards' tokens, rotated so that this shard's are the last.

  Args:
    x: [B, T, ...]; ids: [B, T] segment ids.

  Returns:
    [B, n T, ...], and the ids [B, n T], `NOWHERE` for the shards that come later in the row.
  """
  names, count, length = shards.mesh_axes(AXIS), shards.count(AXIS), x.shape[1]
  here = lax.axis_index(names)

  def gather(x):
    everything = lax.all_gather(x, names, axis=1, tiled=True)
    return jnp.roll(everything, -(here + 1) * length, axis=1)

  # After the rotation the first count - 1 - here shards are the later ones.
  later = jnp.arange(count * length) < (count - 1 - here) * length
  return gather(x), jnp.where(later, NOWHERE, gather(ids))


def recur(
  run: Run,
  log_decay: LogDecay,
  arrays: tuple[jax.Array, ...],
  reset: jax.Array | None,
  h0: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Runs a diagonal linear recurrence, over all shards of the time axis where it is split.

  Each shard runs from a zero state; its effect on a state is (product of its decays, last state). A
  scan of these pairs over the shards gives the state that enters each, and the shard runs again
  from there. The backward pass does the same with the adjoint, from the last shard to the first.

  Args:
    run: `run(*arrays, h0, reset=reset) -> (h, h_last)`, differentiable in arrays and h0; h is [B,
      T, ...], h0 (or None, for zeros) and h_last are [B, ...] float32 or complex64.
    log_decay: `log_decay(*arrays)`, the logarithm of the product of the decays, with a shape and
      dtype that broadcast against h_last.
    arrays: inputs of the recurrence.
    reset: [B, T] bool, True where a segment starts; None for no resets.
    h0: the state before the first token of all shards, the same on each; None for zeros.

  Returns:
    h: [B, T, ...], and the state after the last token of all shards; None where time is split and
    h0 is None, because then the last shard alone has it.
  """
  state_map = functools.partial(_diagonal_map, run, log_decay)
  return _recur_shards(run, state_map, _DIAGONAL, arrays, reset, h0)


def _diagonal_map(run, log_decay, *arrays, reset):
  product = jnp.exp(log_decay(*arrays))
  if reset is not None:
    some = jnp.any(reset, axis=1)
    product = jnp.where(some.reshape(-1, *[1] * (product.ndim - 1)), 0, product)
  return product, run(*arrays, None, reset=reset)[1]


def recur_by_matrices(
  run: Run,
  state_map: StateMap,
  arrays: tuple[jax.Array, ...],
  reset: jax.Array | None,
  h0: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Runs a recurrence in which a shard maps a matrix-valued state s to `M s + N`; see `recur`.

  Shards exchange M and N instead of a product of decays and a state.

  Args:
    run: as in `recur`; h0 and h_last are [B, ..., K, V] float32.
    state_map: `state_map(*arrays, reset=reset) -> (M, N)`, [B, ..., K, K] and [B, ..., K, V].
    arrays, reset, h0: as in `recur`.

  Returns:
    as `recur`.
  """
  return _recur_shards(run, state_map, _BY_MATRICES, arrays, reset, h0)


def largest_before(decay: jax.Array, value: jax.Array, first: jax.Array | None = None) -> jax.Array:
  """Returns the number that enters this shard, if each maps m to `max(m + decay, value)`.

  Every shard receives the two numbers of all shards, and no gradient passes.

  Args:
    decay, value: arrays of one shape, numbers or -inf.
    first: what enters the first shard, the same on each; zeros if None.
  """
  entering = jnp.zeros_like(value) if first is None else lax.stop_gradient(first)
  if not is_split():
    return entering
  maps = lax.stop_gradient(jnp.stack([decay, value]))
  for shard, each in enumerate(lax.all_gather(maps, shards.mesh_axes(AXIS))):
    after = jnp.maximum(entering + each[0], each[1])
    entering = jnp.where(shard < number(), after, entering)
  return entering


class _Maps(NamedTuple):
  """How the linear part of a shard's map acts on states, and what its transpose is."""

  apply: Callable[[jax.Array, jax.Array], jax.Array]
  transposed: Callable[[jax.Array], jax.Array]


_DIAGONAL = _Maps(apply=operator.mul, transposed=lambda product: product)
_BY_MATRICES = _Maps(
  apply=functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST),
  transposed=lambda matrix: jnp.swapaxes(matrix, -1, -2),
)


def _recur_shards(run, state_map, maps, arrays, reset, h0):
  if not is_split():
    return run(*arrays, h0, reset=reset)
  h, h_last = _recur(run, state_map, maps, arrays, reset, h0)
  return h, None if h0 is None else of_last(h_last)


@custom_vjp(nondiff_argnums=(0, 1, 2))
def _recur(run, state_map, maps, arrays, reset, h0):
  return _forward(run, state_map, maps, arrays, reset, h0)[0]


def _forward(run, state_map, maps, arrays, reset, h0):
  product, last = state_map(*arrays, reset=reset)
  if h0 is not None:
    last = jnp.where(number() == 0, maps.apply(product, h0) + last, last)
  entering = _scan_shards(maps.apply, product, last, reverse=False)
  if h0 is not None:
    entering = jnp.where(number() == 0, h0, entering)
  results, pull = jax.vjp(lambda arrays, h0: run(*arrays, h0, reset=reset), arrays, entering)
  return results, (product, h0 is None, pull)


def _backward(run, state_map, maps, residuals, cotangents):
  del run, state_map
  product, from_zero, pull = residuals
  dh, dh_last = cotangents
  _, leaving = pull((dh, dh_last))
  dlast = dh_last + _scan_shards(maps.apply, maps.transposed(product), leaving, reverse=True)
  darrays, dh0 = pull((dh, dlast))
  return darrays, None, None if from_zero else jnp.where(number() == 0, dh0, 0)


_recur.defvjp(_forward, _backward)


def _scan_shards(apply, product: jax.Array, value: jax.Array, *, reverse: bool) -> jax.Array:
  """Returns the state entering each shard, if each maps s to `apply(product, s) + value`.

  The first state is zero. One exchange with the neighbour and then log2(shards) exchanges, each
  with shards twice as far (Kogge and Stone 1973). A shard without such a neighbour receives zeros,
  the map before the row.
  """
  direction = -1 if reverse else 1
  product, value = _shift((product, value), direction)
  distance = 1
  while distance < shards.count(AXIS) - 1:
    product_before, value_before = _shift((product, value), direction * distance)
    value = apply(product, value_before) + value
    product = apply(product, product_before)
    distance *= 2
  return value


def _shift(tree: Any, distance: int) -> Any:
  """Sends to the shard `distance` later (earlier if negative); zeros without a sender."""
  count = shards.count(AXIS)
  pairs = [(i, i + distance) for i in range(count) if 0 <= i + distance < count]
  return jax.tree.map(lambda x: lax.ppermute(x, shards.mesh_axes(AXIS), pairs), tree)
