"""Learned initial states: parameters that a recurrence begins every document with.

A recurrence is linear in its state. What it holds after t tokens of a document is what it wrote
since the start, from a state of zero, and what its decays left of the state s at the start:

    h_t = z_t + d_t s,  d_t = a_t d_{t-1},  d_1 = a_1

So kernels go on starting each document from zero and compute z. What is left of s joins their
result, and the last state. The delta rule also corrects what is left of s. With v - (d k)^T s in
place of v, its corrections of z are those of the whole state.

States that calls return are whole. A call that continues a document ignores s: d is 0 there.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.wide_product import wide_product
from layers.linear_recurrence import linear_recurrence
from layers.parameter import parameter
from layers.segments import Segments
from parallel import sequence

# The name of the module with the parameter.
NAME = "initial_state"
# How messages call the option.
OPTION = "--gin.models.backbone.Backbone.learned_states"
# Channels that kernels on accelerators take a multiple of.
_LANES = 128


class InitialState(nn.Module):
  """The state that documents begin with, zero at first: float32, as states are.

  A module of its own, so that the other parameters draw the same random keys as without it.

  Attributes:
    axes: a logical axis per dimension.
    shape: of this device's part.
  """

  axes: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns the state, [shape] float32."""
    return parameter(self, "state", nn.initializers.zeros, self.axes, self.shape)


def learned(axes: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
  """Declares the state of the module in whose compact method it is called; see `InitialState`."""
  return InitialState(axes, shape, name=NAME)()


def is_initial_state(path: str) -> bool:
  """Whether a parameter is a learned initial state, by its path (names joined by slashes)."""
  return NAME in path.split("/")


def left_of_start(
  log_a: jax.Array, segments: Segments, scale: jax.Array | None = None
) -> jax.Array:
  """Computes d, the share of a document's initial state that its decays have left.

  Args:
    log_a: [B, T, ...] float32 <= 0, logarithms of the decays.
    segments: boundaries of the T tokens.
    scale: [B, T, ...] float32, what the first token of a document leaves; None is its decay.

  Returns:
    d: [B, T, ...] float32; 0 before the first start of a document in this call.
  """
  shape = log_a.shape
  starts = segments.starts.reshape(*shape[:2], *[1] * (log_a.ndim - 2))
  first = jnp.where(starts, jnp.exp(log_a) if scale is None else scale, 0)
  flat = (*shape[:2], -1)
  log_a = log_a.reshape(flat)
  # There are few channels where a decay is that of a head.
  implementation = None if log_a.shape[2] % _LANES == 0 else "associative"
  d, _ = linear_recurrence(first.reshape(flat), log_a, segments, implementation=implementation)
  return d.reshape(shape)


@functools.partial(jax.checkpoint, prevent_cse=False)
def read(d: jax.Array, keys: jax.Array, state: jax.Array) -> jax.Array:
  """Reads what is left of an initial state under keys or queries: `(d k)^T s`.

  Args:
    d: [B, T, H] or [B, T, H, K] float32, from `left_of_start`.
    keys: [B, T, G, K]; a group has H / G consecutive heads.
    state: [H, K, V] float32.

  Returns:
    [B, T, H, V] float32; products are of the keys' type.
  """
  (heads, channels, values), dtype = state.shape, keys.dtype
  if d.ndim == 4:
    return wide_product("bthk,hkv->bthv", (keys * d).astype(dtype), state.astype(dtype), d.dtype)
  grouped = state.reshape(keys.shape[2], -1, channels, values).astype(dtype)
  found = wide_product("btgk,gmkv->btgmv", keys, grouped, d.dtype)
  return d[..., None] * found.reshape(*d.shape[:2], heads, values)


def joined(y: jax.Array, d: jax.Array, queries: jax.Array, state: jax.Array) -> jax.Array:
  """Adds what queries read of an initial state to a kernel's result, in its type; see `read`."""
  return (y.astype(d.dtype) + read(d, queries, state)).astype(y.dtype)


def with_rest(last: jax.Array | None, d: jax.Array, state: jax.Array) -> jax.Array | None:
  """Adds what is left of an initial state to the last state of a kernel.

  Args:
    last: [B, H, K, V] float32, the state after the last token of all shards; None stays None.
    d: [B, T, H] or [B, T, H, K] float32, from `left_of_start`.
    state: [H, K, V] float32.
  """
  if last is None:
    return None
  rest = sequence.of_last(d[:, -1])
  return last + (rest[..., None, None] if rest.ndim == 2 else rest[..., None]) * state


def check_mixers(mixers: list[Any]) -> None:
  """Checks the mixers of a model with learned states: each learns its own, or has a window.

  Raises:
    ValueError: a mixer's state grows with the tokens or cannot be learned, or no mixer learns one.
  """
  for mixer in mixers:
    if not getattr(mixer, "constant_state", False):
      local = ", or train a model with local attention" if hasattr(mixer, "window") else ""
      raise ValueError(
        f"no initial state can be learned in a model with {_name(mixer)}, whose state grows with "
        f"every token. Set {OPTION}=False{local}."
      )
    if getattr(mixer, "window", None) is None:
      check_field(mixer)
  if not any(getattr(mixer, "learned_state", False) for mixer in mixers):
    raise ValueError(
      "no mixer of this model has a state that can be learned: windows of attention begin empty. "
      f"Set {OPTION}=False."
    )


def check_field(recurrence: Any) -> None:
  """Raises ValueError unless a mixer, or a block's recurrence, has the field `learned_state`."""
  if not hasattr(recurrence, "learned_state"):
    raise ValueError(_without_field(recurrence))


def _without_field(module: Any) -> str:
  return (
    f"{_name(module)} cannot learn its initial state: it has no field learned_state, which "
    f"layers.mixer.Mixer describes. Set {OPTION}=False."
  )


def _name(module: Any) -> str:
  return f"{type(module).__module__}.{type(module).__qualname__}"
