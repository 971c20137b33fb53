"""Checks that a training step compiles for TPUs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import jax
import optax

from contract.finding import Finding
from contract.subject import Subject
from kernels import platform
from models.accounting import list_parameters
from parallel.mesh import MeshSpec
from parallel.sharding_plan import Parallelism
from planning.hardware.catalogue import hardware
from training import step as step_lib
from training.checkpoint import abstract_like

SLICES = ("v5e-4", "v4-8")
LENGTH = 128
OPTIMIZER = optax.sgd(0.1)
OPTIONS = step_lib.Options()


def check(subject: Subject) -> Iterator[Finding]:
  """Compiles a data-parallel step with TPU kernels, for slices that need not be attached."""
  for name in SLICES:
    case = f"compiles for {name}"
    if importlib.util.find_spec("libtpu") is None:
      says = "the TPU compiler (libtpu) is not installed: install the extra `tpu` or `test`"
      yield Finding(case=case, outcome="not run", says=says)
      continue
    try:
      _compile(subject, name)
    except Exception as error:  # a kernel's, or the compiler's
      lines = str(error).splitlines() or [""]
      yield Finding(case=case, outcome="failed", says=f"{type(error).__name__}: {lines[0]}")
    else:
      yield Finding(case=case, outcome="passed")


def _compile(subject: Subject, name: str) -> None:
  slice_ = hardware(name)
  model, _ = subject.without_remainder()
  with platform.targeting("tpu"):
    sharding_plan = Parallelism(mesh=MeshSpec(data=-1)).sharding_plan(
      list_parameters(model), slice_.devices
    )
    create = functools.partial(step_lib.initial_state, model, OPTIMIZER, OPTIONS, 0)
    state = abstract_like(jax.eval_shape(create), sharding_plan.state)
    batch = abstract_like(
      step_lib.abstract_batch(slice_.device_count, LENGTH),
      lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree),
    )
    step = step_lib.make_train_step(model, OPTIMIZER, OPTIONS, sharding_plan)
    jax.jit(step).lower(state, batch).compile()
