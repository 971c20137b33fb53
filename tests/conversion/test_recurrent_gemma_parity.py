"""The same weights give the same numbers in Hugging Face's RecurrentGemma."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from conversion import recurrent_gemma
from experiment import experiment
from models.accounting import list_parameters
from tests.small_models import build

VOCAB_SIZE = 40
TOLERANCE = 1e-4  # float32, logits of standard deviation 2
CONFIGS = {
  "remainder, wider recurrence": {"num_hidden_layers": 8, "lru_width": 48},
  "long window": {"num_hidden_layers": 3, "attention_window_size": 13},
  "two key/value heads": {"num_hidden_layers": 6, "num_key_value_heads": 2, "lru_width": 64},
  "any MLP, pattern, norm, convolution, positions and activation, a head of its own": {
    "num_hidden_layers": 5,
    "intermediate_size": 101,
    "block_types": ("recurrent", "attention"),
    "rms_norm_eps": 1e-2,
    "conv1d_width": 3,
    "rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 0.9, "rope_type": "default"},
    "hidden_activation": "silu",
    "attention_bias": True,
    "tie_word_embeddings": False,
    "logits_soft_cap": 7.0,
    "lru_width": 24,
  },
  "heads that do not divide the width": {
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "lru_width": 24,
    "block_types": ("attention", "recurrent"),
  },
  "one head, first blocks alone": {"num_hidden_layers": 2, "num_attention_heads": 1},
}


class Pair:
  """A Hugging Face model with random weights and ours with the same ones."""

  def __init__(self, name: str):
    options = {
      "vocab_size": VOCAB_SIZE,
      "hidden_size": 32,
      "intermediate_size": 192,
      "num_attention_heads": 4,
      "num_key_value_heads": 1,
      "attention_window_size": 8,
      "pad_token_id": None,
    }
    self.config = RecurrentGemmaConfig(**(options | CONFIGS[name]))
    self.torch_model = RecurrentGemmaForCausalLM(self.config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
      for parameter_name, parameter in self.torch_model.named_parameters():
        # Norms and biases too: what is zero at the start would hide where it goes.
        random = 0.3 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(random - 3 if "recurrent_param" in parameter_name else random)
    self.model = recurrent_gemma.model_from_hugging_face(self.config.to_dict())
    self.params = recurrent_gemma.parameters_from_hugging_face(self.tensors(), self.model)
    self.logits = jax.jit(lambda params, tokens: self.model.apply({"params": params}, tokens)[0])

  def tensors(self) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in self.torch_model.state_dict().items()}

  def torch_logits(self, tokens: np.ndarray, **options) -> np.ndarray:
    with torch.no_grad():
      return self.torch_model(torch.tensor(tokens), **({"use_cache": False} | options)).logits


@functools.cache
def pair(name: str) -> Pair:
  return Pair(name)


def random_tokens(length: int) -> np.ndarray:
  return np.random.default_rng(length).integers(0, VOCAB_SIZE, (2, length))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_equal_at_every_length(name):
  two = pair(name)
  # Hugging Face at every length against one compilation of ours: causality is tested elsewhere.
  found = two.logits(two.params, random_tokens(37))
  expected = two.torch_logits(random_tokens(37))
  assert float(expected.std()) > 0.5
  np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
  for length in (1, 5, 23):
    np.testing.assert_allclose(
      two.torch_logits(random_tokens(37)[:, :length]), found[:, :length], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("name", list(CONFIGS)[:2])
@pytest.mark.parametrize("prompt", [2, 11, 27])
def test_decoding_token_by_token_is_equal(name, prompt):
  two, tokens = pair(name), random_tokens(31)
  cache = DynamicCache(config=two.config)
  expected = [two.torch_logits(tokens[:, :prompt], use_cache=True, past_key_values=cache)]
  for t in range(prompt, tokens.shape[1]):
    expected.append(two.torch_logits(tokens[:, t : t + 1], use_cache=True, past_key_values=cache))

  @jax.jit
  def run(params, state, tokens):
    return two.model.apply({"params": params}, tokens, state=state)

  state = two.model.initial_state(2, capacity=tokens.shape[1])
  found, state = run(two.params, state, tokens[:, :prompt])
  np.testing.assert_allclose(found, expected[0], rtol=0, atol=TOLERANCE)
  for t, logits in zip(range(prompt, tokens.shape[1]), expected[1:], strict=True):
    found, state = run(two.params, state, tokens[:, t : t + 1])
    np.testing.assert_allclose(found, logits, rtol=0, atol=TOLERANCE)


def test_gradients_are_equal():
  two, tokens = pair("remainder, wider recurrence"), random_tokens(20)

  def loss(params):
    logits, _ = two.model.apply({"params": params}, tokens[:, :-1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen)

  value, gradient = jax.jit(jax.value_and_grad(loss))(two.params)
  found = dict(recurrent_gemma.hugging_face_from_parameters(gradient, two.model))
  logits = two.torch_model(torch.tensor(tokens[:, :-1]), use_cache=False).logits
  torch_loss = torch.nn.functional.cross_entropy(
    logits.reshape(-1, VOCAB_SIZE), torch.tensor(tokens[:, 1:]).reshape(-1)
  )
  np.testing.assert_allclose(value, torch_loss.item(), rtol=1e-5)
  torch_loss.backward()
  expected = {name: p.grad.numpy() for name, p in two.torch_model.named_parameters()}
  two.torch_model.zero_grad()
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    scale = np.abs(value).max()
    assert scale > 0, name
    np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * scale, err_msg=name)


def test_the_way_back_gives_the_same_tensors():
  two = pair("two key/value heads")
  back = dict(recurrent_gemma.hugging_face_from_parameters(two.params, two.model))
  expected = two.tensors()
  assert back.keys() == expected.keys() - {"lm_head.weight"}
  for name, tensor in back.items():
    np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda tensors: tensors.pop("model.layers.1.mlp_block.up_proj.bias"),
      r"1 missing \(model\.layers\.1\.mlp_block\.up_proj\.bias \(96,\)\)",
    ),
    (
      lambda tensors: tensors.update({"model.layers.9.bias": np.zeros(3)}),
      r"1 unknown \(model\.layers\.9\.bias \(3,\)\)",
    ),
    (
      lambda tensors: tensors.update({"model.final_norm.weight": np.zeros(31)}),
      r"model\.final_norm\.weight has shape \(31,\), this model needs \(32,\)",
    ),
    (
      lambda tensors: tensors.update({"lm_head.weight": np.zeros((VOCAB_SIZE, 32))}),
      r"lm_head\.weight differs from the embedding, but tie_word_embeddings is true",
    ),
  ],
)
def test_a_wrong_tensor_is_named_with_its_shape(change, message):
  two = pair("long window")
  tensors = two.tensors()
  change(tensors)
  with pytest.raises(ValueError, match=message):
    recurrent_gemma.parameters_from_hugging_face(tensors, two.model)


@pytest.mark.parametrize(
  ("option", "message"),
  [
    (
      {"embeddings_scale_by_sqrt_dim": False},
      "embeddings_scale_by_sqrt_dim=False, must be True",
    ),
    (
      {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
      "rope_type='linear', must be 'default'",
    ),
    ({"block_types": ("mamba",)}, "block_types=.*must be a list of 'recurrent' and 'attention'"),
  ],
)
def test_a_configuration_that_transformers_refuses_or_ignores_is_refused(option, message):
  config = pair("long window").config.to_dict() | option
  with pytest.raises(ValueError, match=message):
    recurrent_gemma.model_from_hugging_face(config)


def test_a_model_that_the_class_cannot_hold_has_no_names():
  with pytest.raises(ValueError, match="cannot hold this model: its attention is global"):
    recurrent_gemma.name_table(build("transformer"))


@pytest.mark.parametrize(
  ("size", "published"),
  [("2b", (256_000, 2560, 26, 10, 15_360)), ("9b", (256_000, 4096, 38, 16, 24_576))],
)
def test_the_zoo_s_sizes_are_the_published_ones(size, published):
  vocab_size, width, depth, heads, intermediate = published
  config = RecurrentGemmaConfig(
    vocab_size=vocab_size,
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    num_key_value_heads=1,
    intermediate_size=intermediate,
    lru_width=width,
    attention_window_size=2048,
  )
  expected = recurrent_gemma.model_from_hugging_face(config.to_dict())
  found = experiment.build(
    experiment.load(
      [
        "gin/runs/griffin_quickstart.gin",
        "gin/models/recurrent_gemma.gin",
        f"gin/sizes/recurrent_gemma_{size}.gin",
      ],
      ["--gin.VOCAB_SIZE=256000"],
    )
  ).model

  def shapes(model):
    return {p.path: p.shape for p in list_parameters(model)}

  assert shapes(found) == shapes(expected)
  assert (found.logit_cap, found.embedding_scale) == (30.0, expected.embedding_scale)
  mixers = [[mixer(parent=None) for mixer in model.pattern] for model in (found, expected)]
  assert [m.window for m in mixers[0][2:]] == [m.window for m in mixers[1][2:]] == [2048]
