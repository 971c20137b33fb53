"""Calls the attention kernels, with an estimate of their cost."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def visible_pairs(q: jax.Array, k: jax.Array, window: int | None) -> int:
  """Pairs of a query and a key that it sees, over all heads, without segments.

  Args:
    q: [B, T, H, K].
    k: [B, S, G, K].
    window: tokens that a query sees; None for all.
  """
  batch, length, heads, _ = q.shape
  before = k.shape[1] - length
  seen = length * before + length * (length + 1) // 2
  return batch * heads * (seen if window is None else min(seen, length * window))


def call(
  body: Any,
  inputs: tuple[jax.Array, ...],
  outputs: tuple[jax.ShapeDtypeStruct, ...],
  *,
  grid: dict[str, int],
  warpgroups: int,
  scratch: tuple[Any, ...],
  pairs: int,
  products: int,
  interpret: Any = None,
) -> Any:
  """Runs `body` over a grid, with `warpgroups` that compute and one that copies.

  Args:
    body: (inputs, outputs, scratch) references -> None.
    inputs: arrays in global memory.
    outputs: their types.
    grid: size of each named axis.
    warpgroups: that compute.
    scratch: shared memory and barriers.
    pairs: see `visible_pairs`.
    products: matrix products per pair of blocks.
    interpret: parameters of Pallas' GPU interpreter, or None.
  """
  options = {}
  if "cost_estimate" in inspect.signature(plgpu.kernel).parameters:  # since JAX 0.12
    moved = sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in (*inputs, *outputs))
    options["cost_estimate"] = pl.CostEstimate(
      flops=2 * products * pairs * inputs[0].shape[-1], transcendentals=pairs, bytes_accessed=moved
    )
  if interpret is not None:
    options["interpret"] = interpret
  return plgpu.kernel(
    body,
    out_type=outputs,
    grid=tuple(grid.values()),
    grid_names=tuple(grid),
    num_threads=warpgroups + 1,
    thread_name="warpgroup",
    scratch_types=scratch,
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **options,
  )(*inputs)
