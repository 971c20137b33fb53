"""The kernels as functions of arrays alone, for compilers and clocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

PAPER_WIDTHS = (1024, 1536, 2048, 2560, 4096, 5632, 8192)
SHARDS = (1, 2, 4, 8, 16)
LENGTHS = (1, 100, 2048, 32768)
# Bytes per element in bfloat16 at the floor: every array once, nothing of size [B, T, R] beside
# them. Of the delta rule with heads of 128 channels also the inverses of chunks of 64 tokens (1),
# the states of every 256 tokens (2) and float32 decays per channel (4 each way).
BYTES_PER_ELEMENT = {
  "rg_lru_forward": 8,
  "rg_lru_backward": 16,
  "linear_scan_forward": 6,
  "linear_scan_backward": 10,
  "delta_rule_head_forward": 11,
  "delta_rule_head_backward": 17,
  "delta_rule_channel_forward": 15,
  "delta_rule_channel_backward": 25,
}


def shard_widths() -> list[int]:
  """The paper's RNN widths, whole and divided over up to 16 devices, that are multiples of 128."""
  return sorted({w // n for w in PAPER_WIDTHS for n in SHARDS if w % (n * 128) == 0})


def rg_lru_arguments(shape: tuple[int, int, int], dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
  """(x, gate_a, gate_x, log_decay, h0, reset)."""
  batch, steps, width = shape
  tile = jax.ShapeDtypeStruct(shape, dtype)
  return (
    *(tile, tile, tile),
    jax.ShapeDtypeStruct((width,), jnp.float32),
    jax.ShapeDtypeStruct((batch, width), jnp.float32),
    jax.ShapeDtypeStruct((batch, steps), jnp.bool_),
  )


def linear_scan_arguments(shape: tuple[int, int, int], dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
  """(x, log_a, h0, reset)."""
  batch, steps, width = shape
  tile = jax.ShapeDtypeStruct(shape, dtype)
  return (
    *(tile, tile),
    jax.ShapeDtypeStruct((batch, width), jnp.float32),
    jax.ShapeDtypeStruct((batch, steps), jnp.bool_),
  )


def cotangents(shape: tuple[int, int, int], dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Of h and h_last."""
  return (
    jax.ShapeDtypeStruct(shape, dtype),
    jax.ShapeDtypeStruct((shape[0], shape[2]), jnp.float32),
  )


def delta_arguments(
  shape: tuple[int, int, int, int], decay: str, dtype
) -> tuple[jax.ShapeDtypeStruct, ...]:
  """(q, k, v, beta, log_a, h0, reset), and cotangents of y and of the last state.

  Args:
    shape: [B, T, H, K]; values have K channels too.
    decay: 'head', or 'channel' for one per channel of the keys.
    dtype: of q, k, v and y.
  """
  batch, steps, heads, head_dim = shape
  tile = jax.ShapeDtypeStruct(shape, dtype)
  per_head = jax.ShapeDtypeStruct(shape[:3], jnp.float32)
  log_a = per_head if decay == "head" else jax.ShapeDtypeStruct(shape, jnp.float32)
  state = jax.ShapeDtypeStruct((batch, heads, head_dim, head_dim), jnp.float32)
  reset = jax.ShapeDtypeStruct((batch, steps), jnp.bool_)
  return tile, tile, tile, per_head, log_a, state, reset, tile, state


def linear_attention_arguments(
  shape: tuple[int, int, int, int], decay: str, dtype
) -> tuple[jax.ShapeDtypeStruct, ...]:
  """(q, k, v, log_a, h0, reset) and cotangents of gated linear attention, as `delta_arguments`."""
  q, k, v, _, *rest = delta_arguments(shape, decay, dtype)
  return q, k, v, *rest


def attention_arguments(shape: tuple[int, int, int, int], kv_heads: int, dtype):
  """(q, k, v, segment ids, cotangent) for queries [B, T, H, K] and as many keys."""
  batch, steps, _, head_dim = shape
  queries = jax.ShapeDtypeStruct(shape, dtype)
  keys = jax.ShapeDtypeStruct((batch, steps, kv_heads, head_dim), dtype)
  return queries, keys, keys, jax.ShapeDtypeStruct((batch, steps), jnp.int32), queries


def attention_with_gradient(attend):
  """attend(q, k, v, ids) -> a function (q, k, v, ids, cotangent) -> value and gradients."""

  def both(q, k, v, ids, g):
    value, vjp = jax.vjp(lambda *a: attend(*a, ids), q, k, v)
    return value, vjp(g)

  return both
