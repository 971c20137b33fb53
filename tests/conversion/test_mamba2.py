"""Mamba-2's weights are imported and exported with transformers' logits, or refused."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM

from conversion import mamba2 as conversion
from conversion import peft_files, weight_stream
from models import lora
from models.backbone import Backbone
from models.mamba2 import mamba2
from tests.conversion import pairs

CONFIG = {
  "vocab_size": pairs.VOCAB_SIZE,
  "hidden_size": 24,
  "num_hidden_layers": 3,
  "num_heads": 6,
  "head_dim": 8,
  "state_size": 5,
  "chunk_size": 8,
  "n_groups": 1,
}
VARIANTS = {
  "one group, tied, no bias of the convolution": {
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-2,
    "use_conv_bias": False,
    "residual_in_fp32": False,
  },
  "groups, wider, biases": {
    "n_groups": 2,
    "expand": 3,
    "num_heads": 4,
    "head_dim": 18,
    "conv_kernel": 3,
    "use_bias": True,
    "time_step_limit": [0.0, float("inf")],
  },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_give_the_same_text_in_and_out(name):
  theirs = pairs.randomize(Mamba2ForCausalLM(Mamba2Config(**CONFIG | VARIANTS[name])))
  model, params = pairs.from_theirs(theirs)
  pairs.check(model, params, theirs)
  again = pairs.to_theirs(model, params, Mamba2ForCausalLM)
  expected = theirs.state_dict()
  for key, tensor in again.state_dict().items():
    # A bias that is absent there is zero here.
    assert (tensor == expected.get(key, 0)).all(), key


def test_the_files_of_transformers_are_read(tmp_path):
  config = Mamba2Config(**CONFIG, time_step_limit=(0.0, float("inf")))
  config.save_pretrained(tmp_path)
  found = json.loads((tmp_path / "config.json").read_text())
  assert found["time_step_limit"] == [0.0, {"__float__": "Infinity"}]  # JSON has no infinity
  assert conversion.options(found) == conversion.options(config.to_dict())


def test_our_model_is_held_exactly():
  sizes = {"vocab_size": pairs.VOCAB_SIZE, "vocab_multiple": 16, "width": 32, "depth": 1}
  model = mamba2(Backbone(**sizes, zero_centered_norm=True), heads=2, groups=4, state_size=6)
  params = pairs.parameters(model)
  pairs.check(model, params, pairs.to_theirs(model, params, Mamba2ForCausalLM))


def test_adapters_of_joined_projections_are_one_for_peft(tmp_path):
  sizes = {"vocab_size": pairs.VOCAB_SIZE, "width": 32, "depth": 1}
  model = mamba2(Backbone(**sizes), heads=2, groups=2, state_size=6)
  adapted = lora.adapted(model, rank=3, alpha=5.0, targets=["z", "bc", "dt"])
  params = pairs.parameters(adapted)
  theirs = pairs.to_theirs(model, params, Mamba2ForCausalLM)
  leaves = weight_stream.leaves(params, adapted)
  peft_files.write(tmp_path, adapted, leaves, conversion.ADAPTER, "base")
  theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
  tokens = pairs.random_tokens(19)
  with torch.no_grad():
    expected = theirs(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
  found = pairs.logits(adapted, params, tokens)
  assert np.abs(found - pairs.logits(model, params, tokens)).max() > 0.1
  np.testing.assert_allclose(found, expected, rtol=0, atol=pairs.TOLERANCE)
  everywhere = lora.adapted(model, rank=3)
  leaves = weight_stream.leaves(pairs.parameters(everywhere), everywhere)
  with pytest.raises(ValueError, match="PEFT accepts no adapters on out_proj of Mamba-2"):
    peft_files.write(tmp_path, everywhere, leaves, conversion.ADAPTER, None)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"hidden_act": "gelu"}, "hidden_act='gelu', must be 'silu'"),
    ({"time_step_limit": [0.0, 0.1]}, r"time_step_limit=\[0\.0, 0\.1\], must be \(0, inf\)"),
    ({"time_step_limit": [0.0, {"__float__": "?"}]}, r"time_step_limit=.*, must be \(0, inf\)"),
    ({"n_groups": 4}, "num_heads=6, must be a multiple of n_groups=4"),
    ({"head_dim": 7}, "head_dim=7 times num_heads=6, must be expand times hidden_size=48"),
    ({"state_size": 0}, "state_size=0, must be a whole number from 1"),
    ({"use_bias": 1}, "use_bias=1, must be true or false"),
  ],
)
def test_what_cannot_be_expressed_is_named(change, message):
  with pytest.raises(ValueError, match=message):
    conversion.options(CONFIG | change)


@pytest.mark.parametrize(
  ("options", "message"),
  [({"logit_cap": 30.0}, "logits have a cap"), ({"scale_embedding": True}, "embedding is scaled")],
)
def test_a_model_that_the_class_cannot_hold_is_refused(options, message):
  backbone = Backbone(vocab_size=8, width=16, depth=1, **options)
  with pytest.raises(ValueError, match=f"Mamba-2 cannot hold this model: its {message}"):
    conversion.check_model(mamba2(backbone, heads=2))
