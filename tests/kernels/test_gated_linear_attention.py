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
from kernels.gated_linear_attention import gated_linear_attention, matmul_flops
from tests.kernels.float64_reference import relative_error, wide

NAMES = ("q", "k", "v", "log_a", "h0")
HEADS, GROUPS, KEYS, VALUES = 4, 2, 5, 3
# Of the Euclidean norm of the expected array: some thirty roundings of 2^-24.
TOLERANCE = 2e-6


class Problem(NamedTuple):
  """Arguments by name, and cotangents of y and of the last state."""

  arguments: dict[str, jax.Array]
  reset: np.ndarray | None
  dy: jax.Array
  dh_last: jax.Array


def problem(
  decay,
  steps,
  *,
  dtype=jnp.float32,
  sizes=(HEADS, GROUPS, KEYS, VALUES),
  resets=0.1,
  slowest=1e-6,
  fastest=50.0,
):
  """Of normal random numbers; -log a is log-uniform in [slowest, fastest].

  Args:
    decay: "head", "group" (per head, with queries and keys per group), or "channel".
  """
  rng = np.random.default_rng(0)
  heads, groups, keys, values = sizes
  groups = groups if decay == "group" else heads

  def normal(*shape, dtype=dtype):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

  rows = 2, steps
  shape = (*rows, heads, keys) if decay == "channel" else (*rows, heads)
  log_a = -np.exp(rng.uniform(np.log(slowest), np.log(fastest), shape))
  state = functools.partial(normal, 2, heads, keys, values, dtype=jnp.float32)
  arguments = {
    "q": normal(*rows, groups, keys),
    "k": normal(*rows, groups, keys),
    "v": normal(*rows, heads, values),
    "log_a": jnp.asarray(log_a, jnp.float32),
    "h0": state(),
  }
  reset = rng.uniform(size=rows) < resets if resets else None
  return Problem(arguments, reset, normal(*rows, heads, values), state())


def expected(given: Problem) -> dict[str, np.ndarray]:
  """Runs the recurrence step by step in NumPy, and the adjoint recurrence by hand."""
  q, k, v, log_a, h = (wide(given.arguments[name]) for name in NAMES)
  dy, groups = wide(given.dy), q.shape[2]
  shared = v.shape[2] // groups
  a = np.exp(log_a.reshape(*v.shape[:3], -1))
  if given.reset is not None:
    a = np.where(given.reset[..., None, None], 0, a)
  each_q, each_k = (np.repeat(x, shared, axis=2) for x in (q, k))
  y, before, after = np.empty_like(v), [], []
  for t in range(v.shape[1]):
    before.append(h)
    h = a[:, t, ..., None] * h + each_k[:, t, ..., None] * v[:, t, :, None]
    after.append(h)
    y[:, t] = np.einsum("bhk,bhkv->bhv", each_q[:, t], h)
  found = {"y": y, "h_last": h}
  dq, dk, dv, da = (np.empty_like(x) for x in (each_q, each_k, v, a))
  g = wide(given.dh_last)
  for t in reversed(range(v.shape[1])):
    g = g + each_q[:, t, ..., None] * dy[:, t, :, None]
    dq[:, t] = np.einsum("bhkv,bhv->bhk", after[t], dy[:, t])
    dk[:, t] = np.einsum("bhkv,bhv->bhk", g, v[:, t])
    dv[:, t] = np.einsum("bhkv,bhk->bhv", g, each_k[:, t])
    over = np.sum(g * before[t], axis=-1)
    da[:, t] = over if a.shape[-1] > 1 else np.sum(over, axis=-1, keepdims=True)
    g = a[:, t, ..., None] * g
  dq, dk = (x.reshape(*x.shape[:2], groups, shared, -1).sum(3) for x in (dq, dk))
  dlog_a = (a * da).reshape(log_a.shape)
  return found | dict(zip(NAMES, (dq, dk, dv, dlog_a, g), strict=True))


@functools.partial(jax.jit, static_argnames=("implementation", "chunk"))
def run(given: Problem, implementation="chunked", chunk=8):
  def values(arguments):
    options = {"chunk": chunk, "implementation": implementation}
    return gated_linear_attention(**arguments, reset=given.reset, **options)

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


@pytest.mark.parametrize("decay", ["group", "channel"])
def test_the_float64_gradients_are_the_slopes_of_the_values(decay):
  given = problem(decay, 9)
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
  ("implementation", "decay", "steps"),
  [
    ("chunked", "group", 1),
    ("chunked", "group", 35),
    ("chunked", "head", 8),
    ("chunked", "channel", 1),
    ("chunked", "channel", 7),
    ("chunked", "channel", 35),
    ("reference", "group", 7),
    ("reference", "channel", 7),
  ],
)
def test_values_and_gradients_equal_float64(implementation, decay, steps):
  """Rows of one token, and of whole and broken chunks."""
  check(problem(decay, steps), implementation=implementation)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_long_rows_equal_float64(decay):
  check(problem(decay, 2048, sizes=(1, 1, 32, 16), resets=1 / 500), chunk=64)


@pytest.mark.parametrize(("decay", "chunk"), [("head", 1), ("head", 20), ("channel", 32)])
def test_the_length_of_a_chunk_changes_nothing(decay, chunk):
  check(problem(decay, 20), chunk=chunk)


@pytest.mark.parametrize("fastest", [-1e4, -3e38])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_the_fastest_and_the_slowest_decays_keep_their_digits(decay, fastest):
  """Decays to nothing and of 1, beside exp(-1e-5): nothing overflows, nothing cancels."""
  given = problem(decay, 64, resets=0, slowest=1e-5, fastest=1e-4)
  log_a = given.arguments["log_a"].at[:, ::9].set(fastest).at[:, 5::9].set(0.0)
  check(given._replace(arguments=given.arguments | {"log_a": log_a}), chunk=64)


def test_bfloat16_errs_by_the_rounding_of_what_is_multiplied():
  # A result goes through at most four products whose operands are rounded (scores and weights, and
  # these again in the gradients), each by 2^-9 at most, and is rounded itself.
  for decay in ("group", "channel"):
    found = errors(problem(decay, 35, dtype=jnp.bfloat16))
    assert max(found.values()) <= 5 * 2**-9, found


def test_steps_after_a_reset_do_not_depend_on_steps_before():
  for decay in ("group", "channel"):
    given = problem(decay, 35)
    reset = np.zeros((2, 35), bool)
    reset[:, 21] = True
    other = dict(given.arguments)
    for name, value in {"k": 7.0, "v": 2.0, "log_a": -3.0}.items():
      other[name] = other[name].at[:, :21].set(value)
    other["h0"] = 9 * other["h0"]
    first = run(given._replace(reset=reset))
    second = run(given._replace(arguments=other, reset=reset))
    np.testing.assert_array_equal(first["y"][:, 21:], second["y"][:, 21:])
    np.testing.assert_array_equal(first["h_last"], second["h_last"])


@pytest.mark.parametrize(("decay", "steps"), [("group", 1), ("group", 35), ("channel", 9)])
def test_what_is_not_given_or_not_wanted_changes_nothing(decay, steps):
  given = problem(decay, steps)
  arguments = {name: a for name, a in given.arguments.items() if name != "h0"}
  zeros = jnp.zeros_like(given.arguments["h0"])
  run = functools.partial(gated_linear_attention, reset=given.reset, chunk=8)
  run = jax.jit(run, static_argnames="last")
  from_zeros, y, short = run(**arguments, h0=zeros), run(**arguments), run(**arguments, last=False)
  for found, wanted in zip((*y, short[0]), (*from_zeros, from_zeros[0]), strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-5)
  assert short[1] is None


@pytest.mark.parametrize(
  ("decay", "steps"), [("group", 1), ("group", 8), ("group", 35), ("channel", 1), ("channel", 35)]
)
def test_declared_flops_equal_the_traced_products(decay, steps):
  given = problem(decay, steps)
  arguments = {name: a for name, a in given.arguments.items() if name != "h0"}
  run = functools.partial(gated_linear_attention, reset=given.reset, last=False, chunk=8)
  jaxpr = jax.make_jaxpr(lambda arguments: run(**arguments))(arguments)
  sizes = {"heads": HEADS, "key_dim": KEYS, "value_dim": VALUES}
  if decay == "group":
    sizes["groups"] = GROUPS
  declared = matmul_flops(**sizes, chunk=8, length=steps, decay_per_channel=decay == "channel")
  assert product_flops(jaxpr.jaxpr) == pytest.approx(declared * steps * 2)


def test_a_gradient_inside_shard_map_is_typed():
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  given = problem("channel", 9)
  arguments = {name: a for name, a in given.arguments.items() if name != "h0"}
  specs = {name: P("data") for name in arguments}

  def loss(arguments):
    y, _ = gated_linear_attention(**arguments, chunk=8)
    return jax.lax.psum(jnp.sum(y), "data")

  sharded = jax.shard_map(loss, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=True)
  gradients = jax.eval_shape(jax.grad(sharded), arguments)
  assert gradients["log_a"].shape == arguments["log_a"].shape


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"q": jnp.zeros((2, 3, 4))}, r"q must be \[B, T, G, K\] and not empty"),
    ({"k": jnp.zeros((2, 7, 4, 6))}, r"k must be \(2, 7, 4, 5\) as q is"),
    ({"v": jnp.zeros((2, 8, 4, 3))}, r"v must be \(2, 7\) x \[H, V\] as q is"),
    ({"v": jnp.zeros((2, 7, 4, 3), jnp.bfloat16)}, "k and v must be float32 as q is"),
    ({"v": jnp.zeros((2, 7, 6, 3))}, "4 groups of q and k do not divide 6 heads"),
    ({"v": jnp.zeros((2, 7, 8, 3)), "log_a": jnp.zeros((2, 7, 8, 5))}, "all 8 heads, got 4 groups"),
    ({"log_a": jnp.zeros((2, 7, 3))}, r"log_a must be float32 \(2, 7, 4\) or \(2, 7, 4, 5\)"),
    ({"h0": jnp.zeros((2, 4, 5, 5))}, r"h0 has shape .* need \(2, 4, 5, 3\)"),
    ({"reset": np.zeros((2, 7), np.int32)}, r"reset must be bool \(2, 7\), got int32"),
    ({"chunk": 0}, "chunk=0 must be at least 1"),
    ({"chunk": 12, "log_a": jnp.zeros((2, 7, 4, 5))}, "chunk=12 must be a power of two"),
    ({"implementation": "triton"}, "implementation 'triton' is unknown; available on cpu: chunked"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    gated_linear_attention(**(problem("head", 7).arguments | change))
