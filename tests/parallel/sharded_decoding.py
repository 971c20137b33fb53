"""Decodes with small models on meshes of eight CPU devices and on one, and compares.

    python -m tests.parallel.sharded_decoding griffin:data=2,model=4 ...

Prints one JSON line per case: the continuations of three prompts by either, and by the mesh without
a copy of the parameters; likelihoods and answers of a recall task by one device and by the mesh as
`launch.evaluate` uses it. The case `memory` gives bytes on each of eight devices that hold an
eighth of the parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys

from tests.parallel import sharded_training  # first: it makes the devices

import jax  # isort: skip
import flax.linen as nn
import numpy as np

from data.recall import RecallExample
from data.tokenizers import Symbols
from evaluation.likelihood import LikelihoodScorer, Request
from evaluation.recall import RecallScorer
from inference import decode_sharding
from inference.decode_sharding import OneDevice, OverMesh
from inference.decoder import Decoder, rows_of
from inference.sampling import Sampler
from models.accounting import abstract_parameters, list_parameters, tree_bytes
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism, ShardingPlan

# One is longer than the window of 13, and no mesh divides three rows.
PROMPTS = ([1, 5, 9, 3], [1], [1, *range(2, 40)])
STOP = 7
# Sizes of contexts and continuations, in batches of three shapes; no mesh divides the rows.
REQUESTS = ((1, 1), (1, 7), (30, 2), (31, 1), (20, 40), (70, 9))


def decode(model, params, where) -> list[list[int]]:
  decoder = Decoder(model, Sampler(temperature=0.8), stop_ids=[STOP], where=where)
  chunks = decoder.generate(params, PROMPTS, max_tokens=40, seed=3, chunk=16)
  return rows_of(chunks, len(PROMPTS))


def scores(model, params, where) -> dict:
  """Likelihoods of continuations, and what the model answers where examples ask it."""
  rng = np.random.default_rng(0)
  draw = lambda size: rng.integers(3, model.vocab_size, size)  # noqa: E731
  asked = [Request(*(draw(size).tolist() for size in sizes)) for sizes in REQUESTS]
  likelihoods = LikelihoodScorer(model, 64, 128, where or OneDevice())(params, asked)
  scorer = RecallScorer(model, Symbols(model.vocab_size - 4), where)
  tokens, last = draw((5, 40)), np.arange(20, 40)
  # What the model would answer, found by asking of every id whether it is right.
  right = []
  for given in range(model.vocab_size):
    examples = [
      RecallExample(np.where(np.arange(40) < 20, row, given), last, last) for row in tokens
    ]
    right.append([a.tolist()[0] for a in scorer.teacher_forced(params, examples, rows=8)])
  return {"likelihoods": likelihoods, "answers": np.argmax(right, axis=0).tolist()}


def memory() -> dict:
  """Memory of the programs of a decoder without a copy of the parameters, as XLA reports it."""
  backbone = dataclasses.replace(sharded_training.BACKBONE, width=64, depth=24)
  model = sharded_training.MODELS["hawk"](backbone)
  sharding_plan = sharding_plan_of(model, {"data": 8}, 3)
  params = nn.unbox(abstract_parameters(model))
  stored = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    params,
    sharding_plan.state({"params": params})["params"],
  )
  decoder = Decoder(model, Sampler(), where=OverMesh(sharding_plan, lean=True))
  lowered = decoder.lower(stored, rows=8, length=64, max_tokens=1)
  found = {"case": "memory", "parameters": tree_bytes(params)}
  for name in ("prefill", "advance"):
    used = getattr(lowered, name).compile().memory_analysis()
    found[name] = used.argument_size_in_bytes + used.temp_size_in_bytes
  return found


def sharding_plan_of(model, sizes: dict, stage: int) -> ShardingPlan:
  parallelism = Parallelism(
    mesh=MeshSpec(**{"data": 1} | sizes), zero=stage, rules=Rules(max_replicated=1.0)
  )
  return parallelism.sharding_plan(list_parameters(model))


@functools.cache
def on_one_device(name: str):
  """A model, its parameters, and what one device makes of them: the same for all meshes."""
  model = sharded_training.MODELS[name](sharded_training.BACKBONE)
  tokens = jax.numpy.zeros((1, 1), jax.numpy.int32)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
  # Else the embedding, which is tied, makes every token predict itself, whatever the state.
  params = params | {"stack": jax.tree.map(lambda x: 4 * x, params["stack"])}
  return model, params, decode(model, params, None), scores(model, params, None)


def compare(case: str) -> dict:
  """The rows that one device and a mesh give."""
  name, _, settings = case.partition(":")
  values = {key: int(size) for key, size in (pair.split("=") for pair in settings.split(","))}
  stage = values.pop("zero", 0)
  model, params, rows, scored = on_one_device(name)
  sharding_plan = sharding_plan_of(model, values, stage)
  stored = jax.device_put(params, sharding_plan.state({"params": params})["params"])
  return {
    "case": case,
    "one": rows,
    "mesh": decode(model, stored, OverMesh(sharding_plan)),
    "lean": decode(model, stored, OverMesh(sharding_plan, lean=True)),
    "scores": scored,
    "scores on the mesh": scores(model, stored, decode_sharding.of(sharding_plan)),
  }


if __name__ == "__main__":
  for argument in sys.argv[1:]:
    found = memory() if argument == "memory" else compare(argument)
    print(json.dumps(found), flush=True)
