"""Llama's weights are imported and exported with transformers' logits, or refused."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from conversion import llama as conversion
from models.backbone import Backbone
from models.llama import llama
from models.transformer import transformer
from tests.conversion import pairs

CONFIG = {
  "vocab_size": pairs.VOCAB_SIZE,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "max_position_embeddings": 64,
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 500_000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
VARIANTS = {
  "every head its own keys, untied": {"rms_norm_eps": 1e-2},
  "grouped, tied, Llama 3.1's positions": {
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_parameters": LLAMA3,
  },
  "one key head, wide heads, biases, linear positions": {
    "num_key_value_heads": 1,
    "head_dim": 10,
    "attention_bias": True,
    "mlp_bias": True,
    "hidden_act": "gelu",
    "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
  },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_give_the_same_text_in_and_out(name):
  theirs = pairs.randomize(LlamaForCausalLM(LlamaConfig(**CONFIG | VARIANTS[name])))
  model, params = pairs.from_theirs(theirs)
  pairs.check(model, params, theirs)
  again = pairs.to_theirs(model, params, LlamaForCausalLM, max_position_embeddings=64)
  expected = theirs.state_dict()
  assert all((tensor == expected[key]).all() for key, tensor in again.state_dict().items())
  for key in (*CONFIG, "rope_parameters", "rms_norm_eps", "hidden_act", "head_dim"):
    assert getattr(again.config, key) == getattr(theirs.config, key), key


BACKBONE = {"vocab_size": pairs.VOCAB_SIZE, "vocab_multiple": 16, "width": 32, "depth": 2}


@pytest.mark.parametrize(
  "model",
  [
    llama(Backbone(**BACKBONE, use_bias=True), heads=4, kv_heads=2),
    transformer(Backbone(**BACKBONE), heads=4),
    transformer(Backbone(**BACKBONE, zero_centered_norm=True, tied=False), heads=2),
  ],
  ids=["llama with biases", "baseline", "baseline with centred norms and a head"],
)
def test_our_models_are_held_exactly(model):
  params = pairs.parameters(model)
  theirs = pairs.to_theirs(model, params, LlamaForCausalLM, max_position_embeddings=512)
  pairs.check(model, params, theirs)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
      r"rope_type='dynamic' changes .* Without rope_scaling .* up to 64 tokens",
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn', must be one of default"),
    ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor=None, must be a number"),
    ({"rope_scaling": [1]}, r"rope_scaling=\[1\], must be an object"),
    ({"rope_parameters": LLAMA3 | {"high_freq_factor": 0.5}}, "must be above low_freq_factor=1"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor=0\.5, must be 1"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5, must be 1"),
    ({"rope_theta": 10**400}, r"rope_theta=10+\.\.\., must be a number from"),
    ({"hidden_size": 10**400}, r"hidden_size=10+\.\.\., must be a whole number from 1"),
    ({"hidden_act": "xielu"}, "hidden_act='xielu', must be one of gelu_pytorch_tanh"),
    ({"num_key_value_heads": 3}, "num_attention_heads=4, must be a multiple of num_key_value"),
    ({"hidden_size": 30}, "hidden_size=30, must be a multiple of num_attention_heads=4"),
    ({"head_dim": 7}, "head_dim=7, must be even"),
    ({"mlp_bias": "no"}, "mlp_bias='no', must be true or false"),
    ({"vocab_size": None}, "vocab_size=None, must be a whole number"),
  ],
)
def test_what_cannot_be_expressed_is_named(change, message):
  with pytest.raises(ValueError, match=message):
    conversion.options(CONFIG | change)


def test_rotary_settings_are_read_as_transformers_reads_them():
  linear = {"type": "linear", "factor": 2.0}
  for change, factor in (
    ({"rope_parameters": {"rope_type": "default", "factor": 8.0}}, 1.0),
    ({"rope_scaling": linear, "rope_parameters": {"rope_type": "default"}}, 2.0),
    ({"rope_scaling": {}, "rope_parameters": linear}, 2.0),
  ):
    theirs = LlamaConfig(**CONFIG | change).rope_parameters
    assert theirs.get("factor", 1.0) == factor or theirs["rope_type"] == "default"
    assert conversion.options(CONFIG | change)[1].get("rotary_factor", 1.0) == factor


@pytest.mark.parametrize(
  ("changed", "named"),
  [
    ({"zero_centered_norm": True}, r"model\.norm\.weight"),
    ({"attention_bias": None, "use_bias": True}, r"model\.layers\.0\.self_attn\.q_proj\.bias"),
  ],
)
def test_weights_are_not_read_into_a_model_in_which_they_mean_something_else(changed, named):
  backbone, mixers = conversion.options(CONFIG)
  options = backbone | mixers | changed
  backbone = {name: options[name] for name in (*backbone, *changed) if name not in mixers}
  model = llama(Backbone(**backbone), **{name: options[name] for name in mixers})
  with pytest.raises(ValueError, match=f"other options than the weights were made for: {named}"):
    next(conversion.stream({}, {}, model))


@pytest.mark.parametrize(
  ("options", "window", "message"),
  [
    ({}, 8, r"its attention has a window \(8\)"),
    ({"logit_cap": 30.0}, None, "its logits have a cap"),
    ({"scale_embedding": True}, None, "its embedding is scaled"),
    (
      {"zero_centered_norm": True, "param_dtype": "bfloat16"},
      None,
      "its norms are stored around zero, in less than float32",
    ),
  ],
)
def test_a_model_that_the_class_cannot_hold_is_refused(options, window, message):
  model = transformer(Backbone(**BACKBONE, **options), heads=4, window=window)
  with pytest.raises(ValueError, match=f"Llama cannot hold this model: {message}"):
    conversion.check_model(model)
