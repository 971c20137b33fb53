"""The best mesh, ZeRO stage, remat policy and number of microbatches for a training, by the
compiler's word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from config.config import ConfigError
from experiment import describe
from experiment.experiment import Experiment
from kernels import platform
from layers.remat import POLICIES
from models.accounting import account
from parallel.mesh import MeshSpec
from parallel.sharding_plan import Parallelism
from planning import plan, tables
from planning.hardware.chip import Hardware
from training.checkpoint import abstract_like
from training.saved_residuals import activation_bytes

# The remat policies that are tried. Not those that keep results in the host's memory: no plan
# counts the time of the copies, so that they would seem free.
_POLICIES = {name: policy for name, policy in POLICIES.items() if not policy.offloads}
# What cannot be better than the best by more than this share is not compiled.
_GAIN = 0.03
# Of the memory traffic of a plan, what another has at least: with the same remat policy, and with
# any.
_SAME_TRAFFIC, _ANY_TRAFFIC = 0.97, 0.5


@dataclasses.dataclass(frozen=True, order=True)
class Choice:
  """One way to run a training.

  Attributes:
    seconds: an estimate of the step, by operations and by what is sent; memory traffic is not in
      it.
    compute, interconnect: the seconds that these alone take.
    data, seq, model: sizes of the mesh axes.
    grad_accum_steps: microbatches.
    zero: ZeRO stage.
    remat: a name of `layers.remat.POLICIES`.
  """

  seconds: float
  compute: float
  interconnect: float
  data: int
  seq: int
  model: int
  grad_accum_steps: int
  zero: int
  remat: str

  @property
  def mesh(self) -> dict[str, int]:
    """The size of each mesh axis."""
    return {"data": self.data, "seq": self.seq, "model": self.model}

  def of(self, experiment: Experiment) -> Experiment:
    """The experiment, run like this."""
    mesh = Parallelism(
      mesh=MeshSpec(**self.mesh),
      rules=experiment.mesh.rules if experiment.mesh else Parallelism().rules,
      zero=self.zero,
    )
    step = dataclasses.replace(experiment.options.step, grad_accum_steps=self.grad_accum_steps)
    return dataclasses.replace(
      experiment,
      model=experiment.model.clone(remat=self.remat),
      mesh=mesh,
      options=dataclasses.replace(experiment.options, step=step),
    )

  def __str__(self) -> str:
    chosen = tables.choices(self.zero, self.remat, self.grad_accum_steps)
    return f"{tables.mesh(self.mesh)}, {chosen}"


def search(
  experiment: Experiment,
  hardware: Hardware,
  *,
  model: str = "",
  compiles: int = 16,
  tell: Callable[[str], None] = tables.tell,
) -> list[plan.Plan]:
  """Plans a training in the most promising ways, until none that is left can be better by 3%.

  What cannot fit is left out by a trace, in seconds where compiling takes a minute or more, and so
  is what needs no less than what the compiler refused.

  Args:
    experiment: model, batch and optimizer; its own mesh, ZeRO stage, remat policy and microbatches
      do not count, its rules do.
    hardware: what to compile for.
    model: its name, for the plans.
    compiles: most steps to compile.
    tell: takes a line about each.

  Returns:
    all plans that were made; the one that fits and has the least `cost` is the best.
  """
  plans: list[plan.Plan] = []
  best, left = math.inf, compiles
  traffic: dict[str, float] = {}
  refused: dict[str, float] = {}
  for choice in choices(experiment, hardware):
    hbm = _ANY_TRAFFIC * min(traffic.values(), default=0.0)
    hbm = max(hbm, _SAME_TRAFFIC * traffic.get(choice.remat, 0.0))
    if plan.cost(choice.compute, hbm, choice.interconnect) > (1 - _GAIN) * best:
      continue
    changed = choice.of(experiment)
    try:
      needed = least_bytes(changed, hardware)
    except ConfigError:
      continue  # the mesh does not divide the model or the rows
    if needed > hardware.chip.memory or needed >= refused.get(choice.remat, math.inf):
      continue
    if not left:
      tell(f"{model}: {compiles} steps were compiled; --compiles tries more, such as {choice}")
      break
    left -= 1
    try:
      found = plan.plan(changed, hardware, model=model)
    except MemoryError as error:
      refused[choice.remat] = needed
      tell(f"{model}: {choice}: does not fit: {error}")
      continue
    except ConfigError as error:
      tell(f"{model}: {choice}: {error}")
      continue
    tell(f"{model}: {tables.line(found)}")
    plans.append(found)
    if found.fits:
      best = min(best, found.cost)
      traffic[choice.remat] = min(traffic.get(choice.remat, math.inf), found.hbm_seconds)
    else:
      refused[choice.remat] = needed
  return plans


def arguments(found: plan.Plan) -> list[str]:
  """What to give `launch.train` after the gin files of a run, so that it trains as a plan says."""
  bindings = {
    "DATA_SHARDS": found.mesh["data"],
    "SEQUENCE_SHARDS": found.mesh["seq"],
    "MODEL_SHARDS": found.mesh["model"],
    "ZERO_STAGE": found.zero,
    "training.step.Options.grad_accum_steps": found.grad_accum_steps,
    "models.backbone.Backbone.remat": found.remat,
  }
  return ["gin/mesh/data.gin", *(f"--gin.{name}={value}" for name, value in bindings.items())]


def choices(experiment: Experiment, hardware: Hardware) -> list[Choice]:
  """Ways to run a training whose parameters and optimizer state fit, the fastest by estimate first.

  Time is split over `seq` where a microbatch has no second row for a device: before that, more
  shards of the batch or more microbatches do the same and exchange nothing within rows.
  """
  work = account(
    experiment.model, batch_size=experiment.batch_size, length=experiment.sequence_length
  )
  trained = sum(p.count for p in work.parameters if experiment.model.trains(p.path))
  optimizer_bytes = describe.device_bytes(describe.abstract_state(experiment).opt_state)
  found = []
  for data, seq, model, grad_accum_steps in _meshes(experiment, hardware.device_count):
    for zero in (1, 3) if data * seq > 1 else (0,):
      # Parameters and their gradients, and what the optimizer keeps of each in float32.
      shards = model * (data * seq if zero == 3 else 1)
      held = (work.parameter_bytes + 4 * trained) / shards
      held += optimizer_bytes / hardware.device_count
      if held > hardware.chip.memory:
        continue
      for remat, policy in _POLICIES.items():
        tokens = experiment.batch_size * experiment.sequence_length / hardware.device_count
        compute = policy.operations * work.training_flops * tokens / hardware.chip.flops
        mesh = (data, seq, model, grad_accum_steps, zero)
        sent = _sending(experiment, hardware, work.parameter_count, *mesh)
        # Every microbatch and every exchange within rows begins and ends something.
        more = 1 + 0.01 * math.log2(grad_accum_steps * seq)
        found.append(Choice(plan.cost(compute, 0, sent) * more, compute, sent, *mesh, remat))
  return sorted(found)


def _meshes(experiment: Experiment, devices: int) -> Iterator[tuple[int, int, int, int]]:
  """Sizes of data, seq and model, and the microbatches, that fit devices and rows."""
  rows, length = experiment.batch_size, experiment.sequence_length
  for data in _divisors(devices):
    for seq in _divisors(devices // data):
      for grad_accum_steps in _divisors(rows // data) if rows % data == 0 else ():
        alone = rows == data * grad_accum_steps
        if seq == 1 or (alone and length % seq == 0):
          yield data, seq, devices // data // seq, grad_accum_steps


def _sending(
  experiment: Experiment,
  hardware: Hardware,
  count: int,
  data: int,
  seq: int,
  model: int,
  grad_accum_steps: int,
  zero: int,
) -> float:
  """Seconds for what tensor parallelism and ZeRO send; what `seq` exchanges within rows is
  small.
  """
  others = data * seq
  tokens = experiment.batch_size * experiment.sequence_length / others
  # The stream in bfloat16, summed after each of two sub-blocks, forward and backward, in a ring.
  streams = 4 * experiment.model.depth * 2 * tokens * experiment.model.width * 2
  seconds = streams * (model - 1) / model / hardware.link(tuple(range(model)))
  # Gathered twice and scattered once per microbatch in bfloat16, or in float32 once per step.
  per_parameter = 3 * 2 * grad_accum_steps if zero == 3 else 2 * 4
  exchanged = per_parameter * count / model * (others - 1) / others
  return seconds + exchanged / hardware.link(tuple(range(0, model * others, model)))


def least_bytes(experiment: Experiment, hardware: Hardware) -> int:
  """What a device has to hold at least: the train state, gradients, and what the backward pass
  keeps.

  A trace tells. XLA's temporaries come on top; that it computes something again of its own accord,
  to save memory, is not counted on.

  Raises:
    ConfigError: mesh, hardware and model do not fit.
  """
  with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
    sharding_plan, options = experiment.sharding_plan(hardware.devices), experiment.options.step
    state = abstract_like(describe.abstract_state(experiment), sharding_plan.state)
    return (
      describe.device_bytes(state)
      + sharding_plan.gradient_bytes()
      + activation_bytes(
        experiment.model,
        sharding_plan,
        rows=experiment.batch_size // options.grad_accum_steps,
        length=experiment.sequence_length,
      )
    )


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
