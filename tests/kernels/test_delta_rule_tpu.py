"""The Pallas TPU kernels of the delta rule, run by Pallas' interpreter, against float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import kernel_cases
from kernels.delta_rule import IMPLEMENTATIONS, delta_rule, pallas_tpu, reference
from kernels.delta_tpu import blocks as delta_blocks
from kernels.delta_tpu.blocks import Plan, choose_plan
from kernels.platform import availability, targeting
from tests.kernels.float64_reference import relative_error
from tests.kernels.test_delta_rule import HEADS, KEYS, TOLERANCE, VALUES, expected, problem

# Two blocks of two chunks, of which the last two are partly and wholly beyond the end. A chunk has
# two of the blocks that are inverted by substitution.
STEPS = 70


def plan(decay: str, steps: int = STEPS, group: int = 1) -> Plan:
  return Plan(HEADS, KEYS, VALUES, steps, 32, 2, group, decay == "channel")


# The interpreter's program is long and runs for milliseconds: compiling it is what takes time.
@functools.partial(
  jax.jit, static_argnames="blocks", compiler_options={"xla_backend_optimization_level": 0}
)
def run(given, blocks):
  def values(arguments):
    given_or_none = (arguments.get(name) for name in ("q", "k", "v", "beta", "log_a", "h0"))
    return pallas_tpu.fused(*given_or_none, given.reset, True, 32, plan=blocks, interpret=True)

  (y, h_last), pull = jax.vjp(values, given.arguments)
  return {"y": y, "h_last": h_last} | pull((given.dy, given.dh_last))[0]


def check(given, blocks, tolerance=TOLERANCE):
  got, wanted = run(given, blocks), expected(given)
  assert got["y"].dtype == given.arguments["q"].dtype
  found = {name: relative_error(value, wanted[name]) for name, value in got.items()}
  assert max(found.values()) <= tolerance, found


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_values_and_gradients_equal_float64(decay):
  """Resets anywhere, beta up to 2, decays from 1e-6 to 50; then the fastest and the slowest."""
  given = problem(decay, STEPS)
  check(given, plan(decay))
  slow = problem(decay, STEPS, slowest=1e-5, fastest=1e-4).arguments["log_a"]
  for fastest in (-1e4, -3e38):
    log_a = slow.at[:, ::9].set(fastest).at[:, 5::9].set(0.0)
    check(given._replace(arguments=given.arguments | {"log_a": log_a}), plan(decay))


def test_several_corrections_without_decay_equal_float64():
  check(problem("none", STEPS // 2, 2), plan("none", group=2))


def test_equal_keys_that_reflect_do_not_overflow():
  given = problem("head", STEPS, resets=0.1)
  arguments = dict(given.arguments)
  arguments["k"] = jnp.broadcast_to(arguments["k"][:, :1], arguments["k"].shape)
  arguments["beta"] = jnp.full_like(arguments["beta"], 2.0)
  arguments["log_a"] = jnp.zeros_like(arguments["log_a"])
  reset = np.zeros_like(given.reset)
  # As of the chunked form: entries of 2 with alternating signs cancel over all steps.
  check(given._replace(arguments=arguments, reset=reset), plan("head"), STEPS * 4 * 2**-24)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_bfloat16_errs_by_the_rounding_of_what_is_multiplied(decay):
  # The bound of the chunked form: its products, and the inverse as one more rounded operand.
  check(problem(decay, STEPS, dtype=jnp.bfloat16, strongest=1.0), plan(decay), 9 * 2**-9)


def test_one_token_takes_no_kernel():
  arguments = problem("head", 1).arguments
  found = pallas_tpu.delta_rule(*arguments.values(), None, True, 64)
  wanted = reference.delta_rule(*arguments.values(), None, True, 64)
  for got, right in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(got, right)


def test_a_gradient_inside_shard_map_is_typed():
  """By tracing: the interpreter has no types for manual axes."""
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  given = problem("channel", 9)
  arguments = {name: a for name, a in given.arguments.items() if name != "h0"}
  specs = {name: P("data") for name in arguments}

  def loss(arguments):
    q, k, v, beta, log_a = (arguments[name] for name in ("q", "k", "v", "beta", "log_a"))
    y, _ = pallas_tpu.fused(q, k, v, beta, log_a, None, None, True, 64)
    return jax.lax.psum(jnp.sum(y), "data")

  sharded = jax.shard_map(loss, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=True)
  gradients = jax.eval_shape(jax.grad(sharded), arguments)
  assert {name: g.shape for name, g in gradients.items()} == {
    name: a.shape for name, a in arguments.items()
  }


def test_tpus_that_can_take_the_kernels_and_others_do_not():
  with targeting("tpu", "TPU v3"):
    assert "v2 and v3" in (availability(IMPLEMENTATIONS)["pallas_tpu"] or "")
    with pytest.raises(ValueError, match=r"'pallas_tpu' multiplies bfloat16 .* available on tpu"):
      delta_rule(**problem("head", 9).arguments, implementation="pallas_tpu")
  with targeting("tpu", "TPU v5 lite"):
    assert availability(IMPLEMENTATIONS)["pallas_tpu"] is None
    jaxpr = jax.make_jaxpr(delta_rule)(*problem("head", 9).arguments.values())
  assert "delta_rule_head_forward" in str(jaxpr)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_blocks_tile_the_problem_and_fit_in_vmem(itemsize):
  for heads in (1, 2, 3, 5, 12, 16):
    for channels in (64, 128, 256):
      for steps in (2, 100, 2048, 32768):
        for by_channel in (False, True):
          found = choose_plan(
            heads, channels, channels, steps, itemsize, chunk=64, by_channel=by_channel
          )
          assert found is not None
          assert heads % found.group == 0
          assert found.time * (found.blocks - 1) < steps <= found.time * found.blocks
          assert found.chunk * found.chunks <= 2 * max(steps, 16)
          assert delta_blocks.vmem_bytes(found, itemsize) <= delta_blocks.VMEM_BYTES


@pytest.mark.parametrize(
  ("channels", "dtype", "decay"), [(512, jnp.float32, "channel"), (1024, jnp.bfloat16, "head")]
)
def test_heads_that_vmem_has_no_room_for_take_chunks_in_xla(channels, dtype, decay, caplog):
  """By tracing: the TPU compiler refuses the kernels for them."""
  pallas_tpu._say_too_wide.cache_clear()
  given = kernel_cases.delta_arguments((1, 128, 2, channels), decay, dtype)[:5]
  with targeting("tpu", "TPU v5 lite"):
    jaxpr = jax.make_jaxpr(lambda *arguments: delta_rule(*arguments))(*given)
  assert "pallas_call" not in str(jaxpr)
  assert f"for heads of {channels} x {channels} channels" in caplog.text
