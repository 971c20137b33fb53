"""Compiles a training step for devices that are not here, and estimates what it would take there."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from kernels import platform
from launch import describe
from launch.config import ConfigError
from launch.experiment import Experiment
from models.accounting import account
from parallel import audit, hlo
from parallel.layout import Layout, Parallelism
from parallel.mesh import MeshSpec
from parallel.topology import Slice
from training import step as step_lib
from training.checkpoint import abstract_like


@dataclasses.dataclass(frozen=True)
class Traffic:
  """All collectives of one kind along the same mesh axes, in one step.

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
  """One training step on one slice; bytes and operations are those of one device.

  Attributes:
    hardware: name of the slice.
    devices: its number of JAX devices.
    mesh: sizes of the mesh axes.
    zero: ZeRO stage.
    remat, accumulate: as configured.
    batch_size, length: rows per step and tokens per row.
    parameter_bytes, optimizer_bytes, batch_bytes: what is held between steps.
    temporary_bytes: what the compiled step needs besides, at its peak.
    memory: of a device.
    collectives: what is sent.
    model_flops: of the model's matrix products, forward and backward, without what is computed twice.
    counted_flops: of the products in the compiled program; those inside Pallas kernels are not seen.
    hbm_bytes: that the operations of the compiled program read and write.
    compute_seconds, hbm_seconds, interconnect_seconds: the least time for each alone; collectives count
      as rings along one axis of the torus.
    compile_seconds: time to trace and compile.
    once_flops, xla_flops: `counted_flops` with the body of each loop counted once, and XLA's own count,
      which does that and adds elementwise operations; None if it makes none.
    optimal_seconds: XLA's own estimate of the time, loops counted once; None if it makes none.
  """

  hardware: str
  devices: int
  mesh: dict[str, int]
  zero: int
  remat: str
  accumulate: int
  batch_size: int
  length: int
  parameter_bytes: int
  optimizer_bytes: int
  batch_bytes: int
  temporary_bytes: int
  memory: float
  collectives: tuple[Traffic, ...]
  model_flops: float
  counted_flops: float
  hbm_bytes: float
  compute_seconds: float
  hbm_seconds: float
  interconnect_seconds: float
  compile_seconds: float
  once_flops: float
  xla_flops: float | None
  optimal_seconds: float | None

  @property
  def bytes(self) -> int:
    """What a device has to hold at the peak."""
    held = self.parameter_bytes + self.optimizer_bytes + self.batch_bytes
    return held + self.temporary_bytes

  @property
  def fits(self) -> bool:
    """Whether that is less than a device has."""
    return self.bytes <= self.memory

  @property
  def seconds(self) -> float:
    """The least time of a step, if computing, memory and network overlap perfectly."""
    return max(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

  @property
  def bound(self) -> str:
    """What that time is spent on."""
    times = {
      "compute": self.compute_seconds,
      "HBM": self.hbm_seconds,
      "interconnect": self.interconnect_seconds,
    }
    return max(times, key=times.get)

  @property
  def tokens_per_second(self) -> float:
    """Of all devices, at that bound."""
    return self.batch_size * self.length / self.seconds

  def utilisation(self, peak: float) -> float:
    """Share of the peak rate that the model's own operations take, at that bound."""
    return self.model_flops / (peak * self.seconds)

  def record(self, peak: float) -> dict[str, Any]:
    """Everything as plain values."""
    found = dataclasses.asdict(self)
    names = ("bytes", "fits", "seconds", "bound", "tokens_per_second")
    return found | {name: getattr(self, name) for name in names} | {"mfu": self.utilisation(peak)}


def plan(experiment: Experiment, slice_: Slice) -> Plan:
  """Compiles a training step for a slice; nothing is allocated or run.

  Raises:
    ConfigError: model, mesh and slice do not fit; it says what would.
    MemoryError: the compiler says that the step does not fit; the message is its own.
  """
  if experiment.mesh is None:
    experiment = dataclasses.replace(experiment, mesh=Parallelism(mesh=MeshSpec(data=-1)))
  began = time.monotonic()
  with platform.targeting("tpu"):
    layout = experiment.layout(slice_.devices)
    state = abstract_like(describe.abstract_state(experiment), layout.state)
    batch = abstract_like(
      describe.abstract_batch(experiment),
      lambda tree: jax.tree.map(lambda _: layout.batch, tree),
    )
    step = step_lib.make_train_step(
      experiment.model, experiment.optimizer.transformation(), experiment.options.step, layout
    )
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      what = str(error).splitlines()[0]
      if "RESOURCE_EXHAUSTED" in what:
        raise MemoryError(what) from None
      raise ConfigError(f"the TPU compiler fails on this step: {what}") from None
  return _measured(experiment, slice_, layout, state, batch, compiled, time.monotonic() - began)


def _measured(experiment, slice_, layout: Layout, state, batch, compiled, seconds) -> Plan:
  program, chip = hlo.Program(compiled.as_text()), slice_.chip
  along = collections.defaultdict(lambda: [0, 0.0])
  for found in audit.collectives(program, layout.sizes):
    entry = along[found.kind, "+".join(found.axes)]
    entry[0] += found.times
    entry[1] += found.sent
  counted = account(
    experiment.model, batch_size=experiment.batch_size, length=experiment.sequence_length
  )
  tokens = experiment.batch_size * experiment.sequence_length
  flops, traffic = program.flops(), sum(program.traffic().values())
  sent = sum(size for _, size in along.values())
  model_flops = counted.training_flops * tokens / slice_.device_count
  costs = compiled.cost_analysis() or {}
  costs = costs[0] if isinstance(costs, list) else costs
  # A negative number is XLA's way to say that it does not know.
  xla = {name: value for name, value in costs.items() if value >= 0}
  return Plan(
    hardware=slice_.name,
    devices=slice_.device_count,
    mesh=layout.sizes,
    zero=layout.stage,
    remat=experiment.model.remat,
    accumulate=experiment.options.step.accumulate,
    batch_size=experiment.batch_size,
    length=experiment.sequence_length,
    parameter_bytes=describe.device_bytes(state.params),
    optimizer_bytes=describe.device_bytes(state.opt_state),
    batch_bytes=describe.device_bytes(batch),
    temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
    memory=chip.memory,
    collectives=tuple(
      Traffic(kind, axes, count, size) for (kind, axes), (count, size) in sorted(along.items())
    ),
    model_flops=model_flops,
    counted_flops=flops,
    hbm_bytes=traffic,
    compute_seconds=max(flops, model_flops) / chip.flops,
    hbm_seconds=traffic / chip.bandwidth,
    interconnect_seconds=sent / chip.link,
    compile_seconds=seconds,
    once_flops=program.flops(loops=False),
    xla_flops=xla.get("flops"),
    optimal_seconds=xla.get("optimal_seconds"),
  )


def variants(experiment: Experiment, slice_: Slice) -> Iterator[Experiment]:
  """The same training with other meshes, ZeRO stages, remat policies and microbatches.

  The cheapest first, by what each adds to the model's own arithmetic: what tensor parallelism and
  ZeRO stage 3 send, and what is computed twice. Left out is what cannot fit: whose parameters, gradients
  and optimizer state alone are more than a device holds.
  """
  count = sum(p.count for p in account(experiment.model, batch_size=1, length=1).parameters)
  tokens = experiment.batch_size * experiment.sequence_length
  chip, found = slice_.chip, []
  flops = account(
    experiment.model, batch_size=experiment.batch_size, length=experiment.sequence_length
  ).training_flops
  for model in _divisors(slice_.device_count):
    data = slice_.device_count // model
    for accumulate in (1, 2, 4, 8):
      if experiment.batch_size % (accumulate * data):
        continue
      for stage in (1, 3) if data > 1 else (0,):
        stored = count / model / (data if stage == 3 else 1)
        held = stored * 4 + count * 8 / slice_.device_count + stored * 4
        if held > chip.memory:
          continue
        rows = tokens / data * experiment.model.width * 2
        exchanged = 4 * experiment.model.depth * 2 * rows * (model - 1) / model
        exchanged += accumulate * 3 * 2 * count / model if stage == 3 else 8 * count / model
        for remat, again in (("none", 1.0), ("products", 1.03), ("mixers", 1.25), ("full", 1.33)):
          compute = flops * tokens * again / slice_.device_count / chip.flops
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
      changed.layout(slice_.devices)
    except ConfigError:
      continue
    yield changed


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
