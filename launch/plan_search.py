"""Meshes, ZeRO stages, remat policies and microbatches for the same training, the most promising first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax.numpy as jnp

from kernels import platform
from launch import describe
from launch.config import ConfigError
from launch.experiment import Experiment
from models.accounting import account
from parallel.chip import Hardware
from parallel.layout import Parallelism
from parallel.mesh import MeshSpec
from training.checkpoint import abstract_like
from training.kept import activation_bytes


def variants(experiment: Experiment, hardware: Hardware) -> Iterator[Experiment]:
  """The same training with other meshes, ZeRO stages, remat policies and microbatches.

  The cheapest first, by what each adds to the model's own arithmetic: what tensor parallelism and
  ZeRO stage 3 send, and what is computed twice. Left out is what cannot fit; see `least_bytes`.
  """
  count = sum(p.count for p in account(experiment.model, batch_size=1, length=1).parameters)
  tokens = experiment.batch_size * experiment.sequence_length
  chip, found = hardware.chip, []
  flops = account(
    experiment.model, batch_size=experiment.batch_size, length=experiment.sequence_length
  ).training_flops
  for model in _divisors(hardware.device_count):
    data = hardware.device_count // model
    for accumulate in (1, 2, 4, 8):
      if experiment.batch_size % (accumulate * data):
        continue
      for stage in (1, 3) if data > 1 else (0,):
        stored = count / model / (data if stage == 3 else 1)
        # Parameters and their gradients, and what the optimizer keeps of each in float32.
        held = stored * (jnp.dtype(experiment.model.param_dtype).itemsize + 4)
        held += count * 4 * (3 if experiment.optimizer.master_copy else 2) / hardware.device_count
        if held > chip.memory:
          continue
        rows = tokens / data * experiment.model.width * 2
        exchanged = 4 * experiment.model.depth * 2 * rows * (model - 1) / model
        exchanged += accumulate * 3 * 2 * count / model if stage == 3 else 8 * count / model
        for remat, again in (("none", 1.0), ("products", 1.03), ("mixers", 1.25), ("full", 1.33)):
          compute = flops * tokens * again / hardware.device_count / chip.flops
          cost = max(compute, exchanged / chip.link) + 0.1 * min(compute, exchanged / chip.link)
          found.append((cost * (1 + 0.01 * math.log2(accumulate)), model, accumulate, stage, remat))
  for _, model, accumulate, stage, remat in sorted(found):
    mesh = Parallelism(
      mesh=MeshSpec(data=-1, model=model),
      rules=experiment.mesh.rules if experiment.mesh else Parallelism().rules,
      zero=stage,
    )
    options = dataclasses.replace(
      experiment.options,
      step=dataclasses.replace(experiment.options.step, accumulate=accumulate),
    )
    changed = dataclasses.replace(
      experiment, model=experiment.model.clone(remat=remat), mesh=mesh, options=options
    )
    try:
      with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
        least = least_bytes(changed, hardware)
    except ConfigError:
      continue
    if least <= chip.memory:
      yield changed


def least_bytes(experiment: Experiment, hardware: Hardware) -> int:
  """What a device has to hold at least: the train state, gradients, and what the backward pass keeps.

  A trace tells, in a second where compiling takes a minute. XLA's temporaries come on top; that it computes
  something again of its own accord, to save memory, is not counted on.

  Raises:
    ConfigError: mesh, hardware and model do not fit.
  """
  layout, options = experiment.layout(hardware.devices), experiment.options.step
  state = abstract_like(describe.abstract_state(experiment), layout.state)
  return (
    describe.device_bytes(state)
    + layout.gradient_bytes()
    + activation_bytes(
      experiment.model,
      layout,
      rows=experiment.batch_size // options.accumulate,
      length=experiment.sequence_length,
    )
  )


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
