"""Losses and gradients of padded vocabularies on meshes of eight CPU devices and on one.

    python -m tests.parallel.sharded_padding tied:zero=3,multiple=16 ...

Prints one JSON line per case, compared with the model without padding on one device.
"""

from __future__ import annotations

import functools
import json
import sys

from tests.parallel import sharded_training  # first: it makes the devices

import jax  # isort: skip
import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from data.loader import batch_of_rows
from models.accounting import list_parameters
from models.backbone import Backbone
from models.hawk import hawk
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism
from training import step as step_lib

IDS = 61
OPTIONS = step_lib.StepOptions(z_loss=1e-2)


def build(head: str, multiple: int):
  """A model of 61 ids."""
  backbone = Backbone(vocab_size=IDS, width=32, depth=2, vocab_multiple=multiple, logit_cap=5.0)
  return hawk(backbone, rnn_width=64, gate_blocks=8).clone(tied=head == "tied")


def batch() -> dict[str, np.ndarray]:
  """Rows in which every id is read and predicted."""
  tokens = np.random.default_rng(0).permutation(np.arange(8 * 32) % IDS).reshape(8, 32)
  return batch_of_rows(tokens, np.ones_like(tokens), bos_id=0)


def differentiate(model, parallelism: Parallelism | None):
  """(loss, gradient) of the initial parameters."""
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
  sharding_plan = parallelism and parallelism.sharding_plan(list_parameters(model))

  def function(params, batch, key):
    return step_lib.loss_and_gradient(model, OPTIONS, params, batch, key)

  if sharding_plan:
    function = sharding_plan.gradient(function, trained=lambda params: params)
    params = jax.device_put(params, sharding_plan.state({"params": params})["params"])
  key = jax.random.key_data(jax.random.key(1))
  (loss, _), gradient = jax.jit(function)(
    params, jax.device_put(batch(), sharding_plan and sharding_plan.batch), key
  )
  return float(loss), jax.device_get(gradient)


@functools.cache
def unpadded(head: str):
  """(loss, gradient) without padding on one device."""
  return differentiate(build(head, 1), None)


def cut(gradient):
  """The gradient of the rows of ids, and that of the padding."""
  gradient = jax.tree.map(np.asarray, gradient)
  table = gradient["embedding"]["embedding"]
  padding = [table[IDS:]]
  gradient["embedding"] = {"embedding": table[:IDS]}
  if "head" in gradient:
    padding.append(gradient["head"]["kernel"][:, IDS:])
    gradient["head"] = {"kernel": gradient["head"]["kernel"][:, :IDS]}
  return gradient, padding


def compare(case: str) -> dict:
  """Returns the differences from a model without padding, and the gradient of the padding."""
  head, _, settings = case.partition(":")
  values = {key: int(size) for key, size in (pair.split("=") for pair in settings.split(","))}
  multiple, stage = values.pop("multiple"), values.pop("zero", 0)
  expected_loss, expected = unpadded(head)
  mesh = MeshSpec(**{"data": 1} | values)
  parallelism = Parallelism(mesh=mesh, zero=stage, rules=Rules(max_replicated=1.0))
  loss, found = differentiate(build(head, multiple), parallelism if values else None)
  found, padding = cut(found)
  differences = jax.tree.map(sharded_training._relative_difference, found, expected)
  return {
    "case": case,
    "loss": abs(loss / expected_loss - 1),
    "gradient": max(jax.tree.leaves(differences)),
    "rows": IDS + len(padding[0]),
    "padding": max(float(np.abs(p).max(initial=0.0)) for p in padding),
  }


if __name__ == "__main__":
  for argument in sys.argv[1:]:
    print(json.dumps(compare(argument)), flush=True)
