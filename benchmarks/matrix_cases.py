"""Operations on heads, for clocks: attention, the delta rule, gated linear attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from comparison.speed import timing
from comparison.speed.recurrences import BOTH, FORWARD
from kernels import delta_rule, gated_linear_attention, platform
from kernels.attention import IMPLEMENTATIONS as ATTENTIONS
from kernels.attention import attention

Shape = tuple[int, int, int, int]
# A gradient has two products for each one of the forward pass; those that are computed again are
# not counted, because nothing but memory asks for them.
PRODUCTS_OF_BOTH = 3
CHUNK = 64
WINDOW = 1024


class Case(NamedTuple):
  """An operation with its arguments.

  Attributes:
    inputs: the arrays with respect to which it is differentiated.
    fixed: resets, or ids of segments, [B, T].
    bind: the name of an implementation -> function (*inputs, fixed) -> values.
    table: the implementations.
    xla: the implementation in plain XLA, with which the others are compared.
    flops: floating-point operations of the products, forward.
  """

  inputs: tuple[jax.Array, ...]
  fixed: jax.Array
  bind: Callable[[str], Callable[..., Any]]
  table: dict[str, platform.Implementation]
  xla: str
  flops: float

  def implementations(self) -> list[str]:
    """Lists those that run here on packed rows, but for the reference, which is no rival."""
    reasons = platform.availability(self.table, self.inputs[:3])
    left_out = ("reference", "cudnn")  # cuDNN refuses segments
    return [name for name, why in reasons.items() if why is None and name not in left_out]

  def gradient(self, implementation: str) -> Callable[..., Any]:
    """Returns the function (*inputs, fixed) -> values, and gradients for cotangents of one."""
    run = self.bind(implementation)

    def both(*arguments):
      *inputs, fixed = arguments
      values, vjp = jax.vjp(lambda *a: run(*a, fixed), *inputs)
      return values, vjp(jax.tree.map(jnp.ones_like, values))

    return both

  def bytes_of(self, direction: str) -> int:
    """Bytes of all that must move at least once.

    Forward, these are the inputs and values. With gradients, they are also the inputs again, the
    cotangents of the values, and the gradients.
    """
    values = jax.eval_shape(self.bind(self.xla), *self.inputs, self.fixed)
    read, written = (
      sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
      for tree in (self.inputs, values)
    )
    return read + written if direction == FORWARD else 3 * read + 2 * written


def case(op: str, shape: Shape, dtype: Any, seed: int = 0) -> Case:
  """Draws the arguments of an operation.

  Args:
    op: a name from OPS.
    shape: [B, T, H, K] of the queries; values have K channels too. Attention has one key/value
      head, and a window of 1,024 tokens.
    dtype: of queries, keys and values.
    seed: of the arguments.
  """
  rng = np.random.default_rng(seed)
  batch, steps, heads, channels = shape

  def normal(*size, dtype=dtype):
    return jnp.asarray(rng.standard_normal(size, np.float32)).astype(dtype)

  starts = rng.uniform(size=(batch, steps)) < 1 / 512
  if op == "attention":
    keys = normal(batch, steps, 1, channels), normal(batch, steps, 1, channels)
    ids = jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)
    full = min(WINDOW, steps)
    pairs = full * (full + 1) / 2 + (steps - full) * full
    flops = 4.0 * batch * heads * channels * pairs
    return Case((normal(*shape), *keys), ids, _attend, ATTENTIONS, "xla_blockwise", flops)
  rule, _, decay = op.rpartition("_")
  by_channel = decay == "channel"
  log_a = -jnp.asarray(10.0 ** rng.uniform(-4, 0, shape if by_channel else shape[:3]), jnp.float32)
  state = normal(batch, heads, channels, channels, dtype=jnp.float32)
  q, k, v = (normal(*shape) for _ in range(3))
  k = (k / jnp.linalg.norm(k.astype(jnp.float32), axis=-1, keepdims=True)).astype(dtype)
  sizes: dict[str, Any] = {
    "heads": heads,
    "key_dim": channels,
    "value_dim": channels,
    "chunk": CHUNK,
  }
  sizes |= {"length": steps, "decay_per_channel": by_channel}
  reset = jnp.asarray(starts)
  if rule == "delta_rule":
    beta = jnp.asarray(rng.uniform(0, 1, shape[:3]), jnp.float32)
    flops = batch * steps * delta_rule.matmul_flops(**sizes)
    inputs = (q, k, v, beta, log_a, state)
    return Case(inputs, reset, _delta_rule, delta_rule.IMPLEMENTATIONS, "chunked", flops)
  flops = batch * steps * gated_linear_attention.matmul_flops(**sizes)
  table = gated_linear_attention.IMPLEMENTATIONS
  return Case((q, k, v, log_a, state), reset, _gated, table, "chunked", flops)


def _attend(implementation: str):
  def run(q, k, v, ids):
    return attention(
      *(q, k, v),
      q_segment_ids=ids,
      kv_segment_ids=ids,
      window=WINDOW,
      implementation=implementation,
    )

  return run


def _delta_rule(implementation: str):
  return lambda *a: delta_rule.delta_rule(
    *a[:-1], reset=a[-1], chunk=CHUNK, implementation=implementation
  )


def _gated(implementation: str):
  return lambda *a: gated_linear_attention.gated_linear_attention(
    *a[:-1], reset=a[-1], chunk=CHUNK, implementation=implementation
  )


OPS = (
  "attention",
  "delta_rule_head",
  "delta_rule_channel",
  "gated_linear_attention_head",
  "gated_linear_attention_channel",
)


def runs(found: Case) -> dict[tuple[str, str], Callable[[], Any]]:
  """Returns runs of every implementation in both directions, compiled on first use."""
  of = {}
  for name in found.implementations():
    arguments = (*found.inputs, found.fixed)
    of[name, FORWARD] = functools.partial(jax.jit(found.bind(name)), *arguments)
    of[name, BOTH] = functools.partial(jax.jit(found.gradient(name)), *arguments)
  return of


def error(op: str, implementation: str, shape: Shape, dtype: Any) -> float:
  """The largest relative error against float64 (Euclidean norm) over values and all gradients."""
  found = case(op, shape, dtype)
  got = jax.jit(found.gradient(implementation))(*found.inputs, found.fixed)
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    wide = [jnp.asarray(np.asarray(a, np.float64)) for a in found.inputs]
    fixed = jnp.asarray(np.asarray(found.fixed))
    expected = jax.jit(found.gradient("reference"))(*wide, fixed)
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
  pairs = [(np.asarray(a).astype(np.float64), np.asarray(b)) for a, b in pairs]
  return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def products_per_second(dtype: Any, repeats: int, size: int) -> float:
  """Measures operations per second of a product of square matrices of `size` rows."""
  one = jnp.ones((size, size), dtype)
  multiply = functools.partial(jax.jit(jnp.matmul), one, one)
  return 2 * size**3 / timing.medians(timing.interleaved({"": multiply}, repeats))[""]
