"""With muP steps move what a model computes as far at every width; without it they do not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gin
from base.errors import UserError
from config.config import ConfigError
from data import tokenizers
from data.loader import batch_of_rows
from experiment import experiment, trained
from experiment.run_directory import RunDirectory
from models import maximal_update
from parallel.tree_paths import joined
from training.lion import Lion
from training.losses import token_losses
from training.optimizer import AdamW

MODELS = ("griffin", "transformer", "gated_deltanet")
RATE = 1e-2


def built(model, width, *arguments, base=32, more=()):
  """An experiment of two blocks, with as many heads per channel at every width."""
  sizes = {"WIDTH": width, "RNN_WIDTH": width, "HEADS": width // 16, "DEPTH": 2, "WINDOW": 16}
  given = [f"--gin.{name}={value}" for name, value in sizes.items()]
  if base:
    small = {"WIDTH": base, "RNN_WIDTH": base, "HEADS": base // 16}
    given.append(f"--gin.MUP_BASE={[f'{name} = {value}' for name, value in small.items()]}")
  files = [
    "runs/griffin_quickstart.gin",
    f"models/{model}.gin",
    *(["train/mup.gin"] if base else []),
    *more,
  ]
  given += [f"--gin.LEARNING_RATE={RATE}", "--gin.WARMUP_STEPS=0", *arguments]
  if model == "griffin":
    given.append("--gin.griffin.griffin.pattern=('recurrent', 'attention')")
  return experiment.build(experiment.load(files, given, shared=True))


def changes(model, width, **options):
  """Root mean squares of the last hidden states, and of their change in four steps."""
  one = built(model, width, **options)
  net, transformation = one.model, one.optimizer.transformation()
  walk = np.cumsum(np.random.default_rng(0).integers(0, 3, (8, 33)), axis=1) % 17
  batch = batch_of_rows(walk[:, 1:], np.ones((8, 32), np.int32), bos_id=0)

  @jax.jit
  def step(params, state):
    gradient = jax.grad(lambda p: token_losses(net, p, batch)[0].mean())(params)
    updates, state = transformation.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  @jax.jit
  def hidden(params):
    given = batch["inputs"], None, None, None, None
    return net.apply({"params": params}, *given, method="_blocks")[0]

  params = nn.unbox(jax.jit(net.init)(jax.random.key(0), batch["inputs"][:1, :1])["params"])
  first, state = hidden(params), jax.jit(transformation.init)(params)
  for _ in range(4):
    params, state = step(params, state)
  return rms(first), rms(hidden(params) - first)


def rms(x):
  return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("model", MODELS)
def test_steps_move_the_hidden_states_as_far_at_every_width(model):
  """The coordinate check of Yang et al. 2022, appendix D."""
  (first, moved), (wide_first, wide_moved) = (changes(model, width) for width in (32, 256))
  assert wide_first == pytest.approx(first, rel=0.2)
  assert wide_moved == pytest.approx(moved, rel=0.25)


def test_without_it_steps_move_wide_models_further():
  moved, wide_moved = (changes("hawk", width, base=None)[1] for width in (32, 256))
  assert wide_moved > 3 * moved


def test_at_the_base_nothing_changes():
  with_mup, without = built("griffin", 32), built("griffin", 32, base=None)
  assert with_mup.optimizer == without.optimizer
  key, tokens = jax.random.key(0), jnp.ones((1, 4), jnp.int32)
  own, other = (one.model.init_with_output(key, tokens) for one in (with_mup, without))
  jax.tree.map(np.testing.assert_array_equal, nn.unbox(own), nn.unbox(other))


def test_rates_follow_the_fan_in_of_maps_and_leave_vectors_and_the_embedding():
  factors = dict(built("griffin", 128).optimizer.rate_factors)
  repeats = "stack/repeats/block_0"
  assert factors[f"{repeats}/mixer/linear_x/kernel"] == 1 / 4
  # The gates' 16 blocks grow with the width.
  assert factors[f"{repeats}/mixer/rg_lru/gate_a/kernel"] == 1 / 4
  assert {path.rpartition("/")[2] for path in factors} == {"kernel"}
  assert not [path for path in factors if "conv1d" in path or "embedding" in path]
  blocks = "--gin.griffin.griffin.gate_blocks=%HEADS"
  fixed = dict(built("griffin", 128, blocks).optimizer.rate_factors)
  assert not [path for path in fixed if "gate_a" in path]


def test_adapters_rates_follow_their_fan_in_too():
  """Of x A B, A has as many inputs as the map; B as many as the rank."""
  factors = dict(built("hawk", 128, more=["train/lora.gin"]).optimizer.rate_factors)
  adapters = {path: factor for path, factor in factors.items() if "lora" in path}
  assert {path.rpartition("/")[2] for path in adapters} == {"lora_a"}
  assert adapters["stack/repeats/block_0/mlp/up/lora_a"] == 1 / 4


def test_embedded_tokens_have_the_factor_of_the_base():
  """RecurrentGemma's sqrt(width) would let them grow, and their rate."""
  base, wide = (built("recurrent_gemma", width).model for width in (32, 128))
  assert wide.embedding_scale == base.embedding_scale > 1


@pytest.mark.parametrize(("model", "is_deeper"), [("mamba2", True), ("hawk", False)])
def test_models_of_an_asked_size_have_a_base_of_their_depth(model, is_deeper):
  """PARAMETERS makes models without MLPs deeper: depth is no width."""
  found = built(model, 64, "--gin.PARAMETERS=1e6")
  assert (found.model.depth > 4) == is_deeper
  assert found.chosen_size
  assert found.model.logit_factor == 1 / 2
  maps = {path: factor for path, factor in found.optimizer.rate_factors if "mixer" in path}
  assert set(maps.values()) == {1 / 2}


def test_functions_that_are_called_later_read_the_bindings_of_the_run():
  built("griffin", 64)
  assert gin.query_parameter("WIDTH/gin.macro.value") == 64


def test_factors_change_the_rate_and_not_the_decay():
  rate = optax.constant_schedule(1.0)
  params = {"a": {"kernel": jnp.full((2, 2), 3.0)}, "b": {"kernel": jnp.full((2, 2), 3.0)}}
  for optimizer in (AdamW, Lion):
    tx = optimizer(learning_rate=rate, weight_decay=0.1, rate_factors=(("a/kernel", 0.25),))
    tx = tx.transformation()
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -(0.25 + 0.3), rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["kernel"], -(1.0 + 0.3), rtol=1e-5)


@pytest.mark.parametrize("zero_centered", [False, True])
def test_the_factor_of_the_logits_folds_into_the_last_norm(zero_centered):
  norm = f"--gin.backbone.Backbone.zero_centered_norm={zero_centered}"
  model = built("hawk", 64, norm, "--gin.backbone.Backbone.logit_cap=30.0").model
  tokens = jnp.arange(12)[None]
  params = nn.unbox(model.init(jax.random.key(0), tokens)["params"])
  plain, fold = maximal_update.folded(model)
  folded = jax.tree_util.tree_map_with_path(lambda path, x: fold(joined(path), x), params)
  assert plain.logit_factor == 1
  assert model.logit_factor == 1 / 2
  expected, found = (
    m.apply({"params": p}, tokens)[0] for m, p in ((model, params), (plain, folded))
  )
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_the_factor_is_folded_with_the_digits_of_float32():
  norm = "--gin.backbone.Backbone.zero_centered_norm=True"
  _, fold = maximal_update.folded(built("hawk", 64, norm).model)
  stored = jnp.full(4, 0.003, jnp.bfloat16)
  folded = fold("final_norm/scale", stored)
  assert folded.dtype == jnp.bfloat16
  # Within half of the last digit: 1.003 is 1 in bfloat16.
  np.testing.assert_allclose(folded.astype(jnp.float32), 1.003 / 2 - 1, atol=2**-10)


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["--gin.MUP_BASE=['WIDTH = 32', 'RNN_WIDTH = 32', 'HEADS = 4', 'DEPTH = 1']"], "no depth"),
    (["--gin.MUP_BASE=['WIDTH = 32', 'RNN_WIDTH = 32', 'HEADS = 2', 'DEPTH = 4']"], "no depth"),
    (["--gin.MUP_BASE=['WIDTH = 32', 'RNN_WIDTH = 32']"], "head_dim=16, and 8 in the base"),
    (["--gin.MUP_BASE=['griffin.griffin.window = 32']"], "is no macro such as"),
    (["--gin.MUP_BASE=['WIDTH = oops']"], "MUP_BASE"),
  ],
)
def test_bases_that_do_not_fit_are_refused(arguments, told):
  with pytest.raises(ConfigError, match=told):
    built("griffin", 64, *arguments)


def test_bases_without_effect_are_refused():
  message = r"MUP_BASE = \['RNN_WIDTH = 32'\] has no effect: nothing in this configuration uses"
  with pytest.raises(ConfigError, match=message):
    built("transformer", 64, "--gin.MUP_BASE=['RNN_WIDTH = 32']")


def test_runs_start_from_runs_of_the_same_base(tmp_path):
  """Their logits would have another factor, and all else would look right."""
  files = ["runs/griffin_quickstart.gin", "train/mup.gin"]
  wide = [f"--gin.{name}" for name in ("WIDTH=512", "RNN_WIDTH=512", "HEADS=8")]
  for name, given in (("scaled", files), ("plain", files[:1])):
    run = RunDirectory(tmp_path / name)
    run.write_config(experiment.load(given, wide), "made for a test")
    tokenizers.save(tokenizers.Bytes(), run.path)

  def start(run, files, *arguments):
    init = f"--gin.experiment.experiment.Experiment.init_from='{tmp_path / run}'"
    trained.check_start(experiment.build(experiment.load(files, [*arguments, init])))

  for run, given in (("scaled", files), ("plain", files[:1])):
    start(run, given, *wide)
  start("plain", files)  # at the base's widths, where muP changes nothing
  with pytest.raises(UserError, match=r"was trained with MUP_BASE = \['WIDTH = 256', .*Add gin/tr"):
    start("scaled", files[:1], *wide)
  with pytest.raises(UserError, match=r"MUP_BASE = None, not \['WIDTH.*Set --gin.MUP_BASE=None"):
    start("plain", files, *wide)


def test_optimizers_without_it_are_refused():
  files = ["runs/griffin_quickstart.gin", "optimizer/muon.gin", "train/mup.gin"]
  with pytest.raises(ConfigError, match="Muon has no muP here"):
    experiment.build(experiment.load(files))
