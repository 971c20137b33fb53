"""Properties of a model beyond the contract of the zoo (tests/contract)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.backbone import Backbone
from models.transformer import transformer
from tests.small_models import VOCAB_SIZE, build, initialize


def test_bfloat16_parameters_have_gradients_that_train():
  model = build("griffin", dtype="bfloat16", param_dtype="bfloat16")
  params = initialize(model)
  tokens = jax.random.randint(jax.random.key(13), (2, 35), 0, VOCAB_SIZE)

  def loss(params):
    logits, _ = model.apply({"params": params}, tokens[:, :-1])
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1))

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert abs(value - np.log(VOCAB_SIZE)) < 1
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf.astype(jnp.float32)).all()
    assert jnp.abs(leaf.astype(jnp.float32)).max() > 0


def test_unknown_remat_policy_names_the_known_ones():
  known = "'none', 'save_dots', 'save_mixer_outputs', 'full', 'offload', 'offload_mixer_outputs'"
  with pytest.raises(ValueError, match=rf"'ful' is unknown: use one of \[{known}\]"):
    initialize(build("hawk", remat="ful"))


def test_heads_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match="heads=3 does not divide width=32"):
    transformer(Backbone(vocab_size=8, width=32, depth=1), heads=3)
