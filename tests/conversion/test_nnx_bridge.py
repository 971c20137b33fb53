"""A trained run as an NNX module: the same function, quantized by Qwix, trained on by Tunix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import nnx
from tunix.sft import peft_trainer

from base.errors import UserError
from conversion import nnx_bridge
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from launch import train
from layers.stack import unstack
from models.accounting import list_parameters
from models.lora import linear_maps
from tests import small_models, small_run

TEXT = "Document 7: é 🎉 says hello.\n"
ZOO = ("griffin", "hawk", "transformer")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("nnx")
  file = small_run.write(folder / "run.gin")
  samples = "--gin.experiment.experiment.Experiment.samples=()"
  assert train.main([str(file), f"--run_dir={folder / 'run'}", samples]) == 0
  return trained_lib.load(RunDirectory(folder / "run"), "best")


@pytest.fixture(scope="module")
def tokens(run):
  ids = run.tokenizer.encode(TEXT)
  return jnp.asarray([ids, ids[::-1]], jnp.int32)


def loss(module, input_tokens, input_mask):
  logits, _ = module(input_tokens)
  return cross_entropy(logits, input_tokens, input_mask)


def cross_entropy(logits, tokens, mask):
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
  return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()


def test_logits_and_gradients_are_those_of_the_linen_model(run, tokens):
  model, mask = run.experiment.model, jnp.ones_like(tokens)

  def of_linen(params):
    logits = model.apply({"params": params}, tokens)[0]
    return cross_entropy(logits, tokens, mask), logits

  def of_nnx(module):
    logits, _ = module(tokens)
    return cross_entropy(logits, tokens, mask), logits

  (_, wanted), wanted_gradients = jax.jit(jax.value_and_grad(of_linen, has_aux=True))(run.params)
  module = nnx_bridge.to_nnx(model, run.params)
  (_, found), gradients = nnx.jit(nnx.value_and_grad(of_nnx, has_aux=True))(module)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)  # logits of a few units, float32
  gradients = nnx.to_pure_dict(gradients)
  assert jax.tree.structure(gradients) == jax.tree.structure(wanted_gradients)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), gradients, wanted_gradients
  )
  assert jax.tree.structure(nnx_bridge.parameters(module)) == jax.tree.structure(run.params)


def quantized(model, params, tokens):
  """As docs/from_nnx.md does it."""
  model = model.clone(scan=False)
  params = params | {"stack": unstack(params["stack"])}
  rules = [qwix.QuantizationRule(weight_qtype=jnp.int8)]
  quantized_model = qwix.quantize_model(model, qwix.PtqProvider(rules))
  abstract = jax.eval_shape(quantized_model.init, jax.random.key(0), tokens)["params"]
  return quantized_model, qwix.quantize_params(params, abstract)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    *((name, {}) for name in ZOO),
    ("griffin", {"tied": False, "dtype": jnp.dtype(jnp.bfloat16)}),
  ],
)
def test_int8_weights_have_nearly_the_same_logits(name, options):
  model = small_models.build(name, depth=2, **options)
  params = small_models.initialize(model)
  tokens = jax.random.randint(jax.random.key(1), (4, 24), 0, small_models.VOCAB_SIZE)
  wanted = jax.jit(lambda: model.apply({"params": params}, tokens)[0])()
  quantized_model, int8 = quantized(model, params, tokens)
  stored = [leaf for leaf in jax.tree.leaves(int8) if leaf.dtype == jnp.int8]
  # Every linear map of the two blocks.
  assert len(stored) >= len(linear_maps(model.clone(scan=False)))
  module = nnx_bridge.to_nnx(quantized_model, int8)
  found = nnx.jit(lambda module: module(tokens)[0])(module)
  error = jnp.sqrt(jnp.mean((found - wanted) ** 2)) / jnp.std(wanted)
  # Rounding a weight to one of 254 steps up to its channel's largest adds 0.6% of noise to a
  # product (32 normal weights: the largest is 2.2 times their size; 2.2 / 127 / sqrt(12)). Six
  # products lie behind each other.
  assert 1e-4 < error < 6 * 0.006


def test_a_step_of_tunix_lowers_the_loss_and_is_kept(run, tokens, tmp_path):
  module = nnx_bridge.to_nnx(run.experiment.model, run.params)
  batch = peft_trainer.TrainingInput(input_tokens=tokens, input_mask=jnp.ones_like(tokens))
  measure = nnx.jit(loss)
  before = measure(module, tokens, batch.input_mask)
  config = peft_trainer.TrainingConfig(eval_every_n_steps=100, max_steps=2)
  trainer = peft_trainer.PeftTrainer(module, optax.adam(1e-3), config)
  trainer = trainer.with_loss_fn(loss).with_gen_model_input_fn(
    lambda x: {"input_tokens": x.input_tokens, "input_mask": x.input_mask}
  )
  trainer.train([batch] * 2)
  after = measure(module, tokens, batch.input_mask)
  assert after < before - 0.01
  nnx_bridge.save(module, run, tmp_path / "tuned")
  tuned = trained_lib.load(RunDirectory(tmp_path / "tuned"), "best")
  again = nnx_bridge.to_nnx(tuned.experiment.model, tuned.params)
  assert loss(again, tokens, batch.input_mask) == after
  assert tuned.tokenizer.encode(TEXT) == run.tokenizer.encode(TEXT)


def test_only_parameters_of_the_model_are_saved(run, tokens, tmp_path):
  model, params = run.experiment.model, run.params
  split = nnx_bridge.to_nnx(model.clone(scan=False), params | {"stack": unstack(params["stack"])})
  missing = next(p.path for p in list_parameters(model) if "repeats" in p.path)
  with pytest.raises(UserError, match=f"has nothing for {missing}, the model of"):
    nnx_bridge.save(split, run, tmp_path / "no")
  with pytest.raises(UserError, match="has nothing for"):
    nnx_bridge.save(nnx_bridge.to_nnx(*quantized(model, params, tokens)), run, tmp_path / "no")
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
  with pytest.raises(UserError, match="not finite"):
    nnx_bridge.save(nnx_bridge.to_nnx(model, broken), run, tmp_path / "no")
  assert not (tmp_path / "no").exists()
