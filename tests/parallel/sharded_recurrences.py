"""Runs the recurrences with time split over eight CPU devices, and against float64.

    python -m tests.parallel.sharded_recurrences

Prints one JSON line per op: the relative error of h and of each gradient, and what the devices send
each other at two lengths. The devices must exist before JAX is imported, hence the process.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from typing import NamedTuple

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
# Devices that a CPU plays wait for each other in threads: with one per core, they wait for ever.
os.environ["NPROC"] = "64"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from kernels.delta_rule import delta_rule, state_map
from kernels.gated_linear_attention import gated_linear_attention, log_of_product
from kernels.linear_scan import linear_scan
from kernels.rg_lru import rg_lru
from layers.mlstm import MLSTM
from layers.rg_lru import _log_of_product
from layers.segments import Segments
from parallel import sequence, shards
from tests.kernels import test_delta_rule, test_gated_linear_attention, test_mlstm
from tests.kernels.float64_reference import relative_error
from tests.kernels.test_recurrences import ARGUMENTS, expected, problem

DEVICES = 8
REGION = shards.Region(table=((sequence.AXIS, ("seq",)),), sizes=(("seq", DEVICES),))
OPS = {
  "rg_lru": (rg_lru, _log_of_product),
  "linear_scan": (linear_scan, lambda x, log_a: jnp.sum(log_a, axis=1)),
}
# The decays and the corrections per token.
DELTA_RULES = {"delta_rule by head": ("head", 2), "delta_rule by channel": ("channel", 1)}
# The decays.
LINEAR_ATTENTION = {"linear attention by head": "head", "linear attention by channel": "channel"}
MLSTM_OP = "mlstm"


def recur(op: str, arguments, reset):
  if op in OPS:
    return sequence.recur(*OPS[op], arguments, reset)[0]
  if op in LINEAR_ATTENTION:
    run = functools.partial(gated_linear_attention, chunk=8)
    return sequence.recur(run, log_of_product, arguments, reset)[0]
  if op == MLSTM_OP:
    # Of segments it asks where they start.
    segments = Segments(jnp.ones(reset.shape, jnp.int32), jnp.where(reset, 0, 1))
    layer = MLSTM(test_mlstm.HEADS, test_mlstm.KEYS, test_mlstm.VALUES, chunk=8)
    return layer._recur(*arguments, segments, None, False)[0]
  run, find = (functools.partial(f, chunk=8) for f in (delta_rule, state_map))
  return sequence.recur_by_matrices(run, find, arguments, reset)[0]


def over_devices(op: str, arguments):
  """A function (arguments, reset, dh) -> (h, gradients of the arguments), per device."""
  mesh = jax.make_mesh((DEVICES,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,))
  specs = tuple(P(None, "seq") if a.ndim > 1 else P() for a in arguments)

  def per_device(arguments, reset, dh):
    with shards.per_device(REGION):
      h, pull = jax.vjp(lambda *a: recur(op, a, reset), *arguments)
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


class Case(NamedTuple):
  """An op's arguments without h0, by name, and what comes with them.

  Slow decays, so that states reach over several devices.
  """

  arguments: dict[str, jax.Array]
  reset: np.ndarray
  dh: jax.Array
  expected: Callable[[], dict[str, np.ndarray]]


def given(op: str, steps: int) -> Case:
  rates = {"slowest": 1e-6, "fastest": 0.1, "resets": 1 / 40}
  if op in DELTA_RULES or op in LINEAR_ATTENTION:
    if op in DELTA_RULES:
      reference = test_delta_rule
      whole = reference.problem(DELTA_RULES[op][0], steps, DELTA_RULES[op][1], **rates)
    else:
      reference = test_gated_linear_attention
      whole = reference.problem(LINEAR_ATTENTION[op], steps, sizes=(2, 2, 5, 3), **rates)
    h0 = jnp.zeros_like(whole.arguments["h0"])
    whole = whole._replace(arguments=whole.arguments | {"h0": h0}, dh_last=h0)
    arguments = {name: a for name, a in whole.arguments.items() if name != "h0"}

    def wanted():
      found = reference.expected(whole)
      return found | {"h": found["y"]}

    case = Case(arguments, whole.reset, whole.dy, wanted)
  elif op == MLSTM_OP:
    case = mlstm_case(steps, rates["resets"])
  else:
    whole = problem(op, (2, steps, 8), state=False, **rates)
    whole = whole._replace(dh_last=jnp.zeros_like(whole.dh_last))
    arguments = dict(zip(ARGUMENTS[op], whole.arguments[:-1], strict=False))
    case = Case(arguments, whole.reset, whole.dh, functools.partial(expected, op, whole))
  assert np.any(case.reset)
  return case


def mlstm_case(steps: int, resets: float) -> Case:
  """mLSTM and its normalizer, against its equations without a stabilizer in float64."""
  arguments, m0, _, dy = test_mlstm.problem(steps)
  arguments = {**arguments, "log_f": arguments["log_f"] / 200}
  h0 = np.zeros(arguments.pop("h0").shape)
  reset = np.random.default_rng(1).uniform(size=dy.shape[:2]) < resets

  def wanted():
    with jax.enable_x64(True):
      wide = {name: jnp.asarray(np.asarray(x, np.float64)) for name, x in arguments.items()}

      @jax.jit
      def run(arguments, dy):
        def y(arguments):
          given = arguments | {"h0": jnp.asarray(h0)}
          return test_mlstm.equations(given, jnp.zeros(m0.shape), reset)[0]

        found, pull = jax.vjp(y, arguments)
        return {"h": found} | pull(dy)[0]

      return jax.tree.map(np.asarray, run(wide, jnp.asarray(np.asarray(dy, np.float64))))

  return Case(arguments, reset, dy, wanted)


def sent(op: str, steps: int) -> list[str]:
  """The types of the arrays that permutes and gathers move, in the program's order."""
  case = given(op, steps)
  arguments = tuple(case.arguments.values())
  text = over_devices(op, arguments).lower(arguments, case.reset, case.dh).as_text()
  return re.findall(r"(?:collective_permute|all_gather).*-> (tensor<[^>]*>)", text)


def main() -> None:
  for op in (*OPS, *DELTA_RULES, *LINEAR_ATTENTION, MLSTM_OP):
    case = given(op, 16 * DEVICES)
    arguments = tuple(case.arguments.values())
    h, gradients = over_devices(op, arguments)(arguments, case.reset, case.dh)
    wanted = case.expected()
    got = {"h": h, **dict(zip(case.arguments, gradients, strict=True))}
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
