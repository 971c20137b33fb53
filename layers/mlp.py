"""The gated MLP block."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from layers.activations import Gate, gelu_gated
from layers.dtypes import dtypes_of
from layers.linear import Linear


class GatedMLP(nn.Module):
  """`down(gelu(gate(x)) * up(x))`, section 2.2 of the Griffin paper.

  With `activations.silu_gated` it is SwiGLU (Shazeer 2020), the MLP of Llama.

  Attributes:
    hidden: size F of the two branches (3 times the width in the paper).
    output_scale: initialisation scale of the output map.
    use_bias: biases on the three maps (RecurrentGemma has them).
    gated: joins the two branches.
  """

  hidden: int
  output_scale: float = 1.0
  use_bias: bool = False
  gated: Gate = gelu_gated
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  input_axis = "mlp"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to [B, T, D]."""
    dtypes = dtypes_of(self)
    gate = Linear(self.hidden, ("embed", "mlp"), use_bias=self.use_bias, name="gate", **dtypes)(x)
    up = Linear(self.hidden, ("embed", "mlp"), use_bias=self.use_bias, name="up", **dtypes)(x)
    down = Linear(
      x.shape[-1], ("mlp", "embed"), self.output_scale, self.use_bias, name="down", **dtypes
    )
    return down(self.gated(gate, up))

  def matmul_flops(self, width: int) -> int:
    """Floating-point operations of the matrix products per token, forward."""
    return 2 * 3 * width * self.hidden
