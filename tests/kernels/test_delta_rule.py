"""Chunks of matrix products and the plain recurrence against float64: values, state, every
gradient.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from contract.counts import product_flops
from kernels.delta_rule import delta_rule, matmul_flops
from tests.kernels.float64_reference import relative_error, wide

NAMES = ("q", "k", "v", "beta", "log_a", "h0")
HEADS, KEYS, VALUES = 2, 5, 3
# Of the Euclidean norm of the expected array: some thirty roundings of 2^-24.
TOLERANCE = 2e-6


class Problem(NamedTuple):
  """Arguments by name, and cotangents of y and of the last state."""

  arguments: dict[str, jax.Array]  # without log_a, nothing decays
  reset: np.ndarray | None
  dy: jax.Array
  dh_last: jax.Array


def problem(
  decay,
  steps,
  corrections=1,
  *,
  dtype=jnp.float32,
  sizes=(HEADS, KEYS, VALUES),
  resets=0.1,
  slowest=1e-6,
  fastest=50.0,
  strongest=2.0,
):
  """Keys and queries of norm 1; -log a is log-uniform in [slowest, fastest], beta uniform in [0,
  strongest].
  """
  rng = np.random.default_rng(0)
  heads, keys, values = sizes
  rows = 2, steps * corrections, heads

  def normal(*shape, dtype=dtype, unit=False):
    x = rng.standard_normal(shape)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x
    return jnp.asarray(x, jnp.float32).astype(dtype)

  arguments = {
    "q": normal(2, steps, heads, keys, unit=True),
    "k": normal(*rows, keys, unit=True),
    "v": normal(*rows, values),
    "beta": jnp.asarray(rng.uniform(0, strongest, rows), jnp.float32),
  }
  if decay != "none":
    shape = (2, steps, heads) if decay == "head" else (2, steps, heads, keys)
    log_a = -np.exp(rng.uniform(np.log(slowest), np.log(fastest), shape))
    arguments["log_a"] = jnp.asarray(log_a, jnp.float32)
  state = functools.partial(normal, 2, heads, keys, values, dtype=jnp.float32)
  reset = rng.uniform(size=(2, steps)) < resets if resets else None
  return Problem(arguments | {"h0": state()}, reset, normal(2, steps, heads, values), state())


def expected(given: Problem) -> dict[str, np.ndarray]:
  """Runs the recurrence correction by correction in NumPy, and the adjoint recurrence by hand."""
  q, k, v, beta = (wide(given.arguments[name]) for name in NAMES[:4])
  h, dy = wide(given.arguments["h0"]), wide(given.dy)
  log_a = wide(given.arguments.get("log_a", np.zeros(q.shape[:3])))
  steps, corrections = q.shape[1], k.shape[1] // q.shape[1]
  a = np.exp(log_a.reshape(*q.shape[:3], -1))
  if given.reset is not None:
    a = np.where(given.reset[..., None, None], 0, a)
  y, before, after, decayed, missing = np.empty_like(dy), [], [], [], []
  for t in range(steps):
    before.append(h)
    h = a[:, t, ..., None] * h
    for row in range(t * corrections, (t + 1) * corrections):
      decayed.append(h)
      missing.append(v[:, row] - np.einsum("bhk,bhkv->bhv", k[:, row], h))
      h = h + k[:, row, ..., None] * (beta[:, row, :, None] * missing[row])[..., None, :]
    after.append(h)
    y[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], h)
  found = {"y": y, "h_last": h}
  dq, dk, dv, dbeta, da = (np.empty_like(x) for x in (q, k, v, beta, a))
  g = wide(given.dh_last)
  for t in reversed(range(steps)):
    dq[:, t] = np.einsum("bhkv,bhv->bhk", after[t], dy[:, t])
    g = g + q[:, t, ..., None] * dy[:, t, :, None]
    for row in reversed(range(t * corrections, (t + 1) * corrections)):
      du = np.einsum("bhk,bhkv->bhv", k[:, row], g)
      dbeta[:, row] = np.sum(du * missing[row], axis=-1)
      dv[:, row] = beta[:, row, :, None] * du
      u = beta[:, row, :, None] * missing[row]
      dk[:, row] = np.einsum("bhkv,bhv->bhk", g, u)
      dk[:, row] -= np.einsum("bhkv,bhv->bhk", decayed[row], dv[:, row])
      g = g - k[:, row, ..., None] * dv[:, row][..., None, :]
    over = np.sum(g * before[t], axis=-1)
    da[:, t] = over if a.shape[-1] > 1 else np.sum(over, axis=-1, keepdims=True)
    g = a[:, t, ..., None] * g
  dlog_a = (a * da).reshape(log_a.shape)
  return found | dict(zip(NAMES, (dq, dk, dv, dbeta, dlog_a, g), strict=True))


@functools.partial(jax.jit, static_argnames=("implementation", "chunk"))
def run(given: Problem, implementation="chunked", chunk=8):
  def values(arguments):
    return delta_rule(**arguments, reset=given.reset, chunk=chunk, implementation=implementation)

  (y, h_last), pull = jax.vjp(values, given.arguments)
  return {"y": y, "h_last": h_last} | pull((given.dy, given.dh_last))[0]


def errors(given: Problem, **options) -> dict[str, float]:
  got, wanted = run(given, **options), expected(given)
  assert got["y"].dtype == given.arguments["q"].dtype
  assert got["h_last"].dtype == jnp.float32
  return {name: relative_error(value, wanted[name]) for name, value in got.items()}


def check(given: Problem, tolerance=TOLERANCE, **options):
  found = errors(given, **options)
  assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize(("decay", "corrections"), [("head", 2), ("channel", 1)])
def test_the_float64_gradients_are_the_slopes_of_the_values(decay, corrections):
  given = problem(decay, 9, corrections)
  arguments = {name: wide(a) for name, a in given.arguments.items()}
  gradients = expected(given)
  rng = np.random.default_rng(1)
  for name, argument in arguments.items():
    step = 1e-5 * rng.standard_normal(argument.shape)
    step = step * np.abs(argument) if name == "log_a" else step

    def total(sign, name=name, step=step):
      values = expected(given._replace(arguments=arguments | {name: arguments[name] + sign * step}))
      return np.sum(values["y"] * wide(given.dy)) + np.sum(values["h_last"] * wide(given.dh_last))

    slope = (total(1) - total(-1)) / 2
    # The error of a central difference is the step squared.
    assert slope == pytest.approx(np.sum(gradients[name] * step), rel=1e-6, abs=1e-11), name


@pytest.mark.parametrize(
  ("implementation", "decay", "corrections", "steps"),
  [
    ("chunked", "none", 1, 1),
    ("chunked", "none", 2, 19),
    ("chunked", "head", 1, 7),
    ("chunked", "head", 3, 16),
    ("chunked", "channel", 1, 19),
    ("chunked", "channel", 2, 8),
    ("reference", "none", 3, 3),
    ("reference", "head", 1, 7),
    ("reference", "channel", 1, 1),
  ],
)
def test_values_and_gradients_equal_float64(implementation, decay, corrections, steps):
  """Every decay, one and several corrections, rows of one token and whole and broken chunks."""
  check(problem(decay, steps, corrections), implementation=implementation)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_long_rows_equal_float64(decay):
  """A length that no chunk divides without decay, where an error of the first step stays."""
  steps = 1023 if decay == "none" else 2048
  given = problem(decay, steps, sizes=(1, 32, 16), resets=1 / 500)
  check(given, chunk=64)


def test_the_length_of_a_chunk_changes_nothing():
  for chunk in (1, 32):
    check(problem("channel", 20), chunk=chunk)


@pytest.mark.parametrize("fastest", [-1e4, -3e38])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_the_fastest_and_the_slowest_decays_keep_their_digits(decay, fastest):
  """Decays to nothing and of 1, beside exp(-1e-5): nothing overflows, nothing cancels."""
  given = problem(decay, 64, resets=0, slowest=1e-5, fastest=1e-4)
  log_a = given.arguments["log_a"].at[:, ::9].set(fastest).at[:, 5::9].set(0.0)
  check(given._replace(arguments=given.arguments | {"log_a": log_a}), chunk=64)


def test_equal_keys_that_reflect_do_not_overflow():
  """With beta = 2 and one key, powers of the triangular matrix have entries of 2^63."""
  given = problem("none", 64, resets=0)
  arguments = dict(given.arguments)
  arguments["k"] = jnp.broadcast_to(arguments["k"][:, :1], arguments["k"].shape)
  arguments["beta"] = jnp.full_like(arguments["beta"], 2.0)
  # The inverse has entries of 2 with alternating signs: sums over 64 steps cancel, each with a
  # rounding of 2 x 2^-24 for both products.
  check(given._replace(arguments=arguments), 64 * 4 * 2**-24, chunk=64)


def test_bfloat16_errs_by_the_rounding_of_what_is_multiplied():
  # A result goes through at most eight products one after the other whose operands are rounded
  # (scores, solution, states, and these again in the gradients), each by 2^-9 at most, and is
  # rounded itself. The corrections between have norms of at most 1.
  for decay in ("head", "channel"):
    found = errors(problem(decay, 35, dtype=jnp.bfloat16, strongest=1.0))
    assert max(found.values()) <= 9 * 2**-9, found


def test_steps_after_a_reset_do_not_depend_on_steps_before():
  for decay in ("head", "channel"):
    given = problem(decay, 19)
    reset = np.zeros((2, 19), bool)
    reset[:, 13] = True
    other = dict(given.arguments)
    for name, value in {"k": 7.0, "v": 2.0, "beta": 1.5, "log_a": -3.0}.items():
      other[name] = other[name].at[:, :13].set(value)
    other["h0"] = 9 * other["h0"]
    first = run(given._replace(reset=reset))
    second = run(given._replace(arguments=other, reset=reset))
    np.testing.assert_array_equal(first["y"][:, 13:], second["y"][:, 13:])
    np.testing.assert_array_equal(first["h_last"], second["h_last"])


def test_a_reflection_keeps_the_size_of_a_state():
  """Without decay and with beta = 2, a token reflects: the state neither grows nor shrinks."""
  arguments = problem("none", 200, resets=0).arguments
  arguments |= {"beta": jnp.full((2, 200, HEADS), 2.0), "v": jnp.zeros_like(arguments["v"])}
  _, h = delta_rule(**arguments)
  sizes = [np.linalg.norm(x, axis=(2, 3)) for x in (h, arguments["h0"])]
  np.testing.assert_allclose(*sizes, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 9])
def test_what_is_not_given_or_not_wanted_changes_nothing(steps):
  given = problem("head", steps, 2)
  arguments = {name: a for name, a in given.arguments.items() if name != "h0"}
  zeros = jnp.zeros_like(given.arguments["h0"])
  run = jax.jit(functools.partial(delta_rule, reset=given.reset, chunk=8), static_argnames="last")
  from_zeros, y, short = run(**arguments, h0=zeros), run(**arguments), run(**arguments, last=False)
  for found, wanted in zip((*y, short[0]), (*from_zeros, from_zeros[0]), strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert short[1] is None


@pytest.mark.parametrize(
  ("decay", "corrections", "steps", "chunk"),
  [("none", 1, 1, 64), ("head", 3, 35, 16), ("head", 1, 70, 64), ("channel", 2, 35, 16)],
)
def test_declared_flops_equal_the_traced_products(decay, corrections, steps, chunk):
  given = problem(decay, steps, corrections)
  run = functools.partial(delta_rule, chunk=chunk)
  jaxpr = jax.make_jaxpr(lambda arguments: run(**arguments, h0=None))(
    {name: a for name, a in given.arguments.items() if name != "h0"}
  )
  sizes = {"heads": HEADS, "key_dim": KEYS, "value_dim": VALUES, "corrections": corrections}
  sizes["decay_per_channel"] = decay == "channel"
  declared = matmul_flops(**sizes, chunk=chunk, length=steps) * steps * 2
  assert product_flops(jaxpr.jaxpr) == pytest.approx(declared)


def test_a_gradient_inside_shard_map_is_typed():
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  given = problem("channel", 9)
  specs = {name: P("data") for name in given.arguments}

  def loss(arguments):
    y, _ = delta_rule(**{n: a for n, a in arguments.items() if n != "h0"}, chunk=8)
    return jax.lax.psum(jnp.sum(y), "data")

  sharded = jax.shard_map(loss, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=True)
  gradients = jax.eval_shape(jax.grad(sharded), given.arguments)
  assert gradients["log_a"].shape == given.arguments["log_a"].shape


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"q": jnp.zeros((2, 3, 4))}, r"q must be \[B, T, H, K\] and not empty"),
    ({"k": jnp.zeros((2, 7, HEADS, 4))}, r"k must be \[2, J T, 2, 5\] as q is"),
    ({"k": jnp.zeros((2, 10, HEADS, KEYS))}, "k has 10 steps and q has 7"),
    ({"v": jnp.zeros((2, 8, HEADS, VALUES))}, r"v must be \(2, 7, 2\) x V as k is"),
    ({"v": jnp.zeros((2, 7, HEADS, VALUES), jnp.bfloat16)}, "k and v must be float32 as q is"),
    ({"beta": jnp.zeros((2, 7, 3))}, r"beta must be float32 \(2, 7, 2\)"),
    ({"log_a": jnp.zeros((2, 7, 3))}, r"log_a must be float32 \(2, 7, 2\) or \(2, 7, 2, 5\)"),
    ({"h0": jnp.zeros((2, 4, 5, 5))}, r"h0 has shape .* need \(2, 2, 5, 3\)"),
    ({"reset": np.zeros((2, 7), np.int32)}, r"reset must be bool \(2, 7\), got int32"),
    ({"chunk": 12}, "chunk=12 must be a power of two"),
    ({"implementation": "triton"}, "implementation 'triton' is unknown; available on cpu: chunked"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    delta_rule(**(problem("head", 7).arguments | change))
