"""Gated DeltaNet and Kimi Linear: whole models against transformers' own, sizes, refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
  KimiLinearConfig,
  KimiLinearForCausalLM,
  Qwen3NextConfig,
  Qwen3NextForCausalLM,
)

from layers.attention import SelfAttention
from layers.delta_net import KimiDeltaAttention, output_epsilon
from models.accounting import list_parameters
from models.backbone import Backbone
from models.gated_deltanet import gated_deltanet
from models.kimi_linear import kimi_linear
from tests.conversion import pairs
from tests.layers import test_delta_net as layers
from training.optimizer import is_decayed

BACKBONE = Backbone(vocab_size=8, width=16, depth=1)
DEPTH, WIDTH, HEADS, KEYS = 3, layers.WIDTH, layers.HEADS, layers.KEYS
# Of all norms there, and of all here: with 1e-5, heads of 8 channels enlarge roundings to 2e-4.
EPSILON = output_epsilon(KEYS)
SIZES = {
  "vocab_size": pairs.VOCAB_SIZE,
  "hidden_size": WIDTH,
  "intermediate_size": 3 * WIDTH,
  "num_hidden_layers": DEPTH,
  "layer_types": DEPTH * ["linear_attention"],
  "rms_norm_eps": EPSILON,
  "pad_token_id": 0,
}
MIXER = {"heads": HEADS, "head_dim": KEYS, "chunk": 16}


def backbone(**options):
  sizes = {"vocab_size": pairs.VOCAB_SIZE, "width": WIDTH, "depth": DEPTH}
  return Backbone(**sizes, norm_epsilon=EPSILON, **options)


def qwen3_next():
  """Theirs with the delta rule in every layer, and dense MLPs."""
  config = Qwen3NextConfig(
    **SIZES,
    tie_word_embeddings=True,
    num_experts=0,
    num_attention_heads=HEADS,
    linear_num_key_heads=HEADS,
    linear_num_value_heads=HEADS,
    linear_key_head_dim=KEYS,
    linear_value_head_dim=2 * KEYS,
  )
  ours = gated_deltanet(backbone(zero_centered_norm=True), value_expansion=2, **MIXER)
  *_, tensors = layers.gated_delta_net()
  return ours, Qwen3NextForCausalLM(config), "linear_attn", tensors


def kimi():
  """Likewise, without a layer of attention, which is MLA there."""
  config = KimiLinearConfig(
    **SIZES,
    bos_token_id=1,
    eos_token_id=2,
    mlp_layer_types=DEPTH * ["dense"],
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    linear_num_heads=HEADS,
    linear_head_dim=KEYS,
  )
  ours = kimi_linear(backbone(tied=False), delta_layers=DEPTH, **MIXER)
  *_, tensors = layers.kimi_delta_attention()
  return ours, KimiLinearForCausalLM(config), "self_attn", tensors


def named(params, mixer, tensors):
  """Our parameters, or their gradients, as their tensors."""
  found = {
    "model.embed_tokens.weight": params["embedding"]["embedding"],
    "model.norm.weight": params["final_norm"]["scale"],
  }
  if "head" in params:
    found["lm_head.weight"] = params["head"]["kernel"].T
  blocks = layers_of(params["stack"])
  assert len(blocks) == DEPTH
  for index, block in enumerate(blocks):
    layer = {f"{mixer}.{name}": array for name, array in tensors(block["mixer"]).items()}
    layer |= {f"mlp.{name}_proj.weight": block["mlp"][name]["kernel"].T for name in block["mlp"]}
    layer["input_layernorm.weight"] = block["mixer_norm"]["scale"]
    layer["post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
    found |= {f"model.layers.{index}.{name}": array for name, array in layer.items()}
  return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in found.items()}


def layers_of(stack):
  """The parameters of each block: of a scan over repetitions, or of blocks side by side."""
  repeats = stack.get("repeats", {})
  count = next((leaf.shape[0] for leaf in jax.tree.leaves(repeats)), 0)
  blocks = [
    jax.tree.map(lambda x, i=i: np.asarray(x[i]), repeats[name])
    for i in range(count)
    for name in sorted(repeats)
  ]
  rest = stack.get("remainder", {})
  return [*blocks, *(jax.tree.map(np.asarray, rest[name]) for name in sorted(rest))]


@pytest.mark.parametrize("pair", [qwen3_next, kimi])
def test_a_model_equals_transformers(pair):
  """Logits, text that ours decodes with a state, and gradients of all parameters.

  Their `generate` asks for a layer of attention; tests/layers compares single steps.
  """
  ours, theirs, mixer, tensors = pair()
  params = pairs.parameters(ours)
  missing, unexpected = theirs.load_state_dict(named(params, mixer, tensors), strict=False)
  assert missing in ([], ["lm_head.weight"])
  assert not unexpected
  theirs.tie_weights()
  prompt = pairs.random_tokens(7)
  text = np.concatenate([prompt, pairs.greedy(ours, params, prompt, count=70)], axis=1)
  with torch.no_grad():
    expected = theirs(torch.tensor(text), use_cache=False).logits.numpy()
  assert expected.std() > 0.5
  found = pairs.logits(ours, params, text)
  np.testing.assert_allclose(found, expected, rtol=0, atol=pairs.TOLERANCE)
  np.testing.assert_array_equal(expected[:, 6:-1].argmax(-1), text[:, 7:])

  tokens = pairs.random_tokens(37)
  weights = np.random.default_rng(0).standard_normal((*tokens.shape, pairs.VOCAB_SIZE))
  weights = weights.astype(np.float32)
  (theirs(torch.tensor(tokens), use_cache=False).logits * torch.tensor(weights)).sum().backward()

  @jax.jit
  @jax.grad
  def gradient(params):
    return jnp.sum(ours.apply({"params": params}, tokens)[0] * weights)

  expected = {name: p.grad for name, p in theirs.named_parameters()}
  found = named(gradient(params), mixer, tensors)
  assert set(found) == set(expected)
  for name, wanted in expected.items():
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(found[name], wanted, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("build", [gated_deltanet, kimi_linear])
def test_weight_decay_acts_on_linear_maps_and_the_embedding_alone(build):
  parameters = list_parameters(build(dataclasses.replace(BACKBONE, depth=4), heads=2))
  paths = [tuple(parameter.path.split("/")) for parameter in parameters]
  plain = {path[-2] for path in paths if not is_decayed(path)}
  assert plain == {"conv1d", "norm", "mixer", "mixer_norm", "mlp_norm", "final_norm"}


def test_three_layers_of_delta_attention_come_before_each_of_attention():
  model = kimi_linear(dataclasses.replace(BACKBONE, depth=8), heads=2)
  kinds = [type(mixer) for mixer in model.mixers()]
  assert kinds == 2 * [*3 * [KimiDeltaAttention], SelfAttention]
  attention = model.mixers()[3]
  assert (attention.kv_heads, attention.rotary_fraction, attention.window) == (1, 0.0, None)


def test_heads_may_have_other_widths():
  mixer = gated_deltanet(BACKBONE, heads=3, head_dim=4, value_expansion=2).mixers()[0]
  assert (mixer.key_dim, mixer.value_dim) == (4, 8)


@pytest.mark.parametrize("build", [gated_deltanet, kimi_linear])
@pytest.mark.parametrize(("channels", "expected"), [(8, 2.56e-3), (64, 4e-5), (256, 1e-5)])
def test_the_norm_s_epsilon_is_the_papers_at_their_head_sizes(build, channels, expected):
  mixer = build(BACKBONE, heads=2, head_dim=channels).mixers()[0]
  assert mixer.norm_epsilon == pytest.approx(expected)
  mixer = build(BACKBONE, heads=2, head_dim=channels, norm_epsilon=0.5).mixers()[0]
  assert mixer.norm_epsilon == 0.5


@pytest.mark.parametrize("build", [gated_deltanet, kimi_linear])
@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"heads": 3}, "heads=3 does not divide width=16: .* or set head_dim"),
    ({"heads": 2, "chunk": 48}, "chunk=48 is no power of two"),
  ],
)
def test_what_does_not_fit_is_refused(build, options, message):
  with pytest.raises(ValueError, match=message):
    build(BACKBONE, **options)
