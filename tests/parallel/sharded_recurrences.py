"""Runs both recurrences with time split over eight CPU devices, and against float64.

    python -m tests.parallel.sharded_recurrences

Prints one JSON line per op: the relative error of h and of each gradient, and what the devices send
each other at two lengths. The devices must exist before JAX is imported, hence the process.
"""

from __future__ import annotations

import json
import os
import re

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Devices that a CPU plays wait for each other in threads: with one per core, they wait for ever.
os.environ["NPROC"] = "64"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from kernels.linear_scan import linear_scan
from kernels.rg_lru import rg_lru
from layers.rg_lru import _log_of_product
from parallel import sequence, shards
from tests.kernels.float64_reference import relative_error
from tests.kernels.test_recurrences import ARGUMENTS, expected, problem

DEVICES = 8
REGION = shards.Region(table=((sequence.AXIS, ("seq",)),), sizes=(("seq", DEVICES),))
OPS = {
  "rg_lru": (rg_lru, _log_of_product),
  "linear_scan": (linear_scan, lambda x, log_a: jnp.sum(log_a, axis=1)),
}


def over_devices(op: str, arguments):
  """A function (arguments, reset, dh) -> (h, gradients of the arguments), per device."""
  function, log_decay = OPS[op]
  mesh = jax.make_mesh((DEVICES,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,))
  specs = tuple(P(None, "seq") if a.ndim == 3 else P() for a in arguments)

  def per_device(arguments, reset, dh):
    with shards.per_device(REGION):
      h, pull = jax.vjp(lambda *a: sequence.recur(function, log_decay, a, reset)[0], *arguments)
      gradients = pull(dh)
    # A parameter that every device has whole: what it is owed is the sum of what each device found.
    return h, tuple(
      g if s == P(None, "seq") else jax.lax.psum(g, "seq")
      for g, s in zip(gradients, specs, strict=True)
    )

  tile = P(None, "seq")
  return jax.jit(
    jax.shard_map(
      per_device,
      mesh=mesh,
      in_specs=(specs, tile, tile),
      out_specs=(tile, specs),
      check_vma=False,
    )
  )


def given(op: str, steps: int):
  """(arguments without h0, problem) with slow decays, so that states reach over several devices."""
  whole = problem(op, (2, steps, 8), slowest=1e-6, fastest=0.1, resets=1 / 40, state=False)
  assert np.any(whole.reset)
  whole = whole._replace(dh_last=jnp.zeros_like(whole.dh_last))
  return whole.arguments[:-1], whole


def sent(op: str, steps: int) -> list[str]:
  """The types of the arrays that permutes move, in the program's order."""
  arguments, whole = given(op, steps)
  text = over_devices(op, arguments).lower(arguments, whole.reset, whole.dh).as_text()
  return re.findall(r"collective_permute.*-> (tensor<[^>]*>)", text)


def main() -> None:
  for op in OPS:
    arguments, whole = given(op, 16 * DEVICES)
    h, gradients = over_devices(op, arguments)(arguments, whole.reset, whole.dh)
    wanted = expected(op, whole)
    got = {"h": h, **dict(zip(ARGUMENTS[op], gradients, strict=False))}
    print(
      json.dumps(
        {
          "op": op,
          "errors": {name: relative_error(value, wanted[name]) for name, value in got.items()},
          "sent": [sent(op, steps) for steps in (8 * DEVICES, 64 * DEVICES)],
        }
      ),
      flush=True,
    )


if __name__ == "__main__":
  main()
