"""Checks that training steps on a mesh equal those on one device, or are refused as declared.

Steps on the last mesh run rows in chunks of time, where the model allows them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator
from typing import Any, cast

import jax
import numpy as np
import optax

from contract import chunks
from contract.finding import Finding, compare_trees, largest
from contract.subject import Subject
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.mesh import AXES, MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism, ShardingPlan, on_one_device
from training import step as step_lib

DEVICES = 8
ROWS, STEPS = 8, 2
# Every mesh axis, and ZeRO from none to all. What stage 1 leaves out of stage 2 knows no model:
# tests/parallel. Of eight shards of a row, each is shorter than a window.
MESHES = (
  {"seq": 8, "zero": 0},
  {"data": 4, "model": 2, "zero": 2},
  {"data": 2, "seq": 2, "model": 2, "zero": 3},
)
# In a small model vectors and shared heads are a large share of the bytes.
RULES = Rules(max_replicated=1.0)
# Momentum keeps the gradients, for the comparison and for ZeRO to split.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
OPTIONS = step_lib.StepOptions()


def check(subject: Subject) -> Iterator[Finding]:
  """Compares steps on eight devices with steps on one: losses, and gradients in the momentum."""
  if jax.device_count() != DEVICES:
    says = f"it needs {DEVICES} devices, {jax.device_count()} are visible"
    yield Finding(case="training on a mesh", outcome="not run", says=says)
    return
  unsplit = refused(subject)
  expected = None
  for chosen in MESHES:
    sizes = {axis: chosen.get(axis, 1) for axis in AXES}
    kept = sizes | dict.fromkeys(unsplit, 1)
    if kept != sizes:
      yield _refusal(subject, sizes, chosen["zero"])
      # The other axes are still checked on all devices.
      kept["data"] = DEVICES // math.prod(size for axis, size in kept.items() if axis != "data")
    expected = expected or _train(subject)
    # Of each chunk, every device along `seq` has half.
    in_chunks = chosen is MESHES[-1] and chunks.allowed(subject.model)
    chunk = 2 * subject.window if in_chunks else None
    case = _name(kept, chosen["zero"]) + (" in chunks of time" if in_chunks else "")
    losses, momentum = _train(subject, kept, chosen["zero"], chunk)
    compared = zip(losses, expected[0], strict=True)
    relative = [(f"step {n}", abs(a / b - 1)) for n, (a, b) in enumerate(compared)]
    # Devices add their gradients in another order.
    allowed = 2 * subject.gradient_rounding
    yield largest(f"losses on {case}", relative, allowed)
    yield compare_trees(f"gradients on {case}", momentum, expected[1], allowed)


def refused(subject: Subject) -> set[str]:
  """Returns the mesh axes over which the model's mixers refuse to be split."""
  axes = {axis for mixer in subject.model.mixers() for axis in getattr(mixer, "unsplit_axes", ())}
  every: dict[str, int] = dict.fromkeys(AXES, 2)
  return {name for axis in axes for name in RULES.mesh_axes(axis, "unsplit_axes", every)}


def _refusal(subject: Subject, sizes: dict[str, int], zero: int) -> Finding:
  """Checks that a declared refusal is made before anything runs."""
  case = f"refuses {_name(sizes, zero)}"
  model, params = subject.without_remainder()
  sharding_plan = _sharding_plan(model, sizes, zero)
  step = step_lib.make_train_step(model, OPTIMIZER, OPTIONS, sharding_plan)
  batch = step_lib.abstract_batch(ROWS, _length(subject))
  try:
    jax.eval_shape(step, jax.eval_shape(lambda: _state(model, params)), batch)
  except ValueError as error:
    return Finding(case=case, outcome="refused", says=str(error))
  return Finding(case=case, outcome="failed", says="it is declared in unsplit_axes but not made")


def _train(
  subject: Subject, sizes: dict[str, int] | None = None, zero: int = 0, chunk: int | None = None
) -> tuple[list[float], Any]:
  """Returns the loss of each step and the final momentum; without sizes on one device."""
  model, params = subject.without_remainder()
  model = model.clone(time_chunk=chunk)
  sharding_plan = (
    _sharding_plan(model, sizes, zero) if sizes else on_one_device(list_parameters(model))
  )
  state = _state(model, params)
  state = jax.device_put(state, sharding_plan.state(state))
  step = jax.jit(step_lib.make_train_step(model, OPTIMIZER, OPTIONS, sharding_plan))
  batch = jax.device_put(subject.batch(ROWS, _length(subject)), sharding_plan.batch)
  losses = []
  for _ in range(STEPS):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  return losses, jax.tree.map(np.asarray, state.opt_state[0].trace)


def _state(model: LanguageModel, params: Any) -> step_lib.TrainState:
  # Chunks of time change no array of the state.
  return _empty(cast(Hashable, model.clone(time_chunk=None)))._replace(params=params)


@functools.lru_cache(maxsize=1)
def _empty(model: Any) -> step_lib.TrainState:
  """A state of zeros of a model, traced once for all meshes."""
  create = functools.partial(step_lib.initial_state, model, OPTIMIZER, OPTIONS, 0)
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(create))


def _sharding_plan(model: LanguageModel, sizes: dict[str, int], zero: int) -> ShardingPlan:
  mesh = MeshSpec(**sizes)
  return Parallelism(mesh=mesh, zero=zero, rules=RULES).sharding_plan(list_parameters(model))


def _length(subject: Subject) -> int:
  return 4 * subject.window


def _name(sizes: dict[str, int], zero: int) -> str:
  shown = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
  return f"{shown}, ZeRO {zero}"
