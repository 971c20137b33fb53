"""The bodies of the delta rule's TPU kernels, and the call that runs them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import manual_axes
from kernels.delta_tpu import chunk as chunks
from kernels.delta_tpu.blocks import Plan
from kernels.delta_tpu.decays import Tile
from kernels.delta_tpu.tiles import column, row_of, together

# A logarithm of a decay that leaves nothing.
RESET_LOG = -1e4
F32 = jnp.float32


class Inputs(NamedTuple):
  """What both kernels read: references to blocks, or arrays with their specs."""

  q: Any
  k: Any
  v: Any
  scalars: Any
  log_a: Any


class Saved(NamedTuple):
  """What the forward pass saves for the backward pass, beside its inputs.

  Attributes:
    entries: the state that enters each block, [B, blocks, H, V, K] float32.
    inverses: of all chunks, those of a group side by side: [B, H / group, T', group x C] in q's
      dtype, with T' tokens of whole blocks.
  """

  entries: Any
  inverses: Any


class Found(NamedTuple):
  """Memory for what the backward kernel finds of a block's chunks, as in `chunk.Solved`."""

  queries: Any
  keys: Any
  missing: Any
  u: Any


def _rows(plan: Plan, chunk) -> slice | pl.Slice:
  return pl.ds(pl.multiple_of(chunk * plan.chunk, plan.chunk), plan.chunk)


def _exists(plan: Plan, block, chunk):
  """[C, 1]: whether a token of a chunk is one of the row."""
  step = jax.lax.broadcasted_iota(jnp.int32, (plan.chunk, 1), 0)
  return block * plan.time + chunk * plan.chunk + step < plan.length


def _load(plan: Plan, ref, head, chunk, exists):
  x = ref[0, head, _rows(plan, chunk), :]
  return jnp.where(exists, x, jnp.zeros_like(x)) if plan.is_ragged else x


def _tile(plan: Plan, refs: Inputs, head: int, block, chunk) -> Tile:
  exists = _exists(plan, block, chunk)
  load = functools.partial(_load, plan, head=head, chunk=chunk, exists=exists)

  def scalar(index):
    return refs.scalars[0, head, 0, pl.ds(chunk * plan.scalars + index, 1), :]

  log_a = sums = None
  if plan.by_channel:
    starts = column(scalar(1)) > 0
    log_a = jnp.where(starts, RESET_LOG, load(refs.log_a))
  else:
    sums = scalar(1), scalar(2)
  return Tile(
    load(refs.q),
    load(refs.k),
    load(refs.v),
    column(scalar(0)),
    sums,
    log_a,
  )


def _inverse_at(plan: Plan, head: int, chunk):
  """The index of a chunk's inverse in its block."""
  return 0, 0, _rows(plan, chunk), slice(head * plan.chunk, (head + 1) * plan.chunk)


def forward_kernel(refs, h0, y, h_last, saved, state, *, plan: Plan):
  block = pl.program_id(2)

  @pl.when(block == 0)
  def _():
    state[...] = h0[0]

  if saved is not None:
    saved.entries[0, 0] = state[...]

  def one_chunk(chunk, _):
    tiles = [_tile(plan, refs, head, block, chunk) for head in range(plan.group)]
    results = together([chunks.chunk(tile, state[head]) for head, tile in enumerate(tiles)])
    for head, (values, after, solved) in enumerate(results):
      if saved is not None:
        saved.inverses[_inverse_at(plan, head, chunk)] = solved.inverse
      y[0, head, _rows(plan, chunk), :] = values.astype(y.dtype)
      state[head] = after

  jax.lax.fori_loop(0, plan.chunks, one_chunk, None)

  @pl.when(block == plan.blocks - 1)
  def _():
    h_last[0] = state[...]


def backward_kernel(refs, saved, dy, dh_last, dinputs, dh0, states, solved, dstate, *, plan: Plan):
  block = plan.blocks - 1 - pl.program_id(2)
  heads = range(plan.group)

  @pl.when(block == plan.blocks - 1)
  def _():
    dstate[...] = dh_last[0]

  states[0] = saved.entries[0, 0]

  def again(chunk, _):
    results = together(
      [
        chunks.chunk(
          _tile(plan, refs, head, block, chunk),
          states[chunk, head],
          saved.inverses[_inverse_at(plan, head, chunk)],
        )
        for head in heads
      ]
    )
    for head, (_, after, found) in enumerate(results):
      # Of the last chunk, into a place of its own.
      states[chunk + 1, head] = after
      for name, ref in solved._asdict().items():
        ref[chunk, head] = getattr(found, name)

  jax.lax.fori_loop(0, plan.chunks, again, None)

  def one_chunk(turn, _):
    chunk = plan.chunks - 1 - turn
    exists = _exists(plan, block, chunk)
    results = together(
      [
        chunks.adjoint(
          _tile(plan, refs, head, block, chunk),
          states[chunk, head],
          _solved(plan, solved, saved, head, chunk),
          _load(plan, dy, head, chunk, exists),
          dstate[head],
        )
        for head in heads
      ]
    )
    for head, (gradients, before) in enumerate(results):
      dstate[head] = before
      _store(plan, dinputs, head, chunk, gradients)

  jax.lax.fori_loop(0, plan.chunks, one_chunk, None)

  @pl.when(block == 0)
  def _():
    dh0[0] = dstate[...]


def _solved(plan: Plan, refs: Found, saved: Saved, head: int, chunk) -> chunks.Solved:
  """What the block's chunks were found to be: the inverses were saved, the rest found again."""
  inverse = saved.inverses[_inverse_at(plan, head, chunk)]
  found = {name: ref[chunk, head] for name, ref in refs._asdict().items()}
  return chunks.Solved(inverse=inverse, **found)


def _store(plan: Plan, refs: Inputs, head: int, chunk, gradients: chunks.Gradients) -> None:
  def tile(ref, value):
    ref[0, head, _rows(plan, chunk), :] = value.astype(ref.dtype)

  def scalar(index, value):
    refs.scalars[0, head, 0, pl.ds(chunk * plan.scalars + index, 1), :] = value

  tile(refs.q, gradients.q)
  tile(refs.k, gradients.k)
  tile(refs.v, gradients.v)
  scalar(0, row_of(gradients.beta))
  nothing = jnp.zeros((1, plan.chunk), F32)
  scalar(1, nothing)
  if plan.by_channel:
    tile(refs.log_a, gradients.decay)
  else:
    # The first part of a running sum is rounded, and has no gradient.
    scalar(2, row_of(gradients.decay))


def call(kernel, plan, name, like, inputs, outputs, scratch, flops, interpret):
  """`pl.pallas_call` with what both kernels share; `inputs` and `outputs` are pytrees with specs.

  Args:
    kernel: the body.
    plan: the blocks.
    name: name in profiles and dumps.
    like: [B, H, T, K], with the manual mesh axes of the outputs.
    inputs: pytree of (array, spec); None for an absent one.
    outputs: pytree of (shape, dtype, spec).
    scratch: memory.
    flops: operations of products per token and row.
    interpret: as in `fused`.
  """

  def is_leaf(node):
    return isinstance(node, tuple) and len(node) > 1 and isinstance(node[-1], pl.BlockSpec)

  def pick(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=is_leaf)

  arrays = pick(inputs, 0)
  shapes = jax.tree.map(lambda o: manual_axes.output(o[0], o[1], like), outputs, is_leaf=is_leaf)
  moved = sum(a.size * jnp.dtype(a.dtype).itemsize for a in jax.tree.leaves((arrays, shapes)))
  return pl.pallas_call(
    functools.partial(kernel, plan=plan),
    name=name,
    grid=(like.shape[0], plan.heads // plan.group, plan.blocks),
    in_specs=pick(inputs, 1),
    out_specs=pick(outputs, 2),
    out_shape=shapes,
    scratch_shapes=scratch,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
    ),
    cost_estimate=pl.CostEstimate(
      flops=int(flops * like.shape[0] * plan.length),
      transcendentals=like.size,
      bytes_accessed=moved,
    ),
    interpret=interpret,
  )(*arrays)
