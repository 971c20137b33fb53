"""Compiles a program for devices that are not attached, and estimates its memory and time."""

from __future__ import annotations

import collections
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import jax

from config.config import ConfigError
from experiment.describe import device_bytes
from experiment.experiment import Experiment
from kernels import platform
from parallel.mesh import MeshSpec
from parallel.sharding_plan import Parallelism, ShardingPlan
from planning.hardware.chip import Hardware
from planning.hlo import bytes_accessed, collectives
from planning.hlo import text as hlo
from planning.programs import PROGRAMS, Program


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
  """The collectives of one kind along the same mesh axes, summed over one run of the program.

  Attributes:
    kind: such as 'all-reduce'.
    axes: the mesh axes, joined by '+'.
    count: how many run.
    sent: bytes that each device sends.
  """

  kind: str
  axes: str
  count: int
  sent: float


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and time of one program on some hardware; bytes and FLOPs are per device.

  Attributes:
    step: 'train' (one step), 'prefill' (a batch of prompts) or 'decode' (one token per prompt).
    hardware, topology: the hardware's name, and how its devices are connected.
    devices: number of devices.
    model: name of the model's file, or of the run.
    parameters: number of parameters.
    mesh: sizes of the mesh axes.
    zero: ZeRO stage; prefill and decode split parameters over `model` only.
    remat, grad_accum_steps: as configured; None except in training.
    batch_size, length: rows, and tokens per row.
    parameter_bytes, optimizer_bytes, state_bytes, batch_bytes: the program's arguments:
      parameters, optimizer state, decode state, tokens.
    result_bytes: results that are not aliased to an argument.
    twice_bytes: donated bytes that XLA did not alias, so that old and new are both in memory.
    temporary_bytes: temporary memory of the compiled program at its peak.
    activation_bytes, gradient_bytes: the largest parts of the temporaries in training: what
      autodiff keeps for the backward pass, and gradients in float32. XLA may need less of either:
      not all are alive at the peak.
    host_bytes: host memory for offloaded activations.
    memory: memory of a device that a process can use.
    memory_share: that memory as a share of the device's; on GPUs, JAX's memory fraction.
    collectives: the program's collectives.
    model_flops: FLOPs of the model's matrix products, forward and backward, without recomputation.
    counted_flops: FLOPs of the matrix products in the compiled program, except inside Pallas
      kernels.
    hbm_bytes: bytes that the operations of the compiled program read and write in HBM.
    compute_seconds, hbm_seconds, interconnect_seconds: the least time for each alone.
    peak_flops: FLOP/s of a device.
    tokens: tokens that the program reads or generates, on all devices.
    compile_seconds: time to trace and compile.
    once_flops, xla_flops: `counted_flops` with each loop body counted once; and XLA's count, which
      does that and adds elementwise operations, or None if XLA has none.
    once_bytes, xla_bytes: bytes read and written in any memory, with each loop body counted once,
      plus `again_bytes` and minus `unseen_bytes`; and XLA's count of the same.
    again_bytes: operands that XLA counts twice, at the end of asynchronous operations.
    unseen_bytes: by name, bytes moved by kernels that report no cost to XLA.
    optimal_seconds: XLA's estimate of the time, loop bodies counted once; None if it has none.
  """

  step: str
  hardware: str
  topology: str
  devices: int
  model: str
  parameters: int
  mesh: dict[str, int]
  zero: int
  remat: str | None
  grad_accum_steps: int | None
  batch_size: int
  length: int
  parameter_bytes: int
  optimizer_bytes: int
  state_bytes: int
  batch_bytes: int
  result_bytes: int
  twice_bytes: int
  temporary_bytes: int
  activation_bytes: int
  gradient_bytes: int
  host_bytes: int
  memory: float
  memory_share: float
  collectives: tuple[CollectiveTotal, ...]
  model_flops: float
  counted_flops: float
  hbm_bytes: float
  compute_seconds: float
  hbm_seconds: float
  interconnect_seconds: float
  peak_flops: float
  tokens: int
  compile_seconds: float
  once_flops: float
  xla_flops: float | None
  once_bytes: float
  xla_bytes: float | None
  again_bytes: float
  unseen_bytes: dict[str, int]
  optimal_seconds: float | None

  @property
  def bytes(self) -> int:
    """Peak memory of a device."""
    held = self.parameter_bytes + self.optimizer_bytes + self.state_bytes + self.batch_bytes
    return held + self.result_bytes + self.temporary_bytes

  @property
  def fits(self) -> bool:
    """Whether the peak fits into a device's memory."""
    return self.bytes <= self.memory

  @property
  def seconds(self) -> float:
    """Roofline time: compute, memory and network overlap perfectly."""
    return max(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

  @property
  def cost(self) -> float:
    """Seconds by which plans are ranked; see `cost`."""
    return cost(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

  @property
  def roofline(self) -> str:
    """The resource that limits the roofline time: compute, HBM or interconnect."""
    times = {
      "compute": self.compute_seconds,
      "HBM": self.hbm_seconds,
      "interconnect": self.interconnect_seconds,
    }
    return max(times, key=lambda name: times[name])

  @property
  def tokens_per_second(self) -> float:
    """Tokens per second of all devices, at the roofline time."""
    return self.tokens / self.seconds

  @property
  def mfu(self) -> float:
    """MFU at the roofline time."""
    return self.model_flops / (self.peak_flops * self.seconds)

  def record(self) -> dict[str, Any]:
    """Converts the plan and its derived figures to plain values."""
    names = ("bytes", "fits", "seconds", "cost", "tokens_per_second")
    values = dataclasses.asdict(self) | {name: getattr(self, name) for name in names}
    # The keys that files of earlier versions have.
    values["accumulate"] = values.pop("grad_accum_steps")
    return values | {"bound": self.roofline, "utilisation": self.mfu}


def cost(compute: float, hbm: float, interconnect: float) -> float:
  """Roofline time plus 10% of the rest, in seconds: overlap is never perfect."""
  longest = max(compute, hbm, interconnect)
  return longest + 0.1 * (compute + hbm + interconnect - longest)


def plan(
  experiment: Experiment, hardware: Hardware, *, step: str = "train", model: str = ""
) -> Plan:
  """Compiles a program for hardware that need not be attached; allocates and runs nothing.

  Args:
    experiment: model, mesh, rows and optimizer.
    hardware: what to compile for.
    step: a name of `planning.programs.PROGRAMS`.
    model: the model's name in the plan.

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
  with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
    sharding_plan = experiment.sharding_plan(hardware.devices)
    try:
      program = PROGRAMS[step](experiment, sharding_plan)
    except ValueError as error:
      raise ConfigError(str(error)) from None
    try:
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
    memory=chip.memory,
    memory_share=chip.share,
    collectives=tuple(
      CollectiveTotal(*along, count, sent[along]) for along, count in sorted(times.items())
    ),
    model_flops=model_flops,
    counted_flops=flops,
    hbm_bytes=traffic,
    compute_seconds=max(flops, model_flops) / chip.flops,
    hbm_seconds=traffic / chip.bandwidth,
    interconnect_seconds=exchanging,
    peak_flops=chip.flops,
    tokens=program.tokens,
    compile_seconds=seconds,
    once_flops=text.flops(loops=False),
    xla_flops=xla.get("flops"),
    once_bytes=once.as_xla_counts,
    xla_bytes=xla.get("bytes accessed"),
    again_bytes=once.again,
    unseen_bytes=once.unseen,
    optimal_seconds=xla.get("optimal_seconds"),
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
