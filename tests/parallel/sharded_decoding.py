"""Decodes with small models on meshes of eight CPU devices and on one, and compares.

    python -m tests.parallel.sharded_decoding griffin:data=2,model=4 ...

Prints one JSON line per case: the continuations of three prompts by either.
"""

from __future__ import annotations

import json
import sys

from tests.parallel import sharded_training  # first: it makes the devices

import jax  # isort: skip
import flax.linen as nn

from inference.decoder import Decoder, rows_of
from inference.sampling import Sampler
from models.accounting import list_parameters
from parallel.layout import Parallelism
from parallel.mesh import MeshSpec
from parallel.rows import OverMesh
from parallel.rules import Rules

# One is longer than the window of 13, and no mesh divides three rows.
PROMPTS = ([1, 5, 9, 3], [1], [1, *range(2, 40)])
STOP = 7


def decode(model, params, where) -> list[list[int]]:
  decoder = Decoder(model, Sampler(temperature=0.8), stop_ids=[STOP], where=where)
  chunks = decoder.generate(params, PROMPTS, max_tokens=40, seed=3, chunk=16)
  return rows_of(chunks, len(PROMPTS))


def compare(case: str) -> dict:
  """The rows that one device and a mesh give."""
  name, _, settings = case.partition(":")
  values = {key: int(size) for key, size in (pair.split("=") for pair in settings.split(","))}
  stage = values.pop("zero", 0)
  model = sharded_training.MODELS[name](sharded_training.BACKBONE)
  tokens = jax.numpy.zeros((1, 1), jax.numpy.int32)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
  # Else the embedding, which is tied, makes every token predict itself, whatever the state.
  params = params | {"stack": jax.tree.map(lambda x: 4 * x, params["stack"])}
  layout = Parallelism(
    mesh=MeshSpec(**{"data": 1} | values), zero=stage, rules=Rules(max_replicated=1.0)
  ).layout(list_parameters(model))
  stored = jax.device_put(params, layout.state({"params": params})["params"])
  return {
    "case": case,
    "one": decode(model, params, None),
    "mesh": decode(model, stored, OverMesh(layout)),
  }


if __name__ == "__main__":
  for argument in sys.argv[1:]:
    print(json.dumps(compare(argument)), flush=True)
