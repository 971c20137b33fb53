"""Mamba-2 against Hugging Face's, with the same random weights."""

import jax
import numpy as np
import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from models.accounting import list_parameters
from models.backbone import Backbone
from models.mamba2 import mamba2
from tests.small_models import initialize
from training.optimizer import is_decayed

VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM, STATE = 61, 16, 4, 8, 4, 6


def pair(groups: int):
  """A model, its parameters, and Hugging Face's model with the same ones."""
  model = mamba2(
    Backbone(vocab_size=VOCAB, width=WIDTH, depth=LAYERS // 2),
    heads=HEADS // 4,
    state_size=STATE,
    groups=groups,
    chunk=8,
  )
  keys = iter(jax.random.split(jax.random.key(1), 100))
  # Norms and biases too: what is one or zero at the start would hide where it goes.
  params = jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), initialize(model)
  )
  config = Mamba2Config(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_heads=HEADS,
    head_dim=HEAD_DIM,
    state_size=STATE,
    n_groups=groups,
    layer_norm_epsilon=1e-6,
    chunk_size=8,
  )
  theirs = Mamba2ForCausalLM(config).eval()
  theirs.load_state_dict(tensors_of(params, groups))
  return model, params, theirs


def tensors_of(params, groups):
  """Hugging Face's state dict."""
  embedding = params["embedding"]["embedding"]
  found = {
    "backbone.embeddings.weight": embedding,
    "backbone.norm_f.weight": params["final_norm"]["scale"],
    "lm_head.weight": embedding,
  }
  block = params["stack"]["repeats"]["block_0"]

  def parts_first(x):
    """Ours lies by group, then b and c; theirs by b and c, then groups."""
    return x.reshape(*x.shape[:-1], groups, 2, -1).swapaxes(-2, -3).reshape(x.shape)

  for layer in range(LAYERS):
    mixer = jax.tree.map(lambda x, i=layer: np.asarray(x[i]), block["mixer"])
    kernels = [mixer[name]["kernel"] for name in ("z", "x", "bc", "dt")]
    kernels[2] = parts_first(kernels[2])
    x_conv, bc_conv = mixer["conv1d_x"], mixer["conv1d_bc"]
    taps = np.concatenate([x_conv["kernel"], parts_first(bc_conv["kernel"])], axis=1)
    name = f"backbone.layers.{layer}"
    found |= {
      f"{name}.norm.weight": block["mixer_norm"]["scale"][layer],
      f"{name}.mixer.in_proj.weight": np.concatenate(kernels, axis=1).T,
      f"{name}.mixer.conv1d.weight": taps[::-1].T[:, None],  # the current token comes last there
      f"{name}.mixer.conv1d.bias": np.concatenate([x_conv["bias"], parts_first(bc_conv["bias"])]),
      f"{name}.mixer.A_log": mixer["a_log"],
      f"{name}.mixer.dt_bias": mixer["dt_bias"],
      f"{name}.mixer.D": mixer["skip"],
      f"{name}.mixer.norm.weight": mixer["norm"]["scale"],
      f"{name}.mixer.out_proj.weight": mixer["out"]["kernel"].T,
    }
  return {name: torch.tensor(np.ascontiguousarray(x)) for name, x in found.items()}


@pytest.mark.parametrize("groups", [1, 2])
def test_logits_equal_transformers(groups):
  model, params, theirs = pair(groups)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 37))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens), use_cache=False).logits.numpy()
  found, _ = jax.jit(model.apply)({"params": params}, tokens)
  assert np.abs(expected).max() > 1
  # Some hundred float32 roundings on logits of size 5.
  np.testing.assert_allclose(found, expected, atol=5e-5)


def test_a_model_has_two_layers_for_each_mixer_and_mlp_of_the_others():
  backbone = Backbone(vocab_size=8, width=WIDTH, depth=3)
  assert mamba2(backbone, heads=2).depth == 6


def test_weight_decay_acts_on_linear_maps_and_the_embedding_alone():
  model = mamba2(Backbone(vocab_size=8, width=WIDTH, depth=1), heads=2)
  paths = [tuple(parameter.path.split("/")) for parameter in list_parameters(model)]
  linear = {"z", "x", "bc", "dt", "out", "embedding"}
  assert {path[-2] for path in paths if is_decayed(path)} == linear


def test_heads_whose_double_does_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match=r"heads=3: .* 6 does not divide width=16"):
    mamba2(Backbone(vocab_size=8, width=WIDTH, depth=1), heads=3)
