"""With muP steps move what a model computes as far at every width; without it they do not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from config.config import ConfigError
from data.loader import batch_of_rows
from experiment import experiment
from models import maximal_update
from parallel.tree_paths import joined
from training.lion import Lion
from training.losses import token_losses
from training.optimizer import AdamW

MODELS = ("griffin", "transformer", "gated_deltanet")
RATE = 1e-2


def built(model, width, *arguments, base=32):
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


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    (["--gin.MUP_BASE=['WIDTH = 32', 'RNN_WIDTH = 32', 'HEADS = 4', 'DEPTH = 1']"], "no depth"),
    (["--gin.MUP_BASE=['WIDTH = 32', 'RNN_WIDTH = 32']"], "head_dim=16, and 8 in the base"),
    (["--gin.MUP_BASE=['griffin.griffin.window = 32']"], "is no macro such as"),
    (["--gin.MUP_BASE=['WIDTH = oops']"], "MUP_BASE"),
  ],
)
def test_bases_that_do_not_fit_are_refused(arguments, told):
  with pytest.raises(ConfigError, match=told):
    built("griffin", 64, *arguments)


def test_optimizers_without_it_are_refused():
  files = ["runs/griffin_quickstart.gin", "optimizer/muon.gin", "train/mup.gin"]
  with pytest.raises(ConfigError, match="Muon has no muP here"):
    experiment.build(experiment.load(files))
