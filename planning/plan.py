"""Compiles a program for devices that are not attached, and estimates its memory and time."""

from __future__ import annotations

import collections
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax

from base import heartbeat
from config.config import ConfigError
from experiment import layer_errors
from experiment.describe import device_bytes
from experiment.experiment import Experiment
from kernels import platform
from parallel.mesh import MeshSpec
from parallel.sharding_plan import Parallelism, ShardingPlan
from planning.hardware.chip import Hardware
from planning.hlo import bytes_accessed, collectives
from planning.hlo import text as hlo
from planning.programs import PROGRAMS, Program
from planning.record import CollectiveTotal, Expected, Memory, Plan, Roofline, XlaCounts
from planning.replay.replay import replay

# Operations that a plan lists.
_SHOWN = 10


def plan(
  experiment: Experiment,
  hardware: Hardware,
  *,
  step: str = "train",
  model: str = "",
  tell: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Compiles a program for hardware that need not be attached; allocates and runs nothing.

  Args:
    experiment: model, mesh, rows and optimizer.
    hardware: what to compile for.
    step: a name of `planning.programs.PROGRAMS`.
    model: the model's name in the plan.
    tell: receives a line before the compilation, which may take minutes.

  Raises:
    ConfigError: model, mesh and hardware do not fit; the message says what would.
    MemoryError: the compiler reports that the program does not fit; the message is the compiler's.
  """
  if experiment.mesh is None:
    experiment = dataclasses.replace(experiment, mesh=Parallelism(mesh=MeshSpec(data=-1)))
  if step != "train":
    # Gradient accumulation exists only in training.
    options = dataclasses.replace(experiment.options.step, grad_accum_steps=1)
    experiment = dataclasses.replace(
      experiment, options=dataclasses.replace(experiment.options, step=options)
    )
  began = time.monotonic()
  if experiment.chosen_size is not None:
    tell(f"{model}: {experiment.chosen_size}")
  with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
    sharding_plan = experiment.sharding_plan(hardware.devices)
    try:
      program = PROGRAMS[step](experiment, sharding_plan, hardware.chip.memory)
    except ValueError as error:
      raise ConfigError(layer_errors.explained(error)) from None
    tell(f"{model}: compiling for {hardware.name}; a large model takes minutes")
    try:
      with heartbeat.telling(f"{model}: compiling", tell):
        compiled, text = compile_program(program.lowered, hardware.platform)
    except jax.errors.JaxRuntimeError as error:
      what = (str(error).splitlines() or [type(error).__name__])[0]
      if "RESOURCE_EXHAUSTED" in what:
        raise MemoryError(what) from None
      raise ConfigError(f"the compiler for {hardware.name} failed: {what}") from None
  seconds = time.monotonic() - began
  return _measured(
    experiment, hardware, sharding_plan, program, compiled, text, seconds, step, model
  )


def _measured(
  experiment: Experiment,
  hardware: Hardware,
  sharding_plan: ShardingPlan,
  program: Program,
  compiled: jax.stages.Compiled,
  text: hlo.HloProgram,
  seconds: float,
  step: str,
  model: str,
) -> Plan:
  chip, training = hardware.chip, step == "train"
  times: dict[tuple[str, str], int] = collections.defaultdict(int)
  sent: dict[tuple[str, str], float] = collections.defaultdict(float)
  exchanging = 0.0
  for found in collectives.collectives(text, sharding_plan.sizes):
    if found.members == 1:
      continue  # XLA for GPUs does not remove sums over one device
    along = found.kind, "+".join(found.axes)
    times[along] += found.times
    sent[along] += found.sent
    exchanging += found.sent / hardware.link(found.group)
  flops, traffic = text.flops(), bytes_accessed.traffic(text).total
  once = bytes_accessed.traffic(text, loops=False, everywhere=True)
  model_flops = program.model_flops / hardware.device_count
  costs = compiled.cost_analysis() or {}
  costs = costs[0] if isinstance(costs, list) else costs
  # XLA marks unknown numbers as negative.
  xla = {name: value for name, value in costs.items() if value >= 0}
  memory: Any = compiled.memory_analysis()  # None only on backends without plans.
  timeline = replay(text, hardware)
  return Plan(
    step=step,
    hardware=hardware.name,
    topology=hardware.topology,
    devices=hardware.device_count,
    model=model,
    parameters=sum(math.prod(p.shape) for p in sharding_plan.parameters),
    mesh=sharding_plan.sizes,
    zero=sharding_plan.stage,
    remat=experiment.model.remat if training else None,
    grad_accum_steps=experiment.options.step.grad_accum_steps if training else None,
    batch_size=experiment.batch_size,
    length=experiment.sequence_length,
    collectives=tuple(
      CollectiveTotal(*along, count, sent[along]) for along, count in sorted(times.items())
    ),
    compile_seconds=seconds,
    memory=Memory(
      parameter_bytes=program.parameters,
      optimizer_bytes=program.optimizer,
      state_bytes=program.state,
      batch_bytes=program.batch,
      result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
      twice_bytes=_twice(program, text),
      temporary_bytes=memory.temp_size_in_bytes,
      activation_bytes=program.activations,
      gradient_bytes=program.gradients,
      host_bytes=memory.host_temp_size_in_bytes,
      available=chip.memory,
      share=chip.share,
    ),
    roofline=Roofline(
      model_flops=model_flops,
      counted_flops=flops,
      hbm_bytes=traffic,
      compute_seconds=max(flops, model_flops) / chip.flops,
      hbm_seconds=traffic / chip.bandwidth,
      # By one ring, or by the rings through several axes of the torus that XLA chose.
      interconnect_seconds=min(exchanging, timeline.network),
      peak_flops=chip.flops,
      tokens=program.tokens,
    ),
    expected=Expected(
      seconds=timeline.seconds,
      shares=timeline.shares(),
      largest=timeline.largest(_SHOWN),
      unmodelled=timeline.unmodelled,
      model_flops=model_flops,
      peak_flops=chip.flops,
      tokens=program.tokens,
    ),
    timeline=timeline,
    xla=XlaCounts(
      once_flops=text.flops(loops=False),
      xla_flops=xla.get("flops"),
      once_bytes=once.as_xla_counts,
      xla_bytes=xla.get("bytes accessed"),
      again_bytes=once.again,
      unseen_bytes=once.unseen,
      optimal_seconds=xla.get("optimal_seconds"),
    ),
  )


def compile_program(
  lowered: jax.stages.Lowered, platform_name: str
) -> tuple[jax.stages.Compiled, hlo.HloProgram]:
  """Compiles a program; returns it and its parsed text.

  For TPUs, libtpu dumps the text itself: JAX cannot print everything in a newer libtpu's result
  (0.0.52: an asynchronous operation with several operands, on v5p and with `seq` above 1).
  """
  if platform_name != "tpu":
    compiled = lowered.compile()
    return compiled, hlo.HloProgram(cast(str, compiled.as_text()))
  with tempfile.TemporaryDirectory() as folder:
    options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    compiled = lowered.compile(compiler_options=options)
    (file,) = Path(folder).glob("*.after_codegen.txt")
    return compiled, hlo.HloProgram(file.read_text(encoding="utf-8"))


def _twice(program: Program, text: hlo.HloProgram) -> int:
  """Donated bytes that XLA did not alias."""
  return sum(
    device_bytes(leaf)
    for index, leaf in enumerate(jax.tree.leaves(program.updated), program.first_updated)
    if (index,) not in text.in_place
  )
