"""Programs compiled for a TPU contain the collectives of section 4.1, and no others."""

from __future__ import annotations

import functools
import math
import re

import flax.linen as nn
import jax
import optax

from benchmarks import absent_tpu
from inference import decoder
from inference.decode_sharding import OverMesh
from inference.sampling import Sampler
from kernels import platform
from models.accounting import abstract_parameters, list_parameters
from models.backbone import Backbone
from models.griffin import griffin
from models.hawk import hawk
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism
from planning.hlo.collectives import collectives
from training import step as step_lib
from training.checkpoint import abstract_like
from training.optimizer import AdamW

ROWS, LENGTH, WIDTH, WINDOW = 8, 128, 256, 16
# The kernels do not matter here, and these compile faster.
RECURRENCE = {"recurrence": "reference"}
BOTH = {**RECURRENCE, "heads": 8, "attention": "reference"}
MODELS = {
  # Each kind of its blocks once: a second recurrent block compiles to what the first does.
  "griffin": (
    functools.partial(griffin, **BOTH, pattern=("recurrent", "attention"), window=WINDOW),
    2,
  ),
  "hawk": (functools.partial(hawk, **RECURRENCE), 1),
}


def compiled_step(name: str, **options) -> str:
  """The text of a compiled `lowered_step`."""
  with platform.targeting("tpu"):
    return lowered_step(name, **options).compile().as_text()


def lowered_step(name: str, zero: int = 0, length: int = LENGTH, repeats: int = 2, **mesh: int):
  """A training step with some repeats of the model's pattern, for eight v5e chips."""
  build, pattern = MODELS[name]
  backbone = Backbone(vocab_size=4096, width=WIDTH, depth=repeats * pattern, dtype="bfloat16")
  model = build(backbone, rnn_width=WIDTH, gate_blocks=8)
  sharding_plan = Parallelism(
    mesh=MeshSpec(**{"data": 1} | mesh), zero=zero, rules=Rules(max_replicated=0.02)
  ).sharding_plan(list_parameters(model), absent_tpu.devices("v5e"))
  optimizer = AdamW(learning_rate=optax.constant_schedule(1e-3)).transformation()
  create = functools.partial(step_lib.initial_state, model, optimizer, step_lib.StepOptions(), 0)
  state = abstract_like(jax.eval_shape(create), sharding_plan.state)
  batch = abstract_like(
    step_lib.abstract_batch(ROWS, length),
    lambda tree: jax.tree.map(lambda _: sharding_plan.batch, tree),
  )
  step = step_lib.make_train_step(model, optimizer, step_lib.StepOptions(), sharding_plan)
  with platform.targeting("tpu"):
    return jax.jit(step, donate_argnums=0).lower(state, batch)


def test_a_sub_block_costs_one_all_reduce_forward_and_one_backward():
  """Of both kinds of blocks, and of the MLP."""
  _, pattern = MODELS["griffin"]
  found = collectives(compiled_step("griffin", model=8))
  assert {collective.kind for collective in found} == {"all-reduce"}
  # Of the activations: [B, T, D], and D with key and value beside it where heads are split.
  large = [
    c
    for c in found
    if any(shape[:2] == (ROWS, LENGTH) and len(shape) == 3 for _, shape in c.arrays)
  ]
  sub_blocks = 2 * pattern  # of one repeat: the loop's body stands in the program once
  embedding_and_logits = 2
  assert len(large) == 2 * sub_blocks + embedding_and_logits
  assert all(dtype == "bf16" for c in large for dtype, _ in c.arrays)
  # The rest: a few numbers per token for the loss, and the gradient's norm.
  rest = [shape for c in found if c not in large for _, shape in c.arrays]
  assert all(shape in ((), (ROWS, LENGTH)) for shape in rest)


def matrices(found, kind: str) -> set[tuple[int, ...]]:
  """Shapes of the collectives of one kind on whole or split weights; vectors are left out."""
  return {
    tuple(size for size in shape if size not in (1, 2))
    for c in found
    if c.kind == kind
    for _, shape in c.arrays
    if sum(size > 8 for size in shape) > 1
  }


def test_zero_3_gathers_parameters_and_scatters_gradients():
  found = collectives(compiled_step("hawk", zero=3, data=8))
  # linear_x, linear_y and linear_out; the MLP's gate and up, and down; the two gates.
  assert matrices(found, "all-gather") >= {(WIDTH, WIDTH), (WIDTH, 3 * WIDTH), (3 * WIDTH, WIDTH)}
  assert matrices(found, "reduce-scatter") >= {
    (WIDTH // 8, WIDTH),
    (WIDTH // 8, 3 * WIDTH),
    (3 * WIDTH // 8, WIDTH),
  }
  # Only the convolution's four taps, which eight devices cannot share, are summed whole.
  assert not {s for s in matrices(found, "all-reduce") if 4 not in s and 4096 not in s}


def test_zero_0_gathers_nothing():
  found = collectives(compiled_step("hawk", data=8))
  assert {collective.kind for collective in found} == {"all-reduce"}


def test_the_price_of_sharded_time_does_not_depend_on_the_length():
  """A convolution's halo, a window's halo, and log2(8) exchanges of two states: forward and
  backward.
  """

  short, long = (lowered_step("griffin", length=length, repeats=1, seq=8) for length in (128, 512))

  def asked(lowered) -> list[str]:
    """The types of what the program exchanges, before it is compiled."""
    found = re.findall(r"collective_permute\"?\(.*: \((tensor<\S+>)\) ->", lowered.as_text())
    assert len(found) > 10
    return sorted(found)

  assert asked(short) == asked(long)
  with platform.targeting("tpu"):
    found = collectives(short.compile().as_text())
  assert {c.kind for c in found} == {"all-reduce", "collective-permute"}
  sizes = {
    math.prod(shape)
    for c in found
    for _, shape in c.arrays
    if c.kind == "collective-permute" and shape
  }
  taps_before, window_before, head_dim = 3, WINDOW - 1, WIDTH // 8
  states, halo = ROWS * WIDTH, ROWS * window_before * 2 * head_dim
  assert sizes == {states, ROWS * taps_before * WIDTH, halo, ROWS * window_before}


def test_a_decoded_token_costs_one_all_reduce_per_sub_block():
  """And one for the embedding; its logits alone are gathered, for the sampler."""
  build, pattern = MODELS["griffin"]
  backbone = Backbone(vocab_size=4096, width=WIDTH, depth=pattern, dtype="bfloat16")
  model = build(backbone, rnn_width=WIDTH, gate_blocks=8)
  sharding_plan = Parallelism(mesh=MeshSpec(data=1, model=8)).sharding_plan(
    list_parameters(model), absent_tpu.devices("v5e")
  )
  params = abstract_like({"params": nn.unbox(abstract_parameters(model))}, sharding_plan.state)[
    "params"
  ]
  with platform.targeting("tpu"):
    prefill, step, *_ = decoder.Decoder(
      model, Sampler(temperature=0.0), where=OverMesh(sharding_plan)
    ).lower(params, rows=ROWS, length=LENGTH, max_tokens=64)
  assert prefill.compile().memory_analysis().temp_size_in_bytes < 2**28
  found = collectives(step.compile().as_text())
  summed = [c for c in found if c.kind == "all-reduce"]
  assert len(summed) == 2 * pattern + 1
  assert all(shape == (ROWS, 1, WIDTH) for c in summed for _, shape in c.arrays)
  gathered = [c for c in found if c.kind != "all-reduce"]
  assert {c.kind for c in gathered} == {"all-gather"}
  assert {math.prod(shape) for c in gathered for _, shape in c.arrays} == {ROWS * 4096}
