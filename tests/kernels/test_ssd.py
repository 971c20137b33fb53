"""Chunks of matrix products and the plain recurrence against float64: values, state, every
gradient.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contract.counts import product_flops
from kernels.ssd import matmul_flops, ssd
from tests.kernels.float64_reference import relative_error, wide

NAMES = ("x", "log_a", "b", "c", "h0")
HEADS, GROUPS, HEAD_DIM, STATE = 4, 2, 3, 5


def problem(steps, *, dtype=jnp.float32, resets=0.1, slowest=1e-3, fastest=3.0, seed=0):
  """(arguments, reset, dy, dh_last); -log a is log-uniform in [slowest, fastest]."""
  rng = np.random.default_rng(seed)

  def normal(*shape, dtype=dtype):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

  rows = 2, steps
  log_a = -np.exp(rng.uniform(np.log(slowest), np.log(fastest), (*rows, HEADS)))
  state = functools.partial(normal, 2, HEADS, STATE, HEAD_DIM, dtype=jnp.float32)
  arguments = (
    normal(*rows, HEADS, HEAD_DIM),
    jnp.asarray(log_a, jnp.float32),
    normal(*rows, GROUPS, STATE),
    normal(*rows, GROUPS, STATE),
    state(),
  )
  reset = rng.uniform(size=rows) < resets if resets else None
  return arguments, reset, normal(*rows, HEADS, HEAD_DIM), state()


def expected(given):
  """Runs the recurrence step by step in NumPy, and the adjoint recurrence by hand."""
  arguments, reset, dy, dh_last = given
  x, log_a, b, c, h = (wide(a) for a in arguments)
  dy, shared = wide(dy), HEADS // GROUPS
  a = np.exp(log_a)
  if reset is not None:
    a = np.where(np.asarray(reset)[..., None], 0, a)
  each_b, each_c = (np.repeat(v, shared, axis=2) for v in (b, c))
  y, before, after = np.empty_like(x), [], []
  for t in range(x.shape[1]):
    before.append(h)
    h = a[:, t, :, None, None] * h + each_b[:, t, :, :, None] * x[:, t, :, None]
    after.append(h)
    y[:, t] = np.einsum("bhn,bhnp->bhp", each_c[:, t], h)
  found = {"y": y, "h_last": h}
  dx, dlog_a, db, dc = (np.empty_like(v) for v in (x, log_a, each_b, each_c))
  g = wide(dh_last)
  for t in reversed(range(x.shape[1])):
    g = g + each_c[:, t, :, :, None] * dy[:, t, :, None]
    dc[:, t] = np.einsum("bhnp,bhp->bhn", after[t], dy[:, t])
    db[:, t] = np.einsum("bhnp,bhp->bhn", g, x[:, t])
    dx[:, t] = np.einsum("bhnp,bhn->bhp", g, each_b[:, t])
    dlog_a[:, t] = a[:, t] * np.einsum("bhnp,bhnp->bh", g, before[t])
    g = a[:, t, :, None, None] * g
  db, dc = (v.reshape(*v.shape[:2], GROUPS, shared, STATE).sum(3) for v in (db, dc))
  return found | dict(zip(NAMES, (dx, dlog_a, db, dc, g), strict=True))


@functools.partial(jax.jit, static_argnames=("implementation", "chunk"))
def run(given, implementation="chunked", chunk=8):
  arguments, reset, *cotangents = given

  def values(*arguments):
    return ssd(*arguments, reset=reset, chunk=chunk, implementation=implementation)

  results, pull = jax.vjp(values, *arguments)
  return dict(zip(("y", "h_last", *NAMES), (*results, *pull(tuple(cotangents))), strict=True))


def check(given, tolerance, **options):
  got, wanted = run(given, **options), expected(given)
  assert got["y"].dtype == given[0][0].dtype
  assert got["h_last"].dtype == jnp.float32
  errors = {name: relative_error(value, wanted[name]) for name, value in got.items()}
  assert max(errors.values()) <= tolerance, errors


def test_the_float64_gradients_are_the_slopes_of_the_values():
  given = problem(9)
  arguments = [wide(a) for a in given[0]]
  gradients = expected(given)
  rng = np.random.default_rng(1)
  for index, name in enumerate(NAMES):
    step = 1e-5 * rng.standard_normal(arguments[index].shape)
    step = step * np.abs(arguments[index]) if name == "log_a" else step

    def total(sign, index=index, step=step):
      moved = [a + sign * step if i == index else a for i, a in enumerate(arguments)]
      values = expected((moved, *given[1:]))
      return np.sum(values["y"] * wide(given[2])) + np.sum(values["h_last"] * wide(given[3]))

    slope = (total(1) - total(-1)) / 2
    # The error of a central difference is the step squared.
    assert slope == pytest.approx(np.sum(gradients[name] * step), rel=1e-7, abs=1e-12), name


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("steps", [1, 7, 8, 35])
def test_values_and_gradients_equal_float64(implementation, steps):
  check(problem(steps), 1e-6, implementation=implementation)


def test_the_length_of_a_chunk_changes_nothing():
  given = problem(50)
  for chunk in (1, 16, 50, 200):
    check(given, 1e-6, chunk=chunk)


def test_a_row_without_resets_equals_float64():
  check(problem(35, resets=0), 1e-6)


@pytest.mark.parametrize("fastest", [-200.0, -3e38])
def test_slow_decays_beside_fast_ones_keep_their_digits(fastest):
  """Decays of exp(-200) and exp(-1e-5): one sum would keep only two digits of the latter."""
  (x, log_a, *others), reset, *cotangents = problem(64, resets=0, slowest=1e-5, fastest=1e-4)
  log_a = log_a.at[:, ::9].set(fastest)
  check(((x, log_a, *others), reset, *cotangents), 1e-6, chunk=64)


def test_bfloat16_errs_by_the_rounding_of_what_is_multiplied():
  # 2^-9 at most and 1.1e-3 on average for each rounding to bfloat16: of the weights, the chunk's
  # states and the result.
  check(problem(35, dtype=jnp.bfloat16), 5e-3)


def test_steps_after_a_reset_do_not_depend_on_steps_before():
  (x, log_a, b, c, h0), _, *cotangents = problem(35)
  reset = np.zeros((2, 35), bool)
  reset[:, 21] = True
  first = run(((x, log_a, b, c, h0), reset, *cotangents))
  other = (x.at[:, :21].set(7.0), log_a.at[:, :21].set(-3.0), b.at[:, :21].set(2.0), c, 9 * h0)
  second = run((other, reset, *cotangents))
  np.testing.assert_array_equal(first["y"][:, 21:], second["y"][:, 21:])
  np.testing.assert_array_equal(first["h_last"], second["h_last"])


@pytest.mark.parametrize("steps", [1, 5, 35])
def test_what_is_not_given_or_not_wanted_changes_nothing(steps):
  (*arguments, h0), reset, *_ = problem(steps)
  from_zeros, h_last = ssd(*arguments, 0 * h0, reset=reset, chunk=8)
  y, h = ssd(*arguments, reset=reset, chunk=8)
  np.testing.assert_allclose(y, from_zeros, atol=1e-5)
  np.testing.assert_allclose(h, h_last, atol=1e-5)
  y, nothing = ssd(*arguments, reset=reset, last=False, chunk=8)
  np.testing.assert_allclose(y, from_zeros, atol=1e-5)
  assert nothing is None


@pytest.mark.parametrize("steps", [1, 5, 8, 35])
def test_declared_flops_equal_the_traced_products(steps):
  arguments, reset, *_ = problem(steps)
  run = functools.partial(ssd, reset=reset, last=False, chunk=8)
  jaxpr = jax.make_jaxpr(run)(*arguments[:-1])
  sizes = {"heads": HEADS, "head_dim": HEAD_DIM, "groups": GROUPS, "state_size": STATE}
  declared = matmul_flops(**sizes, chunk=8, length=steps) * steps * 2
  assert product_flops(jaxpr.jaxpr) == pytest.approx(declared)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"x": jnp.zeros((2, 3, 4))}, r"x must be \[B, T, H, P\] and not empty"),
    ({"log_a": jnp.zeros((2, 7, 3))}, r"log_a must be float32 \(2, 7, 4\)"),
    ({"b": jnp.zeros((2, 7, 2, 6))}, "b and c must both be"),
    ({"h0": jnp.zeros((2, 4, 5, 5))}, r"h0 has shape .* need \(2, 4, 5, 3\)"),
    ({"reset": np.zeros((2, 7), np.int32)}, r"reset must be bool \(2, 7\), got int32"),
    ({"chunk": 0}, "chunk=0 must be at least 1"),
    ({"implementation": "triton"}, "implementation 'triton' is unknown; available on cpu: chunked"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
  arguments = dict(zip(NAMES, problem(7)[0], strict=True))
  with pytest.raises(ValueError, match=message):
    ssd(**(arguments | change))


def test_groups_that_do_not_divide_the_heads_are_refused():
  arguments = dict(zip(NAMES, problem(7)[0], strict=True))
  three = jnp.zeros((2, 7, 3, STATE))
  with pytest.raises(ValueError, match="3 groups of b and c do not divide 4 heads"):
    ssd(**(arguments | {"b": three, "c": three}))
