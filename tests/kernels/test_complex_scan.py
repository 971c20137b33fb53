"""The recurrence with complex decays against complex128: values, last state, every gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.linear_scan import linear_scan
from tests.kernels import float64_reference
from tests.kernels.float64_reference import relative_error

IMPLEMENTATIONS = ("reference", "associative", "cpu")
NAMES = ("x", "log_a", "phase", "h0")
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def problem(
  steps, *, batch=2, numbers=3, dtype=jnp.float32, turn=3.0, slowest=1e-3, resets=0.1, seed=0
):
  """(arguments, reset, dh, dh_last); phases are up to `turn` radians per step."""
  rng = np.random.default_rng(seed)

  def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

  shape = (batch, steps, numbers)
  log_a = -np.exp(rng.uniform(np.log(slowest), np.log(0.3), shape))
  arguments = (
    normal(batch, steps, 2 * numbers, dtype=dtype),
    jnp.asarray(log_a, jnp.float32),
    jnp.asarray(rng.uniform(-turn / 10, turn, shape), jnp.float32),
    normal(batch, 2 * numbers),
  )
  reset = rng.uniform(size=shape[:2]) < resets if resets else None
  return (
    arguments,
    reset,
    normal(batch, steps, 2 * numbers, dtype=dtype),
    normal(batch, 2 * numbers),
  )


@functools.partial(jax.jit, static_argnames=("implementation", "reverse"))
def run(given, implementation, reverse=False):
  arguments, reset, *cotangents = given

  def values(x, log_a, phase, h0):
    options = {"reset": reset, "reverse": reverse, "implementation": implementation}
    return linear_scan(x, log_a, h0, phase=phase, **options)

  results, pull = jax.vjp(values, *arguments)
  return dict(zip(("h", "h_last", *NAMES), (*results, *pull(tuple(cotangents))), strict=True))


def expected(given, reverse=False):
  arguments, reset, dh, dh_last = given
  result = float64_reference.complex_scan(
    *arguments, reset=reset, reverse=reverse, dh=dh, dh_last=dh_last
  )
  return {"h": result.h, "h_last": result.h_last, **result.gradients}


def check(given, implementation, tolerance, reverse=False):
  got, wanted = run(given, implementation, reverse), expected(given, reverse)
  assert got["h"].dtype == given[0][0].dtype
  assert got["h_last"].dtype == jnp.float32
  errors = {name: relative_error(value, wanted[name]) for name, value in got.items()}
  assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("reverse", [False, True])
def test_the_complex128_gradients_are_the_slopes_of_the_values(reverse):
  arguments, reset, dh, dh_last = problem(9)
  arguments = [float64_reference.wide(a) for a in arguments]
  gradients = expected((arguments, reset, dh, dh_last), reverse)
  rng = np.random.default_rng(1)

  def total(index, step):
    moved = [a + step if i == index else a for i, a in enumerate(arguments)]
    values = expected((moved, reset, dh, dh_last), reverse)
    h, h_last = (float64_reference.wide(d) for d in (dh, dh_last))
    return np.sum(values["h"] * h) + np.sum(values["h_last"] * h_last)

  for index, name in enumerate(NAMES):
    step = 1e-5 * rng.standard_normal(arguments[index].shape)
    step = step * np.abs(arguments[index]) if name == "log_a" else step
    slope = (total(index, step) - total(index, -step)) / 2
    # The error of a central difference is the step squared.
    assert slope == pytest.approx(np.sum(gradients[name] * step), rel=1e-7, abs=1e-12), name


@each_implementation
@pytest.mark.parametrize(("steps", "reverse"), [(1, False), (13, False), (13, True), (130, False)])
def test_values_and_gradients_equal_complex128(implementation, steps, reverse):
  # Beside the real recurrence's errors: each of log2(T) sums of parts of a turn rounds at 2^-25
  # turns.
  check(problem(steps), implementation, 1e-6 + np.log2(steps) * 2.0**-25 * 2 * np.pi, reverse)


@pytest.mark.parametrize("turn", [0.3, 3.0, 100.0])
def test_phases_of_a_long_row_lose_no_digits(turn):
  """4096 steps rotate by up to 400,000 radians, where float32 resolves angles only to 0.03."""
  given = problem(4096, batch=1, turn=turn, resets=0)
  # A phase's own rounding to 2^-24 is what is left. It adds up over the 50 or so steps that a state
  # remembers, as the square root of their number, and in the gradients twice.
  check(given, "cpu", 1e-6 + 2 * 50**0.5 * 2.0**-24 * turn)


@each_implementation
def test_bfloat16_errs_by_the_rounding_of_its_results(implementation):
  # x, h and their cotangents are rounded twice, to the turning frame and back: 2^-9 at most, 1.1e-3
  # on average, each time; a phase's gradient is a difference of two products of such numbers.
  check(problem(13, dtype=jnp.bfloat16), implementation, 5e-3)


def test_a_phase_of_zero_is_the_real_recurrence_of_both_parts():
  (x, log_a, phase, h0), reset, *_ = problem(70)
  h, last = linear_scan(x, log_a, h0, phase=0 * phase, reset=reset)
  both = jnp.concatenate([log_a, log_a], axis=-1)
  wanted, wanted_last = linear_scan(x, both, h0, reset=reset)
  np.testing.assert_array_equal(h, wanted)
  np.testing.assert_array_equal(last, wanted_last)


def test_what_does_not_fit_is_refused_by_name():
  (x, log_a, phase, h0), *_ = problem(5)
  with pytest.raises(
    ValueError, match=r"log_a has shape \(2, 5, 6\); complex x .* needs \(2, 5, 3"
  ):
    linear_scan(x, jnp.concatenate([log_a, log_a], axis=-1), h0, phase=phase)
  with pytest.raises(ValueError, match=r"phase has shape \(2, 4, 3\)"):
    linear_scan(x, log_a, h0, phase=phase[:, 1:])
  with pytest.raises(ValueError, match="R must be even"):
    linear_scan(x[..., 1:], log_a, phase=phase)
  with pytest.raises(ValueError, match="phase must be float32, got bfloat16"):
    linear_scan(x, log_a, h0, phase=phase.astype(jnp.bfloat16))
