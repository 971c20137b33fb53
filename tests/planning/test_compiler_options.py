"""What XLA's options for training steps gain, by the expected times of small programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from kernels import platform
from planning.hardware import catalogue
from planning.replay import timeline as lines
from tests.planning.compiled_programs import bfloat16, compiled, needs_libtpu


def options_of(name: str) -> dict[str, int | bool]:
  kind = catalogue.hardware(name).devices[0].device_kind
  with platform.targeting("tpu", kind):
    return platform.compiler_options()


@needs_libtpu
@pytest.mark.parametrize("name", ["v6e-8", "tpu7x-8"])
def test_a_chip_gives_more_of_its_own_memory_to_products_with_work_fused_to_them(name):
  def function(x, w, u):
    return jax.nn.silu((x @ w).astype(jnp.float32)).astype(jnp.bfloat16) * u + (x @ w)

  assert platform.compiler_options() == {}
  arguments = bfloat16(4096, 2048), bfloat16(2048, 4096), bfloat16(4096, 4096)
  before, after = (
    compiled(name, function, *arguments, options=options) for options in (None, options_of(name))
  )
  assert after.seconds < before.seconds


@needs_libtpu
def test_a_v6e_gathers_and_scatters_beside_products():
  split = PartitionSpec("data")

  def exchange(w, g, x):
    gathered = jax.lax.all_gather(w, "data", tiled=True)
    return gathered, jax.lax.psum_scatter(g, "data", tiled=True), x @ x

  arguments = bfloat16(4096, 4096), bfloat16(4096, 4096), bfloat16(8192, 8192)
  specs = [split, PartitionSpec(), PartitionSpec()]
  before, after = (
    compiled("v6e-8", exchange, *arguments, shape=(8,), specs=specs, options=options)
    for options in (None, options_of("v6e-8"))
  )
  exposed = [found.shares()[lines.COLLECTIVES] * found.seconds for found in (before, after)]
  # One of the two stands beside the only product.
  assert exposed[1] < 0.6 * exposed[0]
  assert exposed[0] == pytest.approx(before.network)
  assert after.network == before.network
