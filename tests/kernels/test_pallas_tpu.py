"""The Pallas TPU recurrences, run by Pallas' interpreter, against the same equations in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels.linear_scan import pallas_tpu as linear_scan_tpu
from kernels.linear_scan import reference as linear_scan_reference
from kernels.rg_lru import pallas_tpu as rg_lru_tpu
from kernels.rg_lru import reference as rg_lru_reference
from kernels.scan_tpu import blocks as pallas_tpu_blocks
from kernels.scan_tpu.blocks import BlockPlan, Blocks

# Relative errors in the Euclidean norm. float32: a few roundings of 6e-8, averaged over many
# elements. bfloat16: h and the gradients are rounded once (2^-9 at most, 1.7e-3 on average), and
# the gradient of log a multiplies by an h that was rounded too.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 3e-3}
# Short chunks keep the unrolled program small: the interpreter compiles it with XLA.
SHORT = BlockPlan(Blocks(1, 128, 2, 8), Blocks(2, 128, 1, 8))
# What the interpreter runs, and what float64 runs.
OPS = {
  "rg_lru": (rg_lru_tpu.fused, rg_lru_reference.rg_lru),
  "linear_scan": (linear_scan_tpu.scan, linear_scan_reference.linear_scan),
}


def problem(op, shape, dtype, *, log_decay=None, seed=0):
  """(differentiable arguments, reset, cotangents of h and h_last) of an op."""
  rng = np.random.default_rng(seed)
  batch, steps, width = shape

  def normal(*size, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(size), jnp.float32).astype(dtype)

  if log_decay is None:
    log_decay = np.log(rng.uniform(0.8, 0.999, width))
  log_decay = jnp.broadcast_to(jnp.asarray(log_decay, jnp.float32), (width,))
  x, gate_a, gate_x = (normal(*shape, dtype=dtype) for _ in range(3))
  h0 = normal(batch, width)
  if op == "rg_lru":
    arguments = (x, gate_a, gate_x, log_decay, h0)
  else:
    arguments = (x, (jax.nn.sigmoid(gate_a.astype(jnp.float32)) * log_decay).astype(dtype), h0)
  reset = jnp.asarray(rng.uniform(size=(batch, steps)) < 0.03)
  return arguments, reset, (normal(*shape, dtype=dtype), normal(batch, width))


def values_and_gradients(f, arguments, cotangents):
  """(h, h_last, gradients of all arguments)."""

  def run(arguments, cotangents):
    values, vjp = jax.vjp(f, *arguments)
    return (*values, *vjp(cotangents))

  # The interpreter's program is long and runs for milliseconds: compiling it is what takes time.
  return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(arguments, cotangents)


def in_float64(reference, arguments, reset, cotangents):
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (arguments, cotangents))
    extra = (False,) if reference is linear_scan_reference.linear_scan else ()
    return values_and_gradients(lambda *a: reference(*a, reset, *extra), *wide)


def assert_close(got, expected, tolerance):
  for index, (a, b) in enumerate(zip(got, expected, strict=True)):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.all(np.isfinite(a)), f"output {index} is not finite"
    error = np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-30)
    assert error <= tolerance, f"output {index} of (h, h_last, gradients): {error:.2e}"


def check(op, shape, dtype, *, plan=SHORT, **options):
  run, reference = OPS[op]
  arguments, reset, cotangents = problem(op, shape, dtype, **options)
  f = functools.partial(run, plan=plan, interpret=True)
  got = values_and_gradients(lambda *a: f(*a, reset), arguments, cotangents)
  assert got[0].dtype == dtype
  assert got[1].dtype == jnp.float32
  assert_close(got, in_float64(reference, arguments, reset, cotangents), TOLERANCE[dtype])


@pytest.mark.parametrize("steps", [2, 127, 128, 129, 2048])
def test_rg_lru_equals_float64_at_any_length(steps):
  check("rg_lru", (2, steps, 256), jnp.float32)


@pytest.mark.parametrize("steps", [2, 129, 2048])
def test_linear_scan_equals_float64_at_any_length(steps):
  check("linear_scan", (2, steps, 256), jnp.float32)


@pytest.mark.parametrize("op", OPS)
def test_one_step_equals_float64(op):
  arguments, reset, cotangents = problem(op, (2, 1, 256), jnp.float32)

  def f(*arguments):
    if op == "rg_lru":
      return rg_lru_tpu.rg_lru(*arguments, reset)
    return linear_scan_tpu.linear_scan(*arguments, reset, False)

  expected = in_float64(OPS[op][1], arguments, reset, cotangents)
  assert_close(values_and_gradients(f, arguments, cotangents), expected, 1e-6)


@pytest.mark.parametrize("op", OPS)
def test_bfloat16_errs_by_the_rounding_of_its_inputs_and_outputs(op):
  check(op, (2, 129, 256), jnp.bfloat16)


@pytest.mark.parametrize("op", OPS)
def test_the_blocks_it_chooses_equal_float64(op):
  check(op, (3, 300, 384), jnp.float32, plan=None)


@pytest.mark.parametrize("log_decay", [-1e-6, -1e-3, -60.0])
def test_decays_near_one_and_near_zero_keep_their_digits(log_decay):
  check("rg_lru", (2, 129, 256), jnp.float32, log_decay=log_decay)


def test_closed_recurrence_gates_keep_their_digits():
  (x, gate_a, *rest), reset, cotangents = problem("rg_lru", (2, 129, 256), jnp.float32)
  arguments = (x, gate_a - 12.0, *rest)  # sigmoid 6e-6: as tanh it would have 2 digits
  f = functools.partial(rg_lru_tpu.fused, plan=SHORT, interpret=True)
  got = values_and_gradients(lambda *a: f(*a, reset), arguments, cotangents)
  expected = in_float64(rg_lru_reference.rg_lru, arguments, reset, cotangents)
  # h0's share decays by a product of 129 rounded decays, each within half an ulp.
  assert_close(got, expected, 129 * 2.0**-24)


@pytest.mark.parametrize(
  ("dtype", "native_math"), [(jnp.float32, True), (jnp.bfloat16, True), (jnp.bfloat16, False)]
)
def test_a_decay_of_exactly_one_has_finite_values_and_gradients(dtype, native_math):
  arguments, reset, cotangents = problem("rg_lru", (2, 9, 256), dtype, log_decay=0.0)
  arguments = (arguments[0], arguments[1].at[:, ::2].set(-200.0), *arguments[2:])
  f = functools.partial(rg_lru_tpu.fused, plan=SHORT, interpret=True, native_math=native_math)
  got = values_and_gradients(lambda *a: f(*a, reset), arguments, cotangents)
  assert all(np.all(np.isfinite(np.asarray(v, np.float32))) for v in got)
  expected = in_float64(rg_lru_reference.rg_lru, arguments, reset, cotangents)
  assert_close(got[:2], expected[:2], TOLERANCE[dtype])


def test_the_formulas_of_later_chips_equal_float64():
  for dtype in (jnp.float32, jnp.bfloat16):
    arguments, reset, cotangents = problem("rg_lru", (2, 9, 256), dtype)
    f = functools.partial(rg_lru_tpu.fused, plan=SHORT, interpret=True, native_math=True)
    got = values_and_gradients(lambda *a, f=f, reset=reset: f(*a, reset), arguments, cotangents)
    expected = in_float64(rg_lru_reference.rg_lru, arguments, reset, cotangents)
    assert_close(got, expected, TOLERANCE[dtype])


def test_without_reset_and_initial_state():
  (x, gate_a, gate_x, log_decay, h0), reset, cotangents = problem(
    "rg_lru", (2, 20, 256), jnp.float32
  )
  f = functools.partial(rg_lru_tpu.fused, plan=SHORT, interpret=True)
  got = jax.jit(lambda: f(x, gate_a, gate_x, log_decay, None, None))()
  given = (x, gate_a, gate_x, log_decay, jnp.zeros_like(h0))
  expected = in_float64(rg_lru_reference.rg_lru, given, jnp.zeros_like(reset), cotangents)
  assert_close(got, expected[:2], 1e-6)


def test_reverse_equals_the_reference():
  (x, log_a, h0), reset, _ = problem("linear_scan", (2, 20, 256), jnp.float32)
  got = linear_scan_tpu.scan(x, log_a, h0, reset, True, plan=SHORT, interpret=True)
  expected = linear_scan_reference.linear_scan(x, log_a, h0, reset, True)
  assert_close(got, expected, 1e-6)


def test_only_h_and_block_states_are_saved_for_the_gradient():
  (x, gate_a, gate_x, log_decay, h0), reset, _ = problem("rg_lru", (2, 256, 256), jnp.float32)
  f = functools.partial(rg_lru_tpu.fused, reset=reset, plan=SHORT, interpret=True)
  _, vjp = jax.eval_shape(lambda *a: jax.vjp(f, *a), x, gate_a, gate_x, log_decay, h0)
  saved = sum(leaf.size for leaf in jax.tree.leaves(vjp))
  inputs_and_h = 4 * x.size
  states_mask_channels = 2 * 2 * 256 + 2 * 256 + 256
  assert saved <= inputs_and_h + states_mask_channels


@pytest.mark.parametrize("op", OPS)
def test_a_width_that_is_no_multiple_of_128_is_refused(op):
  arguments, reset, _ = problem(op, (1, 4, 192), jnp.float32)
  with pytest.raises(ValueError, match=r"multiple of 128, got 192\. Change the width"):
    OPS[op][0](*arguments, reset)


@pytest.mark.parametrize("check_vma", [False, True])
def test_runs_inside_shard_map_with_a_replicated_parameter(check_vma):
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  (x, gate_a, gate_x, log_decay, h0), reset, _ = problem("rg_lru", (2, 9, 128), jnp.float32)
  plan = BlockPlan(Blocks(1, 128, 1, 8), Blocks(1, 128, 1, 8))
  f = functools.partial(rg_lru_tpu.fused, plan=plan, interpret=not check_vma)
  act = P("data")
  sharded = jax.shard_map(
    f, mesh=mesh, in_specs=(act, act, act, P(), act, act), out_specs=(act, act), check_vma=check_vma
  )

  def loss(log_decay):
    h, h_last = sharded(x, gate_a, gate_x, log_decay, h0, reset)
    return jnp.sum(h) + jnp.sum(h_last)

  if check_vma:  # the interpreter has no types for manual axes: tracing must do
    assert jax.eval_shape(jax.grad(loss), log_decay).shape == log_decay.shape
    return

  def plain(log_decay):
    h, h_last = rg_lru_reference.rg_lru(x, gate_a, gate_x, log_decay, h0, reset)
    return jnp.sum(h) + jnp.sum(h_last)

  assert_close([jax.grad(loss)(log_decay)], [jax.grad(plain)(log_decay)], 1e-5)


PAPER_WIDTHS = (1024, 1536, 2048, 2560, 4096, 5632, 8192)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks_tile_the_problem_and_fit_in_vmem(batch, itemsize):
  for width in {w // n for w in PAPER_WIDTHS for n in (1, 2, 4, 8, 16) if w % (n * 128) == 0}:
    for steps in (2, 100, 2048, 32768):
      plan = pallas_tpu_blocks.plan(
        (batch, steps, width), itemsize, forward_arrays=4, backward_arrays=8
      )
      assert plan.forward.time == plan.backward.time
      for blocks in plan:
        assert batch % blocks.batch == 0
        assert (width // 128) % blocks.groups == 0
        assert blocks.time % 128 == 0
        assert blocks.time < max(2 * steps, 256)
      if batch * width % 256 == 0:
        count = (batch // plan.forward.batch) * (width // 128 // plan.forward.groups)
        assert count >= 2, "one of the two cores of v4 and v5p would idle"
