"""Checks that a training step compiles for TPUs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from contract import chunks
from contract.finding import Finding
from contract.subject import Subject
from kernels import platform
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism
from planning.hardware.catalogue import hardware
from training import step as step_lib
from training.checkpoint import abstract_like

LENGTH = 128
OPTIMIZER = optax.sgd(0.1)
RULES = Rules(max_replicated=1.0)  # as in contract/sharding.py
# Under ZeRO, gradients of bfloat16 are summed over devices: in loops over microbatches and over
# pieces of the logits, which small models' steps have not, TPU compilers have failed on them.
MICROBATCHES, PIECES = 2, 4


def check(subject: Subject) -> Iterator[Finding]:
  """Compiles steps with TPU kernels, for slices that need not be attached.

  A plain step, and the step of a large model with either kind of output head, the second in chunks
  of time and with carried states where the model allows them.
  """
  model, _ = subject.without_remainder()
  large = model.with_types(jnp.bfloat16, jnp.float32)
  other = large.clone(tied=not large.tied)
  head = "a tied" if other.tied else "an untied"
  in_chunks = ""
  if chunks.allowed(other):
    in_chunks = " in chunks of time, with carried states,"
    other = other.clone(time_chunk=LENGTH // 4)
  cases = {
    "compiles for v4-8": ("v4-8", model, 0),
    "compiles for v5e-4, as large models train": ("v5e-4", large, 3),
    f"compiles for v4-8, as large models train{in_chunks} with {head} head": ("v4-8", other, 3),
  }
  for case, (name, variant, zero) in cases.items():
    if importlib.util.find_spec("libtpu") is None:
      says = "the TPU compiler (libtpu) is not installed: install the extra `tpu` or `test`"
      yield Finding(case=case, outcome="not run", says=says)
      continue
    try:
      _compile(variant, name, zero)
    except Exception as error:  # a kernel's, or the compiler's
      lines = str(error).splitlines() or [""]
      yield Finding(case=case, outcome="failed", says=f"{type(error).__name__}: {lines[0]}")
    else:
      yield Finding(case=case, outcome="passed")


def _compile(model: LanguageModel, name: str, zero: int) -> None:
  slice_, options = hardware(name), step_lib.StepOptions()
  if zero:
    logits = 4 * LENGTH * model.padded_vocab_size  # of a device's row in a microbatch
    options = step_lib.StepOptions(
      grad_accum_steps=MICROBATCHES,
      max_logit_bytes=logits // PIECES,
      carry_state=model.time_chunk is not None,
    )
  with platform.targeting("tpu"):
    parallelism = Parallelism(mesh=MeshSpec(data=-1), zero=zero, rules=RULES)
    sharding_plan = parallelism.sharding_plan(list_parameters(model), slice_.devices)
    rows = options.grad_accum_steps * slice_.device_count
    create = functools.partial(step_lib.initial_state, model, OPTIMIZER, options, 0, rows=rows)
    placed = functools.partial(step_lib.state_shardings, model, sharding_plan)
    state = abstract_like(jax.eval_shape(create), placed)
    batch = abstract_like(
      step_lib.abstract_batch(rows, LENGTH),
      lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree),
    )
    step = step_lib.make_train_step(model, OPTIMIZER, options, sharding_plan)
    jax.jit(step).lower(state, batch).compile()
