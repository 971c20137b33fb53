"""mLSTM in chunks against its equations in float64: values, states, every gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.gated_linear_attention.mlstm import mlstm
from tests.kernels.float64_reference import relative_error

HEADS, KEYS, VALUES = 2, 5, 3
NAMES = ("q", "k", "v", "log_f", "log_i", "h0")
# Of the Euclidean norm of the expected array: some thirty roundings of 2^-24.
TOLERANCE = 2e-6


def problem(steps, *, dtype=jnp.float32, sizes=(HEADS, KEYS, VALUES), gates=3.0, slowest=1e-6):
  """(arguments, m0, reset, dy): log_i is normal times `gates`, -log_f log-uniform up to 20.

  Keys and normalizers are positive, and so are queries, or all channels of one are negative: where
  n^T q cancels, dividing by it enlarges roundings by any amount, however they came about.
  """
  rng = np.random.default_rng(0)
  heads, keys, values = sizes

  def normal(*shape, dtype=dtype):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

  rows = 2, steps, heads
  arguments = {
    "q": abs(normal(*rows, keys)) * jnp.sign(normal(*rows, 1)),
    "k": abs(normal(*rows, keys)),
    "v": normal(*rows, values),
    "log_f": jnp.asarray(-np.exp(rng.uniform(np.log(slowest), np.log(20), rows)), jnp.float32),
    "log_i": gates * normal(*rows, dtype=jnp.float32),
    "h0": normal(2, heads, keys, values + 1, dtype=jnp.float32),
  }
  arguments["h0"] = arguments["h0"].at[..., -1].set(abs(arguments["h0"][..., -1]))
  m0 = normal(2, heads, dtype=jnp.float32)
  return arguments, m0, rng.uniform(size=rows[:2]) < 0.1, normal(*rows, values)


def equations(arguments, m0, reset):
  """Equations 19 to 21 of the paper without stabilizer, and the unscaled last state C beside n."""
  q, k, v, log_f, log_i, h0 = (arguments[name] for name in NAMES)
  rows = [jnp.moveaxis(x, 1, 0) for x in (q, k, v, jnp.exp(log_f), jnp.exp(log_i), reset)]

  def step(state, inputs):
    c, n = state
    q, k, v, f, i, reset = inputs
    f = jnp.where(reset[:, None], 0, f)[..., None]
    c = f[..., None] * c + (i[..., None] * k)[..., None] * v[..., None, :]
    n = f * n + i[..., None] * k
    one = jnp.maximum(jnp.abs(jnp.sum(n * q, axis=-1)), 1)
    return (c, n), jnp.sum(c * q[..., None], axis=2) / one[..., None]

  scaled = h0 * jnp.exp(m0)[..., None, None]
  (c, n), y = jax.lax.scan(step, (scaled[..., :-1], scaled[..., -1]), rows)
  return jnp.moveaxis(y, 0, 1), jnp.concatenate([c, n[..., None]], axis=-1)


def chunked(arguments, m0, reset, chunk, implementation):
  options = {"chunk": chunk, "implementation": implementation}
  y, h, m = mlstm(**arguments, m0=m0, reset=reset, **options)
  return y, h * jnp.exp(m)[..., None, None]


def results(run, arguments, dy) -> dict[str, Any]:
  """Values, and gradients of the sum of y times dy and of the unscaled states."""
  (y, state), pull = jax.vjp(run, arguments)
  gradients = pull((dy.astype(y.dtype), jnp.ones_like(state)))[0]
  return {"y": y, "state": state} | gradients


def errors(given, chunk=8, implementation=None) -> dict[str, float]:
  arguments, m0, reset, dy = given

  @jax.jit
  def run(arguments, dy):
    return results(lambda a: chunked(a, m0, reset, chunk, implementation), arguments, dy)

  got = run(arguments, dy)
  assert got["y"].dtype == dy.dtype
  with jax.enable_x64(True):
    wide = (jnp.asarray(np.asarray(x).astype(np.float64)) for x in (m0, dy))
    m0, dy = wide
    arguments = {n: jnp.asarray(np.asarray(x).astype(np.float64)) for n, x in arguments.items()}
    wanted = jax.jit(lambda a, d: results(lambda a: equations(a, m0, reset), a, d))(arguments, dy)
    wanted = jax.tree.map(np.asarray, wanted)
  return {name: relative_error(got[name], wanted[name]) for name in wanted}


@pytest.mark.parametrize(("steps", "implementation"), [(1, None), (19, None), (7, "reference")])
def test_values_and_gradients_equal_float64(steps, implementation):
  found = errors(problem(steps), implementation=implementation)
  assert max(found.values()) <= TOLERANCE, found


def test_long_rows_equal_float64():
  arguments, m0, _, dy = problem(2048, sizes=(1, 16, 8))
  reset = np.zeros((2, 2048), bool)
  reset[:, 700] = True
  found = errors((arguments, m0, reset, dy), chunk=64)
  assert max(found.values()) <= TOLERANCE, found


def test_bfloat16_errs_by_the_rounding_of_what_is_multiplied():
  # As gated linear attention (five roundings of 2^-9), with those of the keys times their gates, of
  # numerator and denominator, and of the quotient, whose size is at most the numerator's.
  found = errors(problem(35, dtype=jnp.bfloat16, gates=1.0))
  assert max(found.values()) <= 9 * 2**-9, found


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_gates_that_overflow_leave_finite_numbers(size):
  """exp(100) is no float32; the last large gate decides what is read."""
  arguments, m0, reset, dy = problem(19)
  log_i = jnp.where(jnp.arange(19)[:, None] % 3 == 0, size, -size) + arguments["log_i"]
  found = jax.jit(lambda a: results(lambda a: mlstm(**a, m0=m0, reset=reset, chunk=8)[:2], a, dy))(
    arguments | {"log_i": log_i}
  )
  for name, value in found.items():
    assert np.all(np.isfinite(value)), name
  # One key with a large gate: its value comes back, with the sign of its product with the query.
  alone = {name: x[:, :1] for name, x in arguments.items() if name != "h0"}
  y, _, m = mlstm(**(alone | {"log_i": jnp.full((2, 1, HEADS), size)}))
  sign = jnp.sign(jnp.sum(alone["q"] * alone["k"], axis=-1, keepdims=True))
  np.testing.assert_allclose(y, sign * alone["v"], rtol=1e-5)
  np.testing.assert_array_equal(m, size)


def test_steps_after_a_reset_do_not_depend_on_steps_before():
  arguments, m0, _, _ = problem(19)
  reset = np.zeros((2, 19), bool)
  reset[:, 13] = True
  run = jax.jit(functools.partial(mlstm, reset=reset, chunk=8))
  y, h, m = run(**arguments, m0=m0)
  other = arguments | {name: arguments[name].at[:, :13].set(90.0) for name in ("k", "log_i")}
  for found, wanted in zip(run(**(other | {"h0": 9 * other["h0"]})), (y, h, m), strict=True):
    if found.ndim == 4 and found.shape == y.shape:
      found, wanted = found[:, 13:], wanted[:, 13:]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("gate", ["log_f", "log_i"])
def test_a_gate_of_another_shape_is_refused(gate):
  arguments, *_ = problem(7)
  with pytest.raises(ValueError, match=rf"mlstm: {gate} must be float32 \(2, 7, 2\), got float32"):
    mlstm(**(arguments | {gate: jnp.zeros((2, 7, 3))}))
