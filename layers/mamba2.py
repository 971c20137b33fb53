"""The mixer of Mamba-2 (section 7 of Dao and Gu 2024)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.ssd import matmul_flops, ssd
from layers.conv1d import CausalConv1D
from layers.linear import Linear
from layers.parameter import parameter
from layers.segments import Segments
from parallel import sequence, shards


class Mamba2State(NamedTuple):
  """What the mixer remembers of the tokens before: its size does not depend on their number.

  Attributes:
    x_history: [B, taps - 1, H P] the last inputs of the convolution of x, oldest first.
    bc_history: [B, taps - 1, 2 G N] those of the convolution of b and c.
    h: [B, H, N, P] float32 states of the heads.
  """

  x_history: jax.Array
  bc_history: jax.Array
  h: jax.Array


class Mamba2Mixer(nn.Module):
  """Heads of state-space duality between a short convolution and a gated norm.

  `dt = softplus(dt(x) + bias)` per head, `h_t = exp(-A dt) h_{t-1} + dt b_t x_t^T`,
  `y_t = h_t^T c_t + D x_t`, then `out(norm(y * silu(z)))`. b and c serve a group of heads, as the key/value
  heads of attention do, and lie on devices as those.

  Attributes:
    heads: heads H, of which each stays whole on a device.
    head_dim: channels P of a head.
    state_size: N.
    groups: groups G of heads that share b and c, and the root mean square of the norm.
    taps: taps of the convolutions.
    chunk: steps that are multiplied as one matrix.
    output_scale: initialisation scale of the output map.
    implementation: a name of `kernels.ssd.IMPLEMENTATIONS`; None picks by backend.
  """

  heads: int
  head_dim: int
  state_size: int
  groups: int = 1
  taps: int = 4
  chunk: int = 128
  output_scale: float = 1.0
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  implementation: str | None = None

  @property
  def constant_state(self) -> bool:
    """The state is the convolutions' last inputs and one matrix per head."""
    return True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: Segments,
    state: Mamba2State | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, Mamba2State | None]:
    """Mixes [B, T, D] over time; see `layers.residual_block` for the contract of a mixer."""
    split = shards.count("heads")
    # One group serves all heads, on whatever device they lie; several are split with their heads.
    group_axis = "kv_heads" if self.groups == 1 else "heads"
    for name, count in {"heads": self.heads, "groups": self.groups}.items():
      if count % split and (name, count) != ("groups", 1):
        raise ValueError(
          f"{count} {name} of Mamba-2 cannot be split over {split} devices: each stays whole. Make "
          f"{name} a multiple of the model axis, or set mesh.model to a divisor of {name}."
        )
    kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x_history, bc_history, h0 = state if state is not None else (None, None, None)

    def project(name, x, features, axis):
      return Linear(features, ("embed", axis), name=name, **kinds)(x)

    def convolve(name, x, axis, history):
      conv = CausalConv1D(self.taps, axis, name=f"conv1d_{name}", **kinds)
      y, history = conv(x, segments.positions, history)
      return jax.nn.silu(y), history

    def project_bc(x):
      features = 2 * self.groups * self.state_size
      return convolve("bc", project("bc", x, features, group_axis), group_axis, bc_history)

    if self.groups == 1:
      # Every device computes the same b and c: their gradients join that of x.
      bc, bc_history = project_bc(x)
      x, bc = shards.enter_together((x, bc), "heads")
    else:
      x = shards.enter(x, "heads")
      bc, bc_history = project_bc(x)
    channels = self.heads * self.head_dim
    z = project("z", x, channels, "heads")
    u, x_history = convolve("x", project("x", x, channels, "heads"), "heads", x_history)
    dt = project("dt", x, self.heads, "heads")
    y, h = self._mix(dt, u, bc, segments.positions == 0, h0)
    y = self._normalize(y.reshape(u.shape), z)
    out = Linear(x.shape[-1], ("heads", "embed"), self.output_scale, name="out", **kinds)
    return out(y), None if state is None and capacity is None else Mamba2State(
      x_history, bc_history, h
    )

  def _mix(self, dt, u, bc, reset, h0) -> tuple[jax.Array, jax.Array]:
    """y [B, T, H, P] and the last state, from dt [B, T, H], u [B, T, H P] and bc [B, T, 2 G N]."""
    heads, rows = dt.shape[-1], u.shape[:2]
    # Float32 always, as every parameter that makes a decay.
    per_head = {"axes": ("heads",), "shape": (heads,), "param_dtype": jnp.float32}
    log_rate = parameter(self, "a_log", _log_uniform_rate, **per_head, dtype=jnp.float32)
    dt_bias = parameter(self, "dt_bias", _log_uniform_step, **per_head, dtype=jnp.float32)
    skip = parameter(self, "skip", nn.initializers.ones, **per_head, dtype=jnp.float32)
    u = u.reshape(*rows, heads, self.head_dim)
    b, c = jnp.moveaxis(bc.reshape(*rows, -1, 2, self.state_size), 3, 0)
    dt = jax.nn.softplus(dt.astype(jnp.float32) + dt_bias)
    arrays = (u * dt[..., None]).astype(u.dtype), -jnp.exp(log_rate) * dt, b, c
    run = functools.partial(ssd, chunk=self.chunk, implementation=self.implementation)
    if h0 is None and sequence.is_split():
      shape = (rows[0], heads, self.state_size, self.head_dim)
      y, h = (
        sequence.recur(
          functools.partial(_run, run, shape), functools.partial(_log_decay, shape), arrays, reset
        ),
        None,
      )
    else:
      y, h = run(*arrays, h0, reset=reset)
    return y + (skip[:, None] * u).astype(u.dtype), h

  def _normalize(self, y: jax.Array, z: jax.Array) -> jax.Array:
    """`y * silu(z)`, divided by its root mean square over the channels of a group."""
    axes = {"axes": ("heads",), "shape": y.shape[-1:]}
    scale = parameter(
      self, "norm", nn.initializers.ones, **axes, param_dtype=self.param_dtype, dtype=jnp.float32
    )
    gated = _gated(y, z)
    squares = jnp.square(gated)
    if self.groups == 1:
      total = jnp.sum(squares, axis=-1, keepdims=True)
      # Each device reads the sum over all.
      total = shards.enter(shards.leave(total, "heads"), "heads")
    else:
      size = self.heads * self.head_dim // self.groups
      total = jnp.sum(squares.reshape(*y.shape[:-1], -1, size), axis=-1)
      total = jnp.repeat(total, size, axis=-1)
    mean = total * (self.groups / (self.heads * self.head_dim))
    return (gated * jax.lax.rsqrt(mean + 1e-6) * scale).astype(self.dtype)

  def initial_state(self, batch_size: int, capacity: int) -> Mamba2State:
    """The state before the first token; `capacity` does not matter here."""
    del capacity
    before = batch_size, self.taps - 1
    return Mamba2State(
      x_history=jnp.zeros((*before, self.heads * self.head_dim), self.dtype),
      bc_history=jnp.zeros((*before, 2 * self.groups * self.state_size), self.dtype),
      h=jnp.zeros((batch_size, self.heads, self.state_size, self.head_dim), jnp.float32),
    )

  def matmul_flops(self, width: int, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    sizes = {name: getattr(self, name) for name in ("heads", "head_dim", "groups", "state_size")}
    channels = 3 * self.heads * self.head_dim + 2 * self.groups * self.state_size + self.heads
    return 2 * width * channels + matmul_flops(**sizes, chunk=self.chunk, length=length)


def _run(run, shape, arrays, reset, h0):
  """The op with its state as one vector per row, which is what shards exchange."""
  y, h_last = run(*arrays, h0.reshape(shape), reset=reset)
  return y, h_last.reshape(h0.shape)


def _log_decay(shape, x, log_a, b, c):
  """log of the product of the decays, for each entry of the state: [B, H N P]."""
  del x, b, c
  total = jnp.sum(log_a, axis=1)[..., None, None]
  return jnp.broadcast_to(total, shape).reshape(shape[0], -1)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(y: jax.Array, z: jax.Array) -> jax.Array:
  """`y * silu(z)` in float32; the backward pass keeps the two inputs."""
  return y.astype(jnp.float32) * jax.nn.silu(z.astype(jnp.float32))


def _log_uniform_rate(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """log A for A uniform in [1, 16], as in Mamba-2's code."""
  return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _log_uniform_step(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """The bias whose softplus is log-uniform in [0.001, 0.1] (section 3.6 of Gu and Dao 2023)."""
  step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
  return step + jnp.log(-jnp.expm1(-step))
