"""Lowers the programs that a plan compiles: a training step, an evaluation, a prefill, a token."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax

from evaluation.perplexity import Scorer
from experiment import describe
from experiment.experiment import Experiment
from inference import decode_sharding
from inference.decode_sharding import OverMesh
from inference.decoder import Decoder
from inference.sampling import Sampler
from models.accounting import abstract_parameters, account
from parallel.rules import named_axes
from parallel.sharding_plan import ShardingPlan
from training import rates
from training import step as step_lib
from training.checkpoint import abstract_like
from training.saved_residuals import activation_bytes


@dataclasses.dataclass(frozen=True)
class Program:
  """A lowered program; bytes are per device.

  Attributes:
    lowered: the program, ready to compile.
    parameters: bytes of the parameters in memory: in decoding also those that are not its
      arguments, but stay for the next prefill.
    optimizer, state, batch: bytes of its other arguments: optimizer state, decode state or states
      that rows carry from step to step, tokens.
    updated: the donated arguments.
    first_updated: index of the first of them among the results.
    activations: bytes that autodiff keeps for the backward pass; 0 without one.
    gradients: bytes of the gradients in float32; 0 without a backward pass.
    model_flops: FLOPs of the model's matrix products on all devices, without recomputation.
    tokens: tokens that it reads or generates, on all devices.
  """

  lowered: jax.stages.Lowered
  parameters: int
  optimizer: int
  state: int
  batch: int
  updated: Any
  first_updated: int
  activations: int
  gradients: int
  model_flops: float
  tokens: int


def training_step(
  experiment: Experiment, sharding_plan: ShardingPlan, memory: float | None = None
) -> Program:
  """Lowers a training step."""
  del memory
  model, options = experiment.model, experiment.options.step
  rows, length = experiment.batch_size, experiment.sequence_length
  state = describe.placed_state(experiment, sharding_plan)
  batch = _batch(experiment, sharding_plan)
  step = step_lib.jit_train_step(
    model, rates.transformation(experiment.optimizer), options, sharding_plan
  )
  counted = account(model, batch_size=rows, length=length)
  return Program(
    lowered=step.lower(state, batch, rates.abstract(sharding_plan)),
    parameters=describe.device_bytes(state.params),
    optimizer=describe.device_bytes(state.opt_state),
    state=describe.device_bytes(state.carried),
    batch=describe.device_bytes(batch),
    updated=state,
    first_updated=0,
    activations=activation_bytes(
      model, sharding_plan, options, rows=rows // options.grad_accum_steps, length=length
    ),
    gradients=sharding_plan.gradient_bytes(),
    model_flops=counted.training_flops * rows * length,
    tokens=rows * length,
  )


def evaluation(
  experiment: Experiment, sharding_plan: ShardingPlan, memory: float | None = None
) -> Program:
  """Lowers the evaluation of a batch: the loss of every token."""
  del memory
  model, rows, length = experiment.model, experiment.batch_size, experiment.sequence_length
  params = _parameters(experiment, sharding_plan, "stored")
  batch = _batch(experiment, sharding_plan)
  return Program(
    lowered=Scorer(model, sharding_plan).lower(params, batch),
    parameters=describe.device_bytes(params),
    optimizer=0,
    state=0,
    batch=describe.device_bytes(batch),
    updated=(),
    first_updated=0,
    activations=0,
    gradients=0,
    model_flops=model.matmul_flops(length) * rows * length,
    tokens=rows * length,
  )


def prefill(
  experiment: Experiment, sharding_plan: ShardingPlan, memory: float | None = None
) -> Program:
  """Lowers a prefill: a batch of prompts of `sequence_length` tokens."""
  model, rows, length = experiment.model, experiment.batch_size, experiment.sequence_length
  params, _, found = _decoding(experiment, sharding_plan, memory)
  # Only the logits of the last token are computed.
  unread = rows * (length - 1) * 2 * model.padded_vocab_size * model.width
  return Program(
    lowered=found.prefill,
    parameters=describe.device_bytes(params),
    optimizer=0,
    state=0,
    batch=2 * 4 * rows * length // _row_shards(sharding_plan),
    updated=(),
    first_updated=0,
    activations=0,
    gradients=0,
    model_flops=model.matmul_flops(length) * rows * length - unread,
    tokens=rows * length,
  )


def decoding(
  experiment: Experiment, sharding_plan: ShardingPlan, memory: float | None = None
) -> Program:
  """Lowers a decode step: one token after each prompt of `sequence_length` tokens.

  Args:
    experiment, sharding_plan: what to decode with.
    memory: bytes of a device; two copies of the parameters must fit, or one is used.
  """
  model, rows, length = experiment.model, experiment.batch_size, experiment.sequence_length
  params, lean, found = _decoding(experiment, sharding_plan, memory)
  # FLOPs of the last token: those of a row minus those of a row without it.
  last = model.matmul_flops(length) * length - model.matmul_flops(length - 1) * (length - 1)
  return Program(
    lowered=found.advance,
    parameters=describe.device_bytes(found.params) + (0 if lean else describe.device_bytes(params)),
    optimizer=0,
    state=describe.device_bytes(found.carry),
    batch=0,
    updated=found.carry,
    first_updated=2,  # after the tokens and the flags of finished rows
    activations=0,
    gradients=0,
    model_flops=last * rows,
    tokens=rows,
  )


PROGRAMS = {
  "train": training_step,
  "evaluate": evaluation,
  "prefill": prefill,
  "decode": decoding,
}


def _batch(experiment: Experiment, sharding_plan: ShardingPlan) -> dict[str, jax.ShapeDtypeStruct]:
  return abstract_like(
    describe.abstract_batch(experiment),
    lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree),
  )


def _parameters(experiment: Experiment, sharding_plan: ShardingPlan, kind: str) -> Any:
  """Returns shapes, dtypes and shardings of the parameters; `kind`: see `ShardingPlan.tree`."""
  params = nn.unbox(abstract_parameters(experiment.model))
  return jax.tree.map(
    lambda leaf, spec: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(sharding_plan.mesh, spec)
    ),
    params,
    sharding_plan.tree(params, kind),
  )


def _decoding(experiment: Experiment, sharding_plan: ShardingPlan, memory: float | None):
  """Returns the stored parameters, whether they are used without a copy, and the programs."""
  lean = decode_sharding.is_lean(sharding_plan, memory)
  params = _parameters(experiment, sharding_plan, "stored" if lean else "used")
  where = OverMesh(sharding_plan, lean=lean)
  decoder = Decoder(experiment.model, Sampler(temperature=0.0), where=where)
  # One token: caches are rounded up, so more would add a whole block to them.
  programs = decoder.lower(
    params, rows=experiment.batch_size, length=experiment.sequence_length, max_tokens=1
  )
  return params, lean, programs


def _row_shards(sharding_plan: ShardingPlan) -> int:
  return math.prod(sharding_plan.sizes[name] for name in named_axes(sharding_plan.batch.spec[:1]))
