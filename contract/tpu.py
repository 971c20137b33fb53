"""Checks that a training step compiles for TPUs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from contract.finding import Finding
from contract.sharding import RULES
from contract.subject import Subject
from kernels import platform
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.mesh import MeshSpec
from parallel.sharding_plan import Parallelism
from planning.hardware.catalogue import hardware
from training import step as step_lib
from training.checkpoint import abstract_like

SLICES = ("v5e-4", "v4-8")
LENGTH = 128
OPTIMIZER = optax.sgd(0.1)
# What a large model's step has and a small one's has not: microbatches, and logits in pieces.
OPTIONS = step_lib.StepOptions(grad_accum_steps=2, max_logit_bytes=1)


def check(subject: Subject) -> Iterator[Finding]:
  """Compiles steps with TPU kernels under ZeRO stage 3, for slices that need not be attached.

  On one slice also with the other kind of output head.
  """
  model, _ = subject.without_remainder()
  # Gradients are then summed over devices in bfloat16, on which a TPU compiler has failed.
  model = model.with_types(jnp.bfloat16, jnp.float32)
  other = model.clone(tied=not model.tied)
  for name, variant in (*((name, model) for name in SLICES), (SLICES[0], other)):
    head = "" if variant is model else f" with {'a tied' if variant.tied else 'an untied'} head"
    case = f"compiles for {name}{head}"
    if importlib.util.find_spec("libtpu") is None:
      says = "the TPU compiler (libtpu) is not installed: install the extra `tpu` or `test`"
      yield Finding(case=case, outcome="not run", says=says)
      continue
    try:
      _compile(variant, name)
    except Exception as error:  # a kernel's, or the compiler's
      lines = str(error).splitlines() or [""]
      yield Finding(case=case, outcome="failed", says=f"{type(error).__name__}: {lines[0]}")
    else:
      yield Finding(case=case, outcome="passed")


def _compile(model: LanguageModel, name: str) -> None:
  slice_ = hardware(name)
  with platform.targeting("tpu"):
    parallelism = Parallelism(mesh=MeshSpec(data=-1), zero=3, rules=RULES)
    sharding_plan = parallelism.sharding_plan(list_parameters(model), slice_.devices)
    create = functools.partial(step_lib.initial_state, model, OPTIMIZER, OPTIONS, 0)
    state = abstract_like(jax.eval_shape(create), sharding_plan.state)
    batch = abstract_like(
      step_lib.abstract_batch(OPTIONS.grad_accum_steps * slice_.device_count, LENGTH),
      lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree),
    )
    step = step_lib.make_train_step(model, OPTIMIZER, OPTIONS, sharding_plan)
    jax.jit(step).lower(state, batch).compile()
