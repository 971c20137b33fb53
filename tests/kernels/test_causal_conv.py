"""The short causal convolution against float64, in value and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.causal_conv import causal_conv
from tests.kernels.float64_reference import relative_error, wide


def in_float64(x, positions, kernel, bias, g):
  """Returns the output, and the gradients of x, kernel and bias, computed lag by lag."""
  (batch, length), taps = positions.shape, kernel.shape[0]
  y = np.broadcast_to(bias, g.shape).copy()
  dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
  for b in range(batch):
    for t in range(length):
      for lag in range(min(taps, positions[b, t] + 1)):
        source = t + taps - 1 - lag
        y[b, t] += kernel[lag] * x[b, source]
        dx[b, source] += kernel[lag] * g[b, t]
        dkernel[lag] += x[b, source] * g[b, t]
  return y, dx, dkernel, g.sum((0, 1))


@pytest.mark.parametrize(
  ("dtype", "tolerances"),
  # float32: a few roundings. bfloat16: each of four products and sums is rounded, of the output and
  # of dx; the sums over tokens are float32, of products rounded once.
  [(jnp.float32, [1e-6] * 4), (jnp.bfloat16, [2**-7, 2**-7, 2**-8, 2**-8])],
)
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (40, 4), (40, 2)])
def test_values_and_gradients_equal_float64(length, taps, dtype, tolerances):
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

  positions = np.stack([np.arange(length) % 7, np.arange(length) + 2]).astype(np.int32)
  x, kernel, bias = normal(2, taps - 1 + length, 5), normal(taps, 5), normal(5)
  g = normal(2, length, 5)

  def run(x, kernel, bias, g):
    y, vjp = jax.vjp(lambda x, k, b: causal_conv(x, jnp.asarray(positions), k, b), x, kernel, bias)
    return y, *vjp(g)

  got = jax.jit(run)(x, kernel, bias, g)
  wanted = in_float64(wide(x), positions, wide(kernel), wide(bias), wide(g))
  for name, a, b, tolerance in zip(
    ("y", "dx", "dkernel", "dbias"), got, wanted, tolerances, strict=True
  ):
    assert a.dtype == dtype
    assert relative_error(a, b) <= tolerance, name
