"""The products with custom gradients against JAX's own, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import platform
from kernels.matmul import block_diagonal_linear, matmul, matmul_transposed


def normal(seed, shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def check(function, reference, *arguments, rtol):
  g = normal(2, jax.eval_shape(reference, *arguments).shape, arguments[0].dtype)
  value, pullback = jax.vjp(function, *arguments)
  exact = [leaf.astype(jnp.float32) for leaf in arguments]
  expected, expected_pullback = jax.vjp(reference, *exact)
  pairs = zip(
    (value, *pullback(g.astype(value.dtype))),
    (expected, *expected_pullback(g.astype(jnp.float32))),
    strict=True,
  )
  for found, wanted in pairs:
    assert jnp.linalg.norm(found.astype(jnp.float32) - wanted) <= rtol * jnp.linalg.norm(wanted)


# Rounding of the result alone (2^-9 relative in bfloat16): sums are float32 in both types.
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_matmul_and_gradients(dtype, rtol):
  x, w = normal(0, (3, 5, 24), dtype), normal(1, (24, 40), dtype)
  check(matmul, lambda x, w: x @ w, x, w, rtol=rtol)
  check(matmul, lambda x, w: x @ w, x[0, 0], w, rtol=rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize("target", ["cpu", "tpu"])
@pytest.mark.parametrize("length", [1, 5])
def test_matmul_transposed_and_gradients(dtype, rtol, target, length):
  x, w = normal(0, (3, length, 24), dtype), normal(1, (40, 24), dtype)
  with platform.targeting(target):
    check(matmul_transposed, lambda x, w: x @ w.T, x, w, rtol=rtol)
    wide = matmul_transposed(x, w, jnp.float32)
  assert wide.dtype == jnp.float32


def test_a_token_at_a_time_turns_no_weight_round_on_a_cpu():
  x, w = jnp.zeros((16, 1, 24)), jnp.zeros((40, 24))
  (product,) = (
    equation
    for equation in jax.make_jaxpr(matmul_transposed)(x, w).eqns
    if equation.primitive.name == "dot_general"
  )
  assert [operand.aval.shape for operand in product.invars] == [w.shape, x.shape]


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize(
  ("blocks", "width", "target"),
  [(1, 24, "cpu"), (3, 24, "cpu"), (12, 24, "cpu"), (3, 24, "tpu"), (2, 256, "tpu")],
)
def test_block_diagonal_linear_and_gradients(dtype, rtol, blocks, width, target):
  x, bias = normal(0, (2, 7, width), dtype), normal(3, (width,), dtype)
  w = normal(1, (blocks, width // blocks, width // blocks), dtype)

  def full(x, w, bias):
    return x @ jax.scipy.linalg.block_diag(*w) + bias

  with platform.targeting(target):
    check(block_diagonal_linear, full, x, w, bias, rtol=rtol)


def test_result_type_can_be_wider_than_the_operands():
  x, w = normal(0, (2, 64), jnp.bfloat16), normal(1, (64, 8), jnp.bfloat16)
  y = matmul(x, w, jnp.float32)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, x.astype(jnp.float32) @ w.astype(jnp.float32), rtol=1e-5, atol=1e-5)
