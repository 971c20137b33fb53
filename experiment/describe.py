"""Describes a configuration's parameters, sharding and costs without allocating arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from base.wording import plural
from experiment import mesh_advice, step_memory
from experiment.experiment import Experiment
from models.accounting import Account, account
from models.language_model import LanguageModel
from parallel.sharding_plan import ShardingPlan
from training import rates
from training import step as step_lib
from training.checkpoint import abstract_like


def description(experiment: Experiment) -> str:
  """Formats the parameter table, and FLOPs and bytes per token."""
  length, batch_size = experiment.sequence_length, experiment.batch_size
  counted = account(experiment.model, batch_size=batch_size, length=length)
  rows = [("parameter", "shape", "type", "axes", "optimizer", "count")]
  rows += [
    (
      parameter.path,
      " x ".join(map(str, parameter.shape)),
      str(parameter.dtype),
      ", ".join(axis or "-" for axis in parameter.axes),
      _treatment(experiment, parameter.path),
      f"{parameter.count:,}",
    )
    for parameter in counted.parameters
  ]
  # A sentence: in the table it would push all values to the right.
  size = [] if experiment.chosen_size is None else [experiment.chosen_size]
  costs = [*_vocabulary(experiment.model), *_costs(counted, experiment.options.steps)]
  if experiment.options.step.keeps_states:
    carried = device_bytes(abstract_state(experiment).carried)
    costs.append((f"states carried by {plural(batch_size, 'row')}", show_bytes(carried)))
  return "\n".join([table(rows, right=(5,)), "", *size, table(costs, right=(1,))])


def _treatment(experiment: Experiment, path: str) -> str:
  """Describes the update of the parameter at a path."""
  if not experiment.model.trains(path):
    return "frozen"
  return experiment.optimizer.treatment(tuple(path.split("/")))


def sharding(experiment: Experiment) -> str:
  """Formats the sharding of every parameter, and the bytes per device."""
  if experiment.mesh is None:
    return "one device: nothing is split. Add a file of gin/mesh/ to split the run."
  sharding_plan = mesh_advice.sharding_plan(experiment)
  rows: list[Sequence[str]] = [
    ("parameter", "axes", "used", "stored", "optimizer state", "bytes per device")
  ]
  for parameter in sharding_plan.parameters:
    place = sharding_plan.param_shardings[parameter.path]
    rows.append(
      (
        parameter.path,
        ", ".join(axis or "-" for axis in parameter.axes),
        *(_placement(spec) for spec in (place.used, place.stored, place.optimizer)),
        show_bytes(sharding_plan.held_bytes(parameter, place.stored)),
      )
    )
  state = placed_state(experiment, sharding_plan)
  mesh = " x ".join(f"{name}={size}" for name, size in sharding_plan.sizes.items())
  totals = [
    ("mesh", f"{mesh}, ZeRO stage {sharding_plan.stage}"),
    ("parameters per device", show_bytes(device_bytes(state.params))),
    ("optimizer state per device", show_bytes(device_bytes(state.opt_state))),
  ]
  if state.carried is not None:
    totals.append(("carried states per device", show_bytes(device_bytes(state.carried))))
  return "\n".join([table(rows, right=(5,)), "", table(totals, right=(1,))])


def _placement(spec: jax.sharding.PartitionSpec) -> str:
  names = ["+".join((n,) if isinstance(n, str) else n) if n else "-" for n in spec]
  return ", ".join(names)


def _vocabulary(model: LanguageModel) -> list[tuple[str, str]]:
  """Formats the tokenizer's size, if the embedding has more rows."""
  ids, rows = model.vocab_size, model.padded_vocab_size
  if ids == rows:
    return []
  return [("vocabulary", f"{ids:,} ids in {rows:,} rows: {rows - ids:,} are padding")]


def _costs(counted: Account, steps: int) -> list[tuple[str, str]]:
  tokens = counted.batch_size * counted.length
  return [
    ("parameters", f"{counted.parameter_count:,} ({show_bytes(counted.parameter_bytes)})"),
    ("tokens per row, rows per step", f"{counted.length:,}, {counted.batch_size:,}"),
    ("FLOPs per token, forward", _si(counted.forward_flops)),
    ("FLOPs per token, forward and backward", _si(counted.training_flops)),
    ("FLOPs per step", _si(counted.training_flops * tokens)),
    ("steps, FLOPs of all", f"{steps:,}, {_si(counted.training_flops * tokens * steps)}"),
    ("least bytes per token, forward", show_bytes(counted.forward_bytes)),
    (f"decode state per sequence of {counted.length:,} tokens", show_bytes(counted.state_bytes)),
  ]


@dataclasses.dataclass(frozen=True)
class DryRun:
  """Memory of a compiled training step; bytes are per device.

  Attributes:
    state_bytes: parameters, optimizer state and counters.
    carried_bytes: states that rows carry to the next batch.
    batch_bytes: one batch.
    temporary_bytes: temporary memory of the compiled step at its peak.
    seconds: time to trace and compile.
    device_memory: bytes that a process may use of a device; None if unknown.
  """

  state_bytes: int
  batch_bytes: int
  temporary_bytes: int
  seconds: float
  device_memory: int | None = None
  carried_bytes: int = 0

  @property
  def total_bytes(self) -> int:
    """All of them."""
    return self.state_bytes + self.carried_bytes + self.batch_bytes + self.temporary_bytes

  @property
  def fits(self) -> bool:
    """Whether a step fits, as far as is known."""
    return self.device_memory is None or self.total_bytes <= self.device_memory

  def __str__(self) -> str:
    total = self.total_bytes
    rows = [
      ("parameters and optimizer state", show_bytes(self.state_bytes)),
      *([("carried states", show_bytes(self.carried_bytes))] if self.carried_bytes else []),
      ("one batch", show_bytes(self.batch_bytes)),
      ("temporary memory of a step", show_bytes(self.temporary_bytes)),
      ("total", show_bytes(total)),
      ("compilation", f"{self.seconds:.1f} s"),
    ]
    if self.device_memory is None:
      return table(rows, right=(1,))
    rows.insert(-1, ("memory of a device", show_bytes(self.device_memory)))
    if self.fits:
      rows.insert(-1, ("fits", f"{show_bytes(self.device_memory - total)} left"))
      return table(rows, right=(1,))
    return (
      f"{table(rows, right=(1,))}\n\nA step does not fit into the memory of a device. Lower "
      "--gin.BATCH_SIZE or --gin.SEQUENCE_LENGTH, raise --gin.MICROBATCHES, or split the run over "
      "more devices with a file of gin/mesh/."
    )


def dry_run(experiment: Experiment) -> DryRun:
  """Compiles a training step without allocating arrays."""
  start = time.monotonic()
  sharding_plan = mesh_advice.sharding_plan(experiment)
  state, batch = placed_state(experiment, sharding_plan), abstract_batch(experiment)
  batch = abstract_like(batch, lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree))
  step = step_lib.jit_train_step(
    experiment.model,
    rates.transformation(experiment.optimizer),
    experiment.options.step,
    sharding_plan,
  )
  compiled = step.lower(state, batch, rates.abstract(sharding_plan)).compile()
  memory = compiled.memory_analysis()
  return DryRun(
    state_bytes=device_bytes(state._replace(carried=None)),
    carried_bytes=device_bytes(state.carried),
    batch_bytes=device_bytes(batch),
    temporary_bytes=memory.temp_size_in_bytes if memory else 0,
    seconds=time.monotonic() - start,
    device_memory=step_memory.of_device(),
  )


def abstract_state(experiment: Experiment) -> step_lib.TrainState:
  """Returns shapes and dtypes of the train state."""
  optimizer = rates.transformation(experiment.optimizer)
  return jax.eval_shape(
    lambda: step_lib.initial_state(
      experiment.model,
      optimizer,
      experiment.options.step,
      experiment.seed,
      rows=experiment.batch_size,
    )
  )


def placed_state(experiment: Experiment, sharding_plan: ShardingPlan) -> step_lib.TrainState:
  """Returns shapes, dtypes and shardings of the train state."""
  placed = functools.partial(step_lib.state_shardings, experiment.model, sharding_plan)
  return abstract_like(abstract_state(experiment), placed)


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of a batch."""
  return step_lib.abstract_batch(experiment.batch_size, experiment.sequence_length)


def device_bytes(tree: Any) -> int:
  """Bytes per device of a tree of abstract arrays."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
    * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def table(rows: Sequence[Sequence[str]], right: tuple[int, ...]) -> str:
  """Formats rows as aligned columns; columns in `right` are right-aligned."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  return "\n".join(
    "  ".join(
      text.rjust(width) if column in right else text.ljust(width)
      for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def _si(value: float) -> str:
  for prefix in ("", "k", "M", "G", "T", "P"):
    if value < 1000:
      return f"{value:.3g} {prefix}".rstrip()
    value /= 1000
  return f"{value:.3g} E"


def show_bytes(value: float) -> str:
  """Formats a number of bytes with a fitting unit."""
  for prefix in ("", "ki", "Mi", "Gi", "Ti"):
    if value < 1024:
      return f"{value:.4g} {prefix}B"
    value /= 1024
  return f"{value:.4g} PiB"
