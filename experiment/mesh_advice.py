"""Shards an experiment over a mesh, or suggests flags that would make it fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax

from config.place import ConfigError
from experiment.experiment import Experiment
from parallel.mesh import FLAGS, Device, MeshSpec
from parallel.sharding_plan import ShardingPlan

# How many suggestions are shown, and how many tried: each costs a trace of the model.
_TOLD, _TRIED = 2, 6


def sharding_plan(experiment: Experiment, devices: Sequence[Device] | None = None) -> ShardingPlan:
  """Returns `Experiment.sharding_plan`, with suggestions if it fails.

  Raises:
    ConfigError: it does not fit; the message has flags that were tried and would.
  """
  try:
    return experiment.sharding_plan(devices)
  except ConfigError as error:
    count = jax.device_count() if devices is None else len(devices)
    tries = itertools.islice(_ways_out(experiment, count), _TRIED)
    fitting = (flags for flags, changed in tries if _fits(changed, devices))
    found = " or ".join(itertools.islice(fitting, _TOLD))
    where = "On 1 device" if count == 1 else f"On {count} devices"
    raise ConfigError(f"{error} {where} this fits: {found}." if found else str(error)) from None


def _fits(experiment: Experiment, devices: Sequence[Device] | None) -> bool:
  try:
    experiment.sharding_plan(devices)
  except ConfigError:
    return False
  return True


def _ways_out(experiment: Experiment, count: int) -> Iterator[tuple[str, Experiment]]:
  """Yields flags and the changed experiments, the smallest changes first; most do not fit."""
  laid = experiment.mesh
  if laid is None:  # What fails without a mesh is no matter of its sizes.
    return
  asked = laid.mesh
  for seq, model in _other_sizes(asked):
    data, rest = divmod(count, seq * model)
    if rest or data % asked.slices:
      continue
    sizes = {"data": -1 if asked.data == -1 else data, "seq": seq, "model": model}
    flags = [f"{FLAGS[n]}={size}" for n, size in sizes.items() if size != getattr(asked, n)]
    parallelism = dataclasses.replace(laid, mesh=dataclasses.replace(asked, **sizes))
    # Each device needs at least one row of each microbatch.
    step = data * experiment.options.step.grad_accum_steps
    rows = -(-experiment.batch_size // step) * step
    if rows != experiment.batch_size:
      flags.append(f"--gin.BATCH_SIZE={rows}")
    if flags:
      yield (
        " ".join(flags),
        dataclasses.replace(experiment, mesh=parallelism, batch_size=rows),
      )


def _other_sizes(asked: MeshSpec) -> list[tuple[int, int]]:
  """Yields sizes of the seq and model axes: the requested, then smaller, then a larger model."""
  smaller = [
    (seq, model) for seq in _divisors(abs(asked.seq)) for model in _divisors(abs(asked.model))
  ]
  smaller.sort(key=lambda sizes: -sizes[0] * sizes[1])
  return [*smaller, (abs(asked.seq), 2 * abs(asked.model))]


def _divisors(number: int) -> list[int]:
  return [n for n in range(number, 0, -1) if number % n == 0]
