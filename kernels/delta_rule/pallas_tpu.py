"""The chunked delta rule (the WY form of `kernels.delta_rule.chunked`) as Pallas TPU kernels.

The grid is (rows, groups of heads, blocks of time). Blocks of time run one after the other and
carry the states in VMEM; within a block, the kernel goes through its chunks. The forward kernel
saves the state that enters each block. The backward kernel goes through the blocks from the last to
the first: it computes the states of a block's chunks again, then runs the adjoints of the chunks.
Scores and states between chunks never reach HBM. The inverses of the triangular matrices do: to
find them again would take most of the backward pass, and to move them a tenth of its traffic.

Memory traffic in bfloat16, per token and head with K = V: 8 K bytes forward (q, k, v in, y out) and
14 K backward, 4 K and 8 K more for decays per channel, and each way 2 C for inverses and
4 K^2 / `time` for states.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from base.custom_gradient import custom_vjp
from kernels import checkpoint_names, manual_axes, platform
from kernels.delta_rule import chunked, matmul_flops, reference
from kernels.delta_tpu.blocks import Plan, Specs, block_specs, choose_plan
from kernels.delta_tpu.kernels import (
  RESET_LOG,
  Found,
  Inputs,
  Saved,
  backward_kernel,
  call,
  forward_kernel,
)
from kernels.log_decays import running_sums

F32 = jnp.float32


def unavailable_reason() -> str | None:
  """Returns why the kernels cannot run on the target chip; None if they can."""
  if "v2" in platform.device_kind() or "v3" in platform.device_kind():
    return "multiplies bfloat16 matrices, which TPU v2 and v3 do not in kernels"
  return None


def delta_rule(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  beta: jax.Array,
  log_a: jax.Array | None,
  h0: jax.Array | None,
  reset: jax.Array | None,
  last: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array | None]:
  """See `kernels.delta_rule.delta_rule`."""
  if q.shape[1] == 1:
    # One decoding step has no recurrence in time: XLA fuses it with its neighbours.
    return reference.delta_rule(q, k, v, beta, log_a, h0, reset, last, chunk)
  plan = _plan(q, k, v, log_a, chunk)
  if plan is None:
    _say_too_wide(q.shape[3], v.shape[3])
    return chunked.delta_rule(q, k, v, beta, log_a, h0, reset, last, chunk)
  return fused(q, k, v, beta, log_a, h0, reset, last, chunk, plan=plan)


def _plan(q, k, v, log_a, chunk) -> Plan | None:
  """The blocks for the arguments of `delta_rule`; None if VMEM has no room for a head."""
  return choose_plan(
    *(q.shape[2], q.shape[3], v.shape[3], k.shape[1], q.dtype.itemsize),
    chunk=chunk,
    by_channel=log_a is not None and log_a.ndim == 4,
  )


@functools.cache
def _say_too_wide(key_dim: int, value_dim: int) -> None:
  logging.getLogger(__name__).warning(
    "delta_rule on tpu: chunked; VMEM has no room in 'pallas_tpu' for heads of %d x %d channels",
    key_dim,
    value_dim,
  )


def fused(q, k, v, beta, log_a, h0, reset, last, chunk, *, plan=None, interpret=False):
  """Runs the kernels for any T, with options for tests and benchmarks.

  Args:
    q, k, v, beta, log_a, h0, reset, last, chunk: see `kernels.delta_rule.delta_rule`.
    plan: the blocks (`kernels.delta_tpu.blocks.Plan`); None picks them.
    interpret: run as plain XLA operations.

  Raises:
    ValueError: VMEM has no room for a head.
  """
  plan = _plan(q, k, v, log_a, chunk) if plan is None else plan
  if plan is None:
    raise ValueError(
      f"delta_rule: the kernels have no room for heads of {q.shape[3]} x {v.shape[3]} channels; "
      "choose the implementation 'chunked', or narrower heads."
    )
  corrections = k.shape[1] // q.shape[1]
  if corrections > 1:
    # A token of its own for each correction: the first decays the state, the last is read.
    q = _spread(q, corrections, -1)
    log_a = None if log_a is None else _spread(log_a, corrections, 0)
    reset = None if reset is None else _spread(reset, corrections, 0)
  batch, _, heads, channels = q.shape
  channel_log_a = log_a if log_a is not None and log_a.ndim == 4 else None
  if h0 is None:
    h0 = jnp.zeros((batch, heads, channels, v.shape[3]), F32)
  # Heads before time: an array with heads before channels would have to be copied.
  arrays = manual_axes.vary_together(
    *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
    _scalars(plan, beta, log_a, reset),
    None if channel_log_a is None else jnp.swapaxes(channel_log_a, 1, 2),
    jnp.swapaxes(h0.astype(F32), 2, 3),
  )
  y, h_last = _delta_rule(plan, interpret, *arrays)
  y = jnp.swapaxes(y[:, :, corrections - 1 :: corrections], 1, 2)
  return y, jnp.swapaxes(h_last, 2, 3) if last else None


def _spread(x, corrections, at):
  """[B, T, ...] as [B, J T, ...], where of the J rows of a token all but one are zero."""
  x = jnp.expand_dims(x, 2)
  margin = (0, corrections - 1) if at == 0 else (corrections - 1, 0)
  x = jnp.pad(x, ((0, 0), (0, 0), margin) + ((0, 0),) * (x.ndim - 3))
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def _scalars(plan, beta, log_a, reset):
  """[B, H, blocks, chunks x scalars, C] float32: the rows of numbers that each chunk reads."""
  batch = beta.shape[0]

  def cut(x):
    x = jnp.pad(x, ((0, 0), (0, plan.blocks * plan.time - plan.length), (0, 0)))
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(batch, plan.heads, plan.blocks, plan.chunks, plan.chunk)

  if plan.by_channel:
    starts = jnp.zeros_like(beta) if reset is None else reset[..., None].astype(F32)
    rows = [cut(beta), cut(jnp.broadcast_to(starts, beta.shape))]
  else:
    log_a = jnp.zeros_like(beta) if log_a is None else log_a
    log_a = log_a if reset is None else jnp.where(reset[..., None], RESET_LOG, log_a)
    rows = [cut(beta), *running_sums(cut(log_a))]
  rows = jnp.stack(rows, axis=4)
  return rows.reshape(batch, plan.heads, plan.blocks, plan.chunks * plan.scalars, plan.chunk)


@custom_vjp(nondiff_argnums=(0, 1))
def _delta_rule(plan, interpret, q, k, v, scalars, log_a, h0):
  """Runs the kernel.

  Args:
    plan, interpret: as in `fused`.
    q, k, v: [B, H, T, K] and [B, H, T, V].
    scalars: see `_scalars`.
    log_a: [B, H, T, K] or None.
    h0: [B, H, V, K] float32.

  Returns:
    y: [B, H, T, V], and the last state [B, H, V, K] float32.
  """
  y, h_last, _ = _forward(plan, interpret, q, k, v, scalars, log_a, h0, saves=False)
  return y, h_last


def _inputs(specs: Specs, q, k, v, scalars, log_a) -> Inputs:
  return Inputs(
    (q, specs.keys),
    (k, specs.keys),
    (v, specs.values),
    (scalars, specs.scalars),
    None if log_a is None else (log_a, specs.keys),
  )


def _name(plan: Plan, direction: str) -> str:
  return f"delta_rule_{'channel' if plan.by_channel else 'head'}_{direction}"


def _flops(plan: Plan) -> float:
  return matmul_flops(
    heads=plan.heads,
    key_dim=plan.key_dim,
    value_dim=plan.value_dim,
    chunk=plan.chunk,
    length=plan.length,
    decay_per_channel=plan.by_channel,
  )


def _forward(plan, interpret, q, k, v, scalars, log_a, h0, *, saves):
  specs = block_specs(plan, backward=False)
  state = plan.group, plan.value_dim, plan.key_dim
  batch = q.shape[0]
  entries = (batch, plan.blocks, plan.heads, *state[1:])
  whole = plan.blocks * plan.time
  inverses = (batch, plan.heads // plan.group, whole, plan.group * plan.chunk)
  return call(
    forward_kernel,
    plan,
    _name(plan, "forward"),
    q,
    (_inputs(specs, q, k, v, scalars, log_a), (h0, specs.state)),
    (
      (v.shape, q.dtype, specs.values),
      (h0.shape, F32, specs.state),
      Saved((entries, F32, specs.entries), (inverses, q.dtype, specs.inverses)) if saves else None,
    ),
    [pltpu.VMEM(state, F32)],
    _flops(plan),
    interpret,
  )


def _vjp_forward(plan, interpret, q, k, v, scalars, log_a, h0):
  y, h_last, kept = _forward(plan, interpret, q, k, v, scalars, log_a, h0, saves=True)
  y, h_last, *kept = checkpoint_names.recurrence(y, h_last, *kept)
  return (y, h_last), (q, k, v, scalars, log_a, Saved(*kept))


def _vjp_backward(plan, interpret, residuals, cotangents):
  q, k, v, scalars, log_a, saved = residuals
  dy, dh_last = cotangents
  specs = block_specs(plan, backward=True)
  state = plan.group, plan.value_dim, plan.key_dim
  square, wide = (plan.chunk, plan.chunk), (plan.chunk, plan.value_dim)

  def found(shape):
    return pltpu.VMEM((plan.chunks, plan.group, *shape), F32)

  dinputs, dh0 = call(
    backward_kernel,
    plan,
    _name(plan, "backward"),
    q,
    (
      _inputs(specs, q, k, v, scalars, log_a),
      Saved((saved.entries, specs.entries), (saved.inverses, specs.inverses)),
      (dy, specs.values),
      (dh_last, specs.state),
    ),
    (
      Inputs(
        (q.shape, q.dtype, specs.keys),
        (k.shape, k.dtype, specs.keys),
        (v.shape, v.dtype, specs.values),
        (scalars.shape, F32, specs.scalars),
        None if log_a is None else (log_a.shape, F32, specs.keys),
      ),
      (dh_last.shape, F32, specs.state),
    ),
    [
      pltpu.VMEM((plan.chunks + 1, *state), F32),
      Found(found(square), found(square), found(wide), found(wide)),
      pltpu.VMEM(state, F32),
    ],
    3 * _flops(plan),
    interpret,
  )
  return *dinputs, dh0


_delta_rule.defvjp(_vjp_forward, _vjp_backward)
