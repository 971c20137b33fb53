"""Linear maps whose weights carry logical axes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kernels.matmul import matmul
from layers import remat
from layers.parameter import parameter
from parallel import shards


class Linear(nn.Module):
  """A linear map over the last axis.

  Attributes:
    features: size of the last axis of the result, over all shards.
    axes: logical axes of the kernel [in, out]. Where the first is split, the shards' products are
      summed; where the second is, each shard gives its part of the result.
    scale: variance of a kernel entry times the fan-in at initialisation (1 is LeCun's).
    use_bias: adds a bias of size `features`.
    dtype: type of the arithmetic and the result.
    param_dtype: type of the stored parameters.
  """

  features: int
  axes: tuple[str, str]
  scale: float = 1.0
  use_bias: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = shards.local(self.features, self.axes[1])
    shape = (x.shape[-1], features)
    kernel = parameter(self, "kernel", scaled_normal(self.scale), self.axes, shape)
    y = shards.reduce_from_tensor_parallel(matmul(x.astype(self.dtype), kernel), self.axes[0])
    if self.use_bias:
      y = y + parameter(self, "bias", nn.initializers.zeros, self.axes[1:], (features,))
    return remat.product(y)


def scaled_normal(scale: float, *, batch_axis: tuple[int, ...] = ()) -> nn.initializers.Initializer:
  """Normal initialisation with variance `scale / fan_in`.

  Args:
    scale: 1 for LeCun initialisation.
    batch_axis: axes that hold independent matrices (the blocks of a block-diagonal weight).
  """
  return nn.initializers.variance_scaling(scale, "fan_in", "normal", batch_axis=batch_axis)
