"""The recurrences in plain XLA against float64: values, last state, every gradient."""

from __future__ import annotations

import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from kernels.linear_scan import linear_scan
from kernels.rg_lru import rg_lru
from tests.kernels import float64_reference
from tests.kernels.float64_reference import relative_error

IMPLEMENTATIONS = ("reference", "associative", "cpu")
OPS = {"linear_scan": linear_scan, "rg_lru": rg_lru}
ARGUMENTS = {
  "linear_scan": ("x", "log_a", "h0"),
  "rg_lru": ("x", "gate_a", "gate_x", "log_decay", "h0"),
}


class Problem(NamedTuple):
  """Arguments of an op and its gradient; None for omitted ones."""

  arguments: tuple
  reset: np.ndarray | None
  dh: jax.Array
  dh_last: jax.Array


def problem(
  op, shape, *, dtype=jnp.float32, slowest=1e-3, fastest=0.3, resets=0.1, state=True, seed=0
) -> Problem:
  """Random arrays; -log of a fully open gate's decay is log-uniform in [slowest, fastest]."""
  rng = np.random.default_rng(seed)
  batch, steps, width = shape

  def normal(*size, dtype=dtype):
    return jnp.asarray(rng.standard_normal(size), jnp.float32).astype(dtype)

  log_decay = -np.exp(rng.uniform(np.log(slowest), np.log(fastest), width))
  h0 = normal(batch, width, dtype=jnp.float32) if state else None
  if op == "linear_scan":
    log_a = jnp.asarray(rng.uniform(0.1, 1, shape) * log_decay, jnp.float32).astype(dtype)
    arguments = (normal(*shape), log_a, h0)
  else:
    gates = normal(*shape), normal(*shape), normal(*shape)
    arguments = (*gates, jnp.asarray(log_decay, jnp.float32), h0)
  reset = rng.uniform(size=(batch, steps)) < resets if resets else None
  return Problem(arguments, reset, normal(*shape), normal(batch, width, dtype=jnp.float32))


@functools.cache
def _compiled(op, implementation, options):
  def run(given):
    present = [a for a in given.arguments if a is not None]

    def values(*arguments):
      return OPS[op](*arguments, reset=given.reset, implementation=implementation, **dict(options))

    results, vjp = jax.vjp(values, *present)
    return (*results, *vjp((given.dh, given.dh_last)))

  return jax.jit(run)


def run(op, implementation, given: Problem, **options) -> dict[str, jax.Array]:
  """h, h_last and the gradient of each argument, by name."""
  names = [n for n, a in zip(ARGUMENTS[op], given.arguments, strict=True) if a is not None]
  results = _compiled(op, implementation, tuple(options.items()))(given)
  return dict(zip(("h", "h_last", *names), results, strict=True))


def expected(op, given: Problem, **options) -> dict[str, np.ndarray]:
  result = getattr(float64_reference, op)(
    *given.arguments, reset=given.reset, dh=given.dh, dh_last=given.dh_last, **options
  )
  return {"h": result.h, "h_last": result.h_last, **result.gradients}


def assert_close(got, wanted, tolerance):
  for name, value in got.items():
    error = relative_error(value, wanted[name])
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


def check(op, implementation, given, tolerance=1e-6, **options):
  got = run(op, implementation, given, **options)
  assert got["h"].dtype == given.arguments[0].dtype
  assert got["h_last"].dtype == jnp.float32
  assert_close(got, expected(op, given, **options), tolerance)


each_op = pytest.mark.parametrize("op", OPS)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@each_op
@pytest.mark.parametrize("reverse", [False, True])
def test_the_float64_gradients_are_the_slopes_of_the_float64_values(op, reverse):
  if op == "rg_lru" and reverse:
    pytest.skip("rg_lru has no reverse")
  options = {"reverse": True} if reverse else {}
  given = problem(op, (2, 9, 3))
  arguments = [float64_reference.wide(a) for a in given.arguments]
  gradients = expected(op, given, **options)

  def total(arguments):
    values = expected(op, given._replace(arguments=arguments), **options)
    dh, dh_last = float64_reference.wide(given.dh), float64_reference.wide(given.dh_last)
    return np.sum(values["h"] * dh) + np.sum(values["h_last"] * dh_last)

  rng = np.random.default_rng(1)
  for index, name in enumerate(ARGUMENTS[op]):
    direction = rng.standard_normal(arguments[index].shape)
    # -log(decay) may be 1e-3, and its step has to be small beside it.
    step = 1e-5 * (np.abs(arguments[index]) if name.startswith("log") else 1) * direction
    ahead, behind = list(arguments), list(arguments)
    ahead[index], behind[index] = arguments[index] + step, arguments[index] - step
    slope = (total(ahead) - total(behind)) / 2
    # The error of a central difference is the step squared.
    assert slope == pytest.approx(np.sum(gradients[name] * step), rel=1e-7, abs=1e-12), name


@each_op
@each_implementation
@pytest.mark.parametrize("shape", [(2, 1, 5), (1, 2, 1), (3, 7, 5), (2, 129, 7)])
def test_values_and_gradients_equal_float64(op, implementation, shape):
  check(op, implementation, problem(op, shape))


@each_op
@each_implementation
@pytest.mark.parametrize("steps", [127, 128])
def test_lengths_around_a_power_of_two_equal_float64(op, implementation, steps):
  check(op, implementation, problem(op, (2, steps, 7)))


@each_op
@each_implementation
def test_a_long_row_without_resets_and_initial_state(op, implementation):
  # 2048 roundings of either sign, of a sum that forgets after 1000 steps or more.
  given = problem(op, (1, 2048, 3), resets=0, state=False)
  check(op, implementation, given, 2048**0.5 * 2.0**-24)


@each_implementation
@pytest.mark.parametrize("steps", [1, 13, 130])
def test_reverse_equals_float64(implementation, steps):
  check("linear_scan", implementation, problem("linear_scan", (2, steps, 5)), reverse=True)


@each_op
@each_implementation
@pytest.mark.parametrize("decay", [1e-8, 1e-6, 60.0])
def test_decays_near_one_and_near_zero_keep_their_digits(op, implementation, decay):
  given = problem(op, (3, 13, 5), slowest=decay, fastest=decay)
  # A decay of exp(-60) leaves nothing of h0 after two steps: its gradient underflows in float32.
  given = given if decay < 1 else given._replace(dh=given.dh.at[:, 0].add(10.0))
  check(op, implementation, given)


@each_implementation
def test_a_decay_of_exactly_one_has_finite_values_and_gradients(implementation):
  given = problem("rg_lru", (3, 13, 5))
  x, gate_a, gate_x, log_decay, h0 = given.arguments
  closed = (x, gate_a.at[:, ::2].set(-200.0), gate_x, log_decay.at[0].set(0), h0)
  check("rg_lru", implementation, given._replace(arguments=closed))


@each_op
@each_implementation
def test_bfloat16_errs_by_the_rounding_of_its_results(op, implementation):
  # At most 2^-9 for each rounding to bfloat16, 1.1e-3 on average: of the result, and in the
  # gradient of the decay of the h it is multiplied with. float64 starts from the same bfloat16
  # inputs.
  check(op, implementation, problem(op, (3, 13, 5), dtype=jnp.bfloat16), 3e-3)


@each_op
def test_the_default_keeps_only_inputs_and_h_for_the_gradient(op):
  given = problem(op, (2, 130, 8))
  _, vjp = jax.eval_shape(
    lambda *a: jax.vjp(lambda *b: OPS[op](*b, reset=given.reset, implementation="cpu"), *a),
    *given.arguments,
  )
  saved = sum(leaf.size for leaf in jax.tree.leaves(vjp))
  tiles = sum(a.ndim == 3 for a in given.arguments)
  # linear_scan's x is not needed: its gradient is the adjoint itself.
  tiles += 1 if op == "rg_lru" else 0
  assert saved <= tiles * given.dh.size + given.reset.size + 3 * given.dh_last.size


@each_op
@each_implementation
def test_steps_after_a_reset_do_not_depend_on_steps_before(op, implementation):
  given = problem(op, (3, 13, 5), resets=0)
  reset = np.zeros((3, 13), bool)
  reset[:, 5] = True
  arguments = [
    a.at[:, :5].set(7.0 if name in ("x", "gate_x") else -3.0) if a.ndim == 3 else a
    for name, a in zip(ARGUMENTS[op], given.arguments, strict=True)
  ]
  other = given._replace(arguments=(*arguments[:-1], 100 * arguments[-1]), reset=reset)
  first, second = (run(op, implementation, g) for g in (given._replace(reset=reset), other))
  np.testing.assert_array_equal(first["h"][:, 5:], second["h"][:, 5:])
  np.testing.assert_array_equal(first["h_last"], second["h_last"])
  assert not np.any(first["h0"] - run(op, implementation, given._replace(reset=reset))["h0"])


@each_op
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
  seed=strategies.integers(0, 2**32 - 1),
  slowest=strategies.floats(-8, 1),
  spread=strategies.floats(0, 4),
  resets=strategies.floats(0.01, 1),
)
def test_any_decays_and_resets_equal_float64(op, seed, slowest, spread, resets):
  slowest = 10.0**slowest
  fastest = min(60.0, slowest * 10**spread)
  given = problem(
    op, (3, 13, 5), slowest=min(slowest, fastest), fastest=fastest, resets=resets, seed=seed
  )
  got, wanted = run(op, "cpu", given), expected(op, given)
  # h0's share may have decayed to 1e-30, each digit of the decays' logarithm counting T-fold.
  assert_close({n: v for n, v in got.items() if n != "h0"}, wanted, 1e-6)
  assert relative_error(got["h0"], wanted["h0"], at_least=1e-3) <= 13 * 2.0**-24


@each_op
def test_an_unavailable_implementation_is_refused_with_what_is_available(op):
  given = problem(op, (1, 3, 4))
  available = "available on cpu: cpu, associative, reference"
  for name, reason in {
    "triton": "'triton' is unknown",
    "pallas_tpu": "'pallas_tpu' runs on tpu, and this program is built for cpu",
    "mosaic_gpu": "'mosaic_gpu' runs on gpu, and this program is built for cpu",
  }.items():
    with pytest.raises(ValueError, match=f"{op}: implementation {reason}; {available}."):
      OPS[op](*given.arguments, reset=given.reset, implementation=name)


@each_op
@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"x": jnp.zeros((3, 4))}, r"x must be \[B, T, R\] and not empty, got shape \(3, 4\)"),
    ({"x": jnp.zeros((1, 0, 4))}, "not empty"),
    ({"x": jnp.zeros((1, 3, 4), jnp.int32)}, "must be float32 or bfloat16, got int32"),
    ({"x": jnp.zeros((1, 5, 4))}, r"has shape \(1, 3, 4\), x has \(1, 5, 4\); they must agree"),
    ({"h0": jnp.zeros((1, 5))}, r"h0 has shape \(1, 5\); x of shape \(1, 3, 4\) needs \(1, 4\)"),
    ({"reset": np.zeros((1, 3), np.int32)}, r"reset must be bool \(1, 3\), got int32"),
    ({"reset": np.zeros((1, 4), bool)}, r"reset must be bool \(1, 3\), got bool \(1, 4\)"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(op, change, message):
  given = problem(op, (1, 3, 4))
  arguments = dict(zip(ARGUMENTS[op], given.arguments, strict=True)) | {"reset": given.reset}
  with pytest.raises(ValueError, match=f"{op}: .*{message}"):
    OPS[op](**(arguments | change))


def test_a_log_decay_in_bfloat16_is_refused():
  x, gate_a, gate_x, log_decay, _ = problem("rg_lru", (1, 3, 4)).arguments
  with pytest.raises(ValueError, match=r"log_decay must be float32 \(4,\), got bfloat16"):
    rg_lru(x, gate_a, gate_x, log_decay.astype(jnp.bfloat16))
