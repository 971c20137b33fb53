"""Root-mean-square normalisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.parameter import parameter
from parallel import shards

WIDE = jnp.dtype(jnp.float32)  # of the arithmetic


class RMSNorm(nn.Module):
  """Divides by the root mean square over the last axis and scales each channel.

  Source: Zhang and Sennrich 2019; used by section 2 of the Griffin paper.

  Attributes:
    epsilon: added to the mean square.
    zero_centered: the parameter holds scale - 1 (as RecurrentGemma stores it) and starts at zero.
    dtype: type of the result; the arithmetic is float32.
    param_dtype: type of the stored scale.
  """

  epsilon: float = 1e-6
  zero_centered: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    initializer = nn.initializers.zeros if self.zero_centered else nn.initializers.ones
    scale = parameter(self, "scale", initializer, ("embed",), x.shape[-1:], dtype=WIDE)
    if self.zero_centered:
      scale = 1.0 + scale
    return _normalize(x, scale, self.epsilon).astype(self.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def _normalize(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """The arithmetic, in float32; the backward pass keeps x in its own type and nothing else.

  In rows of channels: XLA on the CPU sums the scale's gradient over [1, T, D] fifty times as
  slowly.
  """
  shape, x = x.shape, x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + float(epsilon))
  return (x * inverse_rms * scale).reshape(shape)


class GatedRMSNorm(nn.Module):
  """RMSNorm of `y * silu(z)` over each group of channels, which may lie on several devices.

  Source: section 7 of Dao and Gu 2024 (Mamba-2). Without z, of y alone (HGRN2).

  Attributes:
    features: channels, over all shards.
    axis: their logical axis.
    groups: groups of channels; several stay whole on a device, one is summed over the devices.
    epsilon, dtype, param_dtype: as in `RMSNorm`.
  """

  features: int
  axis: str
  groups: int = 1
  epsilon: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array, z: jax.Array | None = None) -> jax.Array:
    """Maps one or two [B, T, channels of this shard] to one."""
    shape, size = y.shape, self.features // self.groups
    ones = nn.initializers.ones
    scale = parameter(self, "scale", ones, (self.axis,), shape[-1:], dtype=WIDE)
    gated = y.astype(WIDE) if z is None else _silu_gated(y, z)
    if self.groups > 1:
      gated = gated.reshape(*shape[:-1], -1, size)
    total = jnp.sum(jnp.square(gated), axis=-1, keepdims=True)
    if self.groups == 1:
      # Each device reads the sum over all.
      total = shards.copy_to_tensor_parallel(
        shards.reduce_from_tensor_parallel(total, self.axis), self.axis
      )
    normed = gated * jax.lax.rsqrt(total / float(size) + float(self.epsilon))
    return (normed.reshape(shape) * scale).astype(self.dtype)


@partial(jax.checkpoint, prevent_cse=False)
def _silu_gated(y: jax.Array, z: jax.Array) -> jax.Array:
  """`y * silu(z)` in float32; the backward pass keeps the two inputs in their own type."""
  return y.astype(jnp.float32) * jax.nn.silu(z.astype(jnp.float32))


class GatedHeadNorm(nn.Module):
  """RMSNorm of each head, times a gate; the heads share one scale per channel.

  Source: the output of Gated DeltaNet (arXiv 2412.06464, figure 1) and of Kimi Delta Attention.

  Attributes:
    activation: of the gate.
    axis: the logical axis of the heads.
    epsilon, dtype, param_dtype: as in `RMSNorm`.
  """

  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
  axis: str = "heads"
  epsilon: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array, gate: jax.Array) -> jax.Array:
    """Maps two [B, T, heads of this shard, V] to one."""
    scale = parameter(self, "scale", nn.initializers.ones, ("embed",), y.shape[-1:], dtype=WIDE)
    # Every shard has the scale, and finds the gradient that its heads owe.
    scale = shards.copy_to_tensor_parallel(scale, self.axis)
    return _gated_norm(y, gate, scale, self.activation, self.epsilon).astype(self.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(3, 4))
def _gated_norm(y, gate, scale, activation, epsilon):
  """The arithmetic, in float32; the backward pass keeps the inputs in their own type."""
  return _normalize(y, scale, epsilon) * activation(gate.astype(jnp.float32))


class GatedHeadLayerNorm(nn.Module):
  """Layer norm of each head, times the sigmoid of a gate; every channel has its own scale.

  Source: the output of the mLSTM block of xLSTM 7B (Beck et al. 2025, arXiv 2503.13427).

  Attributes:
    axis: the logical axis of the heads.
    epsilon, dtype, param_dtype: as in `RMSNorm`.
  """

  axis: str = "heads"
  epsilon: float = 1e-6
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, y: jax.Array, gate: jax.Array) -> jax.Array:
    """Maps [B, T, heads of this shard, V] and a gate [B, T, heads V] to one like the gate."""
    ones = nn.initializers.ones
    scale = parameter(self, "scale", ones, (self.axis,), gate.shape[-1:], dtype=WIDE)
    return _gated_layer_norm(y, gate, scale, self.epsilon).astype(self.dtype)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _gated_layer_norm(y, gate, scale, epsilon):
  """The arithmetic, in float32; the backward pass keeps the inputs in their own type."""
  y = y.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + float(epsilon))
  return y.reshape(gate.shape) * scale * jax.nn.sigmoid(gate.astype(jnp.float32))


@partial(jax.checkpoint, prevent_cse=False)
def unit_norm(x: jax.Array) -> jax.Array:
  """Divides the last axis by its Euclidean norm, `sqrt(sum x^2 + 1e-6)`, in float32."""
  wide = x.astype(jnp.float32)
  total = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(total + 1e-6)).astype(x.dtype)
