"""The short causal convolution of the recurrent block."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.causal_conv import causal_conv
from layers.linear import scaled_normal
from layers.parameter import parameter
from parallel import sequence


class CausalConv1D(nn.Module):
  """Depthwise convolution over the current and the tokens before, within a segment.

  Section 2.4 of the Griffin paper.

  Attributes:
    conv_width: number of tokens that one output sees; 4 in the paper.
    axis: logical axis of the channels.
    use_bias: whether each channel has a bias.
  """

  conv_width: int = 4
  axis: str = "rnn"
  use_bias: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, history: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Convolves along time.

    Args:
      x: [B, T, R].
      positions: [B, T] int32; a tap that reaches before position 0 contributes nothing.
      history: [B, conv_width - 1, R] inputs before x, oldest first, and before those of all shards
        of time; None for zeros.

    Returns:
      y: [B, T, R], and the history after the last token: [B, conv_width - 1, R].
    """
    batch, length, channels = x.shape
    shape = (self.conv_width, channels)
    kernel = parameter(self, "kernel", scaled_normal(1.0), ("conv", self.axis), shape)
    bias = jnp.zeros(channels, self.dtype)
    if self.use_bias:
      bias = parameter(self, "bias", nn.initializers.zeros, (self.axis,), (channels,))
    x = x.astype(self.dtype)
    continues = history is not None
    if sequence.is_split():
      history = sequence.before(x, self.conv_width - 1, history)
    elif history is None:
      history = jnp.zeros((batch, self.conv_width - 1, channels), self.dtype)
    extended = jnp.concatenate([history.astype(self.dtype), x], axis=1)
    after = extended[:, length:]
    return (
      causal_conv(extended, positions, kernel, bias),
      sequence.of_last(after) if continues else after,
    )
