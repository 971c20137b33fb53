"""Finds the fastest training setup by compiling candidates.

A setup is a mesh, a ZeRO stage, a remat policy and a number of microbatches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from base import heartbeat
from config.config import Config, ConfigError
from config.source import Macro
from experiment import describe
from experiment.experiment import Experiment
from kernels import platform
from layers.remat import POLICIES
from models.accounting import account
from parallel.mesh import MACROS, MeshSpec
from parallel.sharding_plan import Parallelism
from planning import plan, tables
from planning.hardware.chip import Hardware
from planning.record import Plan, cost
from training.saved_residuals import activation_bytes

# Remat policies to try, without those that offload: the estimates do not count the time of the
# copies, so they would seem free.
_POLICIES = {name: policy for name, policy in POLICIES.items() if not policy.offloads}
# Candidates that cannot beat the best by more than this share are not compiled.
_GAIN = 0.03
# The least HBM traffic of a candidate, relative to plans compiled before: with the same remat
# policy, and with any.
_SAME_TRAFFIC, _ANY_TRAFFIC = 0.97, 0.5
# The least ratio of expected time to estimate of a candidate, relative to plans compiled before.
_OTHERS = 0.9
# The macro of gin/train/steps.gin, and the parameter that it sets.
_MICROBATCHES, _GRAD_ACCUM_STEPS = "MICROBATCHES", "training.step.StepOptions.grad_accum_steps"


@dataclasses.dataclass(frozen=True, order=True)
class Choice:
  """A training setup with estimates of its time.

  Attributes:
    seconds: estimated time of a step from FLOPs and bytes sent; HBM traffic is left out.
    compute, interconnect: seconds for each alone.
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
    """Applies the setup to an experiment."""
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
) -> list[Plan]:
  """Compiles candidate setups, fastest estimate first, until none left can be better by 3%.

  A candidate is assumed to be slower than its estimate by `_slower`.

  A trace takes seconds where compiling takes a minute or more. It rules out setups that cannot
  fit, and those that need at least as much memory as one that did not fit.

  Args:
    experiment: model, batch, optimizer and sharding rules; its mesh, ZeRO stage, remat policy and
      microbatches are replaced.
    hardware: what to compile for.
    model: the model's name in the plans.
    compiles: the most steps to compile.
    tell: receives a progress line per candidate.

  Returns:
    all plans; the one that fits and has the least expected time is the best.
  """
  plans: list[Plan] = []
  best, left = math.inf, compiles
  slower = 1.0  # than its estimate; see `_slower`
  traffic: dict[str, float] = {}
  refused: dict[str, float] = {}
  waiting = choices(experiment, hardware)

  def may_win(choice: Choice) -> bool:
    hbm = _ANY_TRAFFIC * min(traffic.values(), default=0.0)
    hbm = max(hbm, _SAME_TRAFFIC * traffic.get(choice.remat, 0.0))
    estimate = cost(choice.compute, hbm, choice.interconnect)
    return slower * estimate <= (1 - _GAIN) * best

  # From the start each time: a compiled plan may show that others can be faster than was thought.
  while choice := next(filter(may_win, waiting), None):
    waiting.remove(choice)
    changed = choice.of(experiment)
    try:
      needed = least_bytes(changed, hardware)
    except ConfigError:
      continue  # the mesh does not divide the model or the rows
    if needed > hardware.chip.memory or needed >= refused.get(choice.remat, math.inf):
      continue
    if not left:
      tell(f"{model}: stopped after --compiles={compiles}; the next candidate is {choice}")
      break
    left -= 1
    tell(f"{model}: compiling {choice}")
    try:
      with heartbeat.telling(f"{model}: compiling", tell):
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
    if found.memory.fits:
      best = min(best, found.expected.seconds)
      slower = _slower(plans)
      traffic[choice.remat] = min(traffic.get(choice.remat, math.inf), found.roofline.hbm_seconds)
    else:
      refused[choice.remat] = needed
  return plans


def _slower(plans: list[Plan]) -> float:
  """Returns how much slower than its estimate any plan is assumed to be.

  That is the least ratio of expected time to `Roofline.cost` so far, less a margin for plans with
  another mesh or remat policy.
  """
  ratio = min(p.expected.seconds / p.roofline.cost for p in plans if p.memory.fits)
  return max(1.0, _OTHERS * ratio)


def microbatches_name(configuration: Config) -> str:
  """Returns the name by which arguments set a configuration's number of microbatches."""
  for key, setting in configuration.parameters.items():
    if key.full_name == _GRAD_ACCUM_STEPS and setting.value == Macro(_MICROBATCHES):
      return _MICROBATCHES
  return _GRAD_ACCUM_STEPS


def arguments(found: Plan, microbatches: str = _MICROBATCHES) -> list[str]:
  """Returns the arguments that make `launch.train` use a plan's setup, after a run's gin files.

  Args:
    found: the plan.
    microbatches: see `microbatches_name`.
  """
  bindings = {
    **{macro: found.mesh[axis] for axis, macro in MACROS.items()},
    "ZERO_STAGE": found.zero,
    microbatches: found.grad_accum_steps,
    "models.backbone.Backbone.remat": found.remat,
  }
  return ["gin/mesh/data.gin", *(f"--gin.{name}={value}" for name, value in bindings.items())]


def choices(experiment: Experiment, hardware: Hardware) -> list[Choice]:
  """Lists setups with room for parameters and optimizer state, the fastest estimate first.

  Time is split over `seq` only when a device has one row per microbatch: until then, more batch
  shards or more microbatches save as much memory and exchange nothing within rows.
  """
  # The configuration may name kernels that only this hardware has.
  with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
    work = account(
      experiment.model, batch_size=experiment.batch_size, length=experiment.sequence_length
    )
    optimizer_bytes = describe.device_bytes(describe.abstract_state(experiment).opt_state)
  trained = sum(p.count for p in work.parameters if experiment.model.trains(p.path))
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
        # Each doubling of microbatches or time shards costs about 1% in launches and exchanges.
        more = 1 + 0.01 * math.log2(grad_accum_steps * seq)
        found.append(Choice(cost(compute, 0, sent) * more, compute, sent, *mesh, remat))
  return sorted(found)


def _meshes(experiment: Experiment, devices: int) -> Iterator[tuple[int, int, int, int]]:
  """Yields (data, seq, model, microbatches) that divide the devices and the rows."""
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
  """Seconds for what tensor parallelism and ZeRO send; exchanges along `seq` are negligible."""
  others = data * seq
  tokens = experiment.batch_size * experiment.sequence_length / others
  # The residual stream in bfloat16: all-reduced in a ring after each of two sub-blocks, forward
  # and backward.
  streams = 4 * experiment.model.depth * 2 * tokens * experiment.model.width * 2
  seconds = streams * (model - 1) / model / hardware.link(tuple(range(model)))
  # ZeRO 3: two all-gathers and a reduce-scatter per microbatch in bfloat16; else an all-reduce per
  # step in float32.
  per_parameter = 3 * 2 * grad_accum_steps if zero == 3 else 2 * 4
  exchanged = per_parameter * count / model * (others - 1) / others
  return seconds + exchanged / hardware.link(tuple(range(0, model * others, model)))


def least_bytes(experiment: Experiment, hardware: Hardware) -> int:
  """Least memory of a device, by a trace: train state, gradients and saved activations.

  XLA's temporaries come on top. XLA may also recompute values to save memory: that is not counted.

  Raises:
    ConfigError: mesh, hardware and model do not fit.
  """
  with platform.targeting(hardware.platform, hardware.devices[0].device_kind):
    sharding_plan, options = experiment.sharding_plan(hardware.devices), experiment.options.step
    state = describe.placed_state(experiment, sharding_plan)
    return (
      describe.device_bytes(state)
      + sharding_plan.gradient_bytes()
      + activation_bytes(
        experiment.model,
        sharding_plan,
        options,
        rows=experiment.batch_size // options.grad_accum_steps,
        length=experiment.sequence_length,
      )
    )


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]
