"""Trains small models on meshes of eight CPU devices and on one, and compares.

    python -m tests.parallel.sharded_training griffin:data=8 hawk:model=8,zero=3 ...
    python -m tests.parallel.sharded_training hawk:data=8,zero=1,keep=master
    hawk:model=8,optimizer=muon ...

Prints one JSON line per case; `keep` trains parameters in bfloat16, with a master copy or rounded
stochastically; `optimizer` takes another than AdamW; `time_chunk` runs rows in chunks, and compares
with whole rows; `carry` carries states from batch to batch, or passes them to other rows if it is
2. The devices must exist before JAX is imported, hence the process.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
# Devices that a CPU plays wait for each other in threads: with one per core, they wait for ever.
os.environ["NPROC"] = "64"

import dataclasses
import functools

import jax
import numpy as np
import optax

from data.loader import batch_of_rows
from models.accounting import list_parameters
from models.backbone import Backbone
from models.gated_deltanet import gated_deltanet
from models.griffin import griffin
from models.hawk import hawk
from models.kimi_linear import kimi_linear
from models.lora import adapted
from models.transformer import transformer
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism
from tests.kernels import interpreted_delta_rule
from training import adafactor, lion, muon
from training import optimizer as optimizer_lib
from training import step as step_lib

STEPS = 5
ROWS, LENGTH = 8, 64
IDS = 61
BACKBONE = Backbone(vocab_size=IDS, vocab_multiple=16, width=32, depth=4, use_bias=True)
MODELS = {
  # Each kind of block once: a second recurrent block only takes longer to compile.
  "griffin": functools.partial(
    griffin,
    rnn_width=64,
    heads=8,
    window=13,
    gate_blocks=8,
    pattern=("recurrent", "attention"),
  ),
  "hawk": functools.partial(hawk, rnn_width=64, gate_blocks=8),
  "transformer": functools.partial(transformer, heads=8),
}
# On a mesh with the TPU kernels, on one device with chunks in XLA.
DELTA_MODELS = {"gated_deltanet": gated_deltanet, "kimi_linear": kimi_linear}
MODELS |= {
  name: functools.partial(model, heads=4, chunk=16) for name, model in DELTA_MODELS.items()
}
interpreted_delta_rule.install()
MODELS["adapted_griffin"] = lambda backbone: adapted(MODELS["griffin"](backbone), rank=4)
# Adam divides by the gradient's own size: with a small epsilon the rounding of a gradient near zero
# would become a step of full size.
RATE = optax.constant_schedule(1e-2)
OPTIMIZERS = {
  "adamw": optimizer_lib.AdamW(learning_rate=RATE, clip_norm=0.5, epsilon=1e-2),
  # A sign is of full size too, however small what it is taken of: a small rate.
  "lion": lion.Lion(learning_rate=optax.constant_schedule(1e-4), clip_norm=0.5),
  "adafactor": adafactor.Adafactor(learning_rate=RATE, clip_norm=0.5, least_factored=16),
  "muon": muon.Muon(learning_rate=RATE, clip_norm=0.5, epsilon=1e-2),
}


def batches(carry: bool = False) -> list[dict[str, np.ndarray]]:
  """Rows of packed documents of random lengths, with padding at the end of some.

  With `carry`, full rows go on in the next batch, but for one.
  """
  before = np.full(ROWS, -1) if carry else None
  random = np.random.default_rng(0)
  result = []
  for _ in range(STEPS):
    tokens = random.integers(0, IDS, (ROWS, LENGTH))
    ids = np.cumsum(random.uniform(size=(ROWS, LENGTH)) < 0.08, axis=1) + 1
    padding = 3 * (np.arange(ROWS) % 3 if carry else np.arange(ROWS))
    ids[np.arange(LENGTH) >= LENGTH - padding[:, None]] = 0
    result.append(batch_of_rows(tokens, ids, bos_id=0, before=before))
    if carry:
      before = np.where((ids[:, -1] > 0) & (np.arange(ROWS) != 1), tokens[:, -1], -1)
  return result


def train(
  name: str,
  keep: str,
  rule: str,
  parallelism: Parallelism | None,
  grad_accum_steps: int = 1,
  time_chunk: int | None = None,
  carry: int = 0,
):
  """(losses, state) after a few steps, and the state before them."""
  kind = "float32" if keep == "float32" else "bfloat16"
  backbone = dataclasses.replace(BACKBONE, param_dtype=kind, time_chunk=time_chunk)
  kernels = {}
  if name in DELTA_MODELS:
    kernels["delta_rule"] = "chunked" if parallelism is None else "pallas_tpu"
  model = MODELS[name](backbone, **kernels)
  chosen = dataclasses.replace(OPTIMIZERS[rule], master_copy=keep == "master")
  optimizer = chosen.transformation()
  options = step_lib.StepOptions(
    grad_accum_steps=grad_accum_steps,
    z_loss=1e-3,
    rounding="stochastic" if keep == "stochastic" else "nearest",
    carry_state=carry == 1,
    initial_state="passed" if carry == 2 else "zero",
  )
  sharding_plan = parallelism and parallelism.sharding_plan(list_parameters(model))
  create = functools.partial(step_lib.initial_state, model, optimizer, options, 0, rows=ROWS)
  placed = functools.partial(step_lib.state_shardings, model, sharding_plan)
  if sharding_plan is None:
    state = jax.jit(create)()
  elif rule == "adamw" and keep == "float32":
    state = jax.jit(create, out_shardings=placed(jax.eval_shape(create)))()
  else:  # one program less to compile
    state = jax.device_put(first := unsharded(name, keep, rule)[2], placed(first))
  step = jax.jit(
    step_lib.make_train_step(model, optimizer, options, sharding_plan), donate_argnums=0
  )
  losses, first = [], jax.device_get(state)
  for batch in batches(carry == 1):
    state, metrics = step(state, jax.device_put(batch, sharding_plan and sharding_plan.batch))
    losses.append(float(metrics["loss"]))
  if sharding_plan:
    expected = jax.tree.map(lambda s: s.spec, placed(state))
    found = jax.tree.map(lambda x: x.sharding.spec, state)
    jax.tree.map(_assert_placed, found, expected)
  return losses, jax.device_get(state), first


def _assert_placed(found, expected) -> None:
  trimmed = [list(spec) for spec in (found, expected)]
  for entries in trimmed:
    while entries and entries[-1] is None:
      entries.pop()
  assert trimmed[0] == trimmed[1], (found, expected)


# Against whole batches of whole rows, whatever the case cuts: one program less to compile.
unsharded = functools.cache(functools.partial(train, parallelism=None))


def compare(case: str) -> dict:
  """Largest relative differences of losses and parameters from those of one device.

  Of parameters in bfloat16 the share of numbers that differ; of a master copy as of float32.
  """
  name, _, settings = case.partition(":")
  values = dict(pair.split("=") for pair in settings.split(","))
  stage, grad_accum_steps = int(values.pop("zero", 0)), int(values.pop("grad_accum_steps", 1))
  keep, rule = values.pop("keep", "float32"), values.pop("optimizer", "adamw")
  time_chunk = int(values.pop("time_chunk", 0)) or None
  carry = int(values.pop("carry", 0))
  mesh = MeshSpec(**{axis: int(size) for axis, size in ({"data": 1} | values).items()})
  # In a model this small, vectors are more than 1% of it.
  parallelism = Parallelism(mesh=mesh, zero=stage, rules=Rules(max_replicated=1.0))
  losses, state, _ = train(name, keep, rule, parallelism, grad_accum_steps, time_chunk, carry)
  expected_losses, expected, _ = unsharded(name, keep, rule, **({"carry": carry} if carry else {}))
  exact = (lambda state: state.opt_state.master) if keep == "master" else lambda state: state.params
  differences = jax.tree.map(
    _relative_difference,
    exact(state),
    exact(expected),
  )
  worst = max(jax.tree.leaves_with_path(differences), key=lambda item: item[1])
  pairs = list(zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True))
  return {
    "case": case,
    "losses": float(np.max(np.abs(np.divide(losses, expected_losses) - 1))),
    "parameters": worst[1],
    "states": max(
      (
        _relative_difference(*pair)
        for pair in zip(
          jax.tree.leaves(state.carried), jax.tree.leaves(expected.carried), strict=True
        )
      ),
      default=0.0,
    ),
    "worst": jax.tree_util.keystr(worst[0]),
    "different": sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs),
    "rounded": keep != "master" or _is_rounded(state.params, state.opt_state.master),
  }


def _relative_difference(found, expected) -> float:
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))


def _is_rounded(params, master) -> bool:
  """Whether parameters are the roundings of their master copy, to the bit."""
  equal = jax.tree.map(lambda p, m: np.array_equal(p, m.astype(p.dtype)), params, master)
  return all(jax.tree.leaves(equal))


if __name__ == "__main__":
  for argument in sys.argv[1:]:
    print(json.dumps(compare(argument)), flush=True)
