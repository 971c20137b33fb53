"""Griffin, Hawk and the baseline are exported to a class of transformers, or with their own code.

Which models have which form, the same logits, and the same text, from batches with padding too.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch
from transformers import RecurrentGemmaForCausalLM

from base.equal_partial import EqualPartial
from conversion import adapters, griffin_package, recurrent_gemma
from layers.rg_lru import RGLRU
from layers.rotary import RotaryScaling
from models.backbone import Backbone
from models.cg_griffin import cg_griffin
from models.cg_hawk import cg_hawk
from models.griffin import griffin
from models.hawk import hawk
from models.language_model import LanguageModel
from models.llama import llama
from models.mamba2 import mamba2
from models.transformer import transformer
from tests.conversion import pairs

SIZES = {"vocab_size": pairs.VOCAB_SIZE, "vocab_multiple": 16, "width": 24}
SPLIT = {"rnn_width": 32, "gate_blocks": 4, "window": 8}


def backbone(depth, **options):
  return Backbone(**SIZES, depth=depth, **options)


HELD = {
  "griffin": griffin(backbone(4), heads=2, **SPLIT),
  "local attention alone": transformer(
    backbone(2, logit_cap=5.0, tied=False), heads=2, window=8, rotary_fraction=0.5
  ),
}


@pytest.mark.parametrize("name", HELD)
def test_recurrent_gemma_s_class_holds_a_model_exactly(name):
  assert adapters.of_model(HELD[name]) is recurrent_gemma.ADAPTER
  params = pairs.parameters(HELD[name])
  theirs = pairs.to_theirs(HELD[name], params, RecurrentGemmaForCausalLM, pad_token_id=0)
  pairs.check(HELD[name], params, theirs)


def test_the_zoo_has_these_forms():
  sizes = {"rnn_width": 32, "gate_blocks": 16}
  many = {"vocab_size": 8, "width": 48, "depth": 3}
  models = {
    "griffin": griffin(Backbone(**many), heads=4, **sizes),
    "griffin with 16 blocks and 6 heads": griffin(
      Backbone(**many), heads=6, rnn_width=96, gate_blocks=16
    ),
    "hawk": hawk(Backbone(**many), **sizes),
    "baseline": transformer(Backbone(**many), heads=6),
    "cg_hawk": cg_hawk(Backbone(**many), **sizes),
    "llama": llama(Backbone(**many), heads=6, kv_heads=2),
    "mamba2": mamba2(Backbone(**many), heads=6),
  }
  assert {name: adapters.of_model(model).model_type for name, model in models.items()} == {
    "griffin": "recurrent_gemma",
    "griffin with 16 blocks and 6 heads": "griffin_jax",
    "hawk": "griffin_jax",
    "baseline": "llama",
    "cg_hawk": "griffin_jax",
    "llama": "llama",
    "mamba2": "mamba2",
  }


def test_bfloat16_is_not_rounded_into_another_class():
  # The square root of 24 is no power of two: an embedding divided by it would be rounded.
  for options, expected in (({}, "recurrent_gemma"), ({"param_dtype": "bfloat16"}, "griffin_jax")):
    model = griffin(backbone(3, **options), heads=2, **SPLIT)
    assert adapters.of_model(model).model_type == expected


def _with_scaled_positions():
  model = griffin(
    backbone(3, tied=False, norm_epsilon=1e-2, logit_cap=9.0),
    heads=4,
    kv_heads=2,
    attention_bias=True,
    conv_width=3,
    activation="gelu",
    head_dim=5,
    rotary_fraction=0.6,
    pattern=("attention", "recurrent"),
    **SPLIT,
  )
  scaling = RotaryScaling(factor=4.0, original_length=32)
  local = EqualPartial(model.pattern[0], rotary_scaling=scaling)
  return model.clone(pattern=(local, *model.pattern[1:]))


OWN = {
  "hawk": hawk(
    backbone(2, use_bias=True, zero_centered_norm=True, scale_embedding=True),
    rnn_width=32,
    gate_blocks=4,
  ),
  "cg_griffin": cg_griffin(backbone(3), heads=8, **SPLIT),  # of 3 channels, an odd number
  "every option": _with_scaled_positions(),
}


@pytest.fixture
def code(monkeypatch):
  """The exported module, as transformers imports it."""
  spec = importlib.util.spec_from_file_location("modeling_griffin_jax", griffin_package.CODE)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  monkeypatch.setitem(sys.modules, spec.name, module)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("name", OWN)
def test_the_exported_code_gives_the_same_text_also_with_padding(name, code):
  model = OWN[name]
  assert adapters.of_model(model) is griffin_package.ADAPTER
  params = pairs.parameters(model)
  theirs = pairs.to_theirs(model, params, code.GriffinJaxForCausalLM)
  check_padding(model, params, theirs)


def check_padding(model, params, theirs):
  """Compares rows of 3, 11 and 20 tokens, padded at the left with a token that is not zero."""
  rows = [pairs.random_tokens(length, rows=1)[0] for length in (3, 11, 20)]
  padded = np.full((3, 20), 5)
  mask = np.zeros((3, 20), np.int64)
  for row, tokens in enumerate(rows):
    padded[row, 20 - len(tokens) :] = tokens
    mask[row, 20 - len(tokens) :] = 1
  batch = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
  with torch.no_grad():
    together = theirs(**batch).logits.numpy()
    found = theirs.generate(
      **batch, max_new_tokens=pairs.NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=5
    )
  for row, tokens in enumerate(rows):
    alone = np.asarray(pairs.logits(model, params, np.pad(tokens, (0, 20 - len(tokens)))[None]))
    np.testing.assert_allclose(
      together[row, 20 - len(tokens) :], alone[0, : len(tokens)], rtol=0, atol=pairs.TOLERANCE
    )
  expected = pairs.greedy(model, params, padded, mask.astype(np.int32))
  np.testing.assert_array_equal(found[:, 20:].numpy(), expected)


def test_beams_and_parts_of_a_prompt_go_on_from_the_state(code):
  model = OWN["every option"]
  theirs = pairs.to_theirs(model, pairs.parameters(model), code.GriffinJaxForCausalLM)
  tokens = torch.tensor(pairs.random_tokens(30))
  with torch.no_grad():
    whole = theirs(tokens, use_cache=False).logits
    first = theirs(tokens[:, :13], use_cache=True)
    second = theirs(tokens[:, 13:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, whole[:, 13:], rtol=0, atol=pairs.TOLERANCE)
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3, "pad_token_id": 0}
    options["eos_token_id"] = None
    cached, anew = (theirs.generate(tokens, use_cache=use, **options) for use in (True, False))
  assert torch.equal(cached, anew)


def test_losses_of_accumulated_batches_add_up_to_that_of_all(code):
  model = OWN["hawk"]
  theirs = pairs.to_theirs(model, pairs.parameters(model), code.GriffinJaxForCausalLM)
  tokens = torch.tensor(pairs.random_tokens(9))
  labels = tokens.clone()
  labels[1, :7] = -100  # rows with 8 and 2 tokens that have a loss
  with torch.no_grad():
    whole = theirs(tokens, labels=labels).loss
    rows = [
      theirs(tokens[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=10).loss
      for i in (0, 1)
    ]
  torch.testing.assert_close(sum(rows), whole)


def test_an_architecture_without_code_is_refused():
  model = hawk(backbone(1), rnn_width=32, gate_blocks=4)
  odd = model.clone(mlp=EqualPartial(model.mlp, gated=lambda gate, x: gate * x))
  with pytest.raises(ValueError, match="the PyTorch code of exports lacks parts of this model"):
    adapters.of_model(odd)


def _subclass(kind):
  """A class with the parameters of another one, which may compute something else with them."""
  return type(f"Other{kind.__name__}", (kind,), {})


def _with_other(model, part):
  """The model with a subclass of one of its parts."""
  if part == "recurrence":
    mixer = EqualPartial(model.pattern[0], recurrence=EqualPartial(_subclass(RGLRU), name="rg_lru"))
    return model.clone(pattern=(mixer,))
  if part == "recurrence's name":
    mixer = EqualPartial(model.pattern[0], recurrence=EqualPartial(RGLRU, name="other"))
    return model.clone(pattern=(mixer,))
  kept = {"pattern": model.pattern[0], "mlp": model.mlp, "norm": model.norm}[part]
  made = EqualPartial(_subclass(kept.func), **kept.keywords)
  return model.clone(**{part: (made,) if part == "pattern" else made})


@pytest.mark.parametrize(
  ("name", "part"),
  [
    *itertools.product(("llama", "hawk"), ("pattern", "mlp", "norm")),
    *itertools.product(("mamba2",), ("pattern", "norm")),
    *itertools.product(("hawk",), ("recurrence", "recurrence's name")),
  ],
)
def test_a_subclass_is_not_taken_for_its_base(name, part):
  models = {
    "llama": llama(backbone(1), heads=2, kv_heads=1),
    "hawk": hawk(backbone(1), rnn_width=32, gate_blocks=4),
    "mamba2": mamba2(backbone(1), heads=2),
  }
  adapters.of_model(models[name])
  with pytest.raises(ValueError, match="the PyTorch code of exports lacks parts of this model"):
    adapters.of_model(_with_other(models[name], part))


def test_a_model_of_a_class_of_its_own_is_not_exported():
  model = hawk(backbone(1), rnn_width=32, gate_blocks=4)
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init}
  fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
  with pytest.raises(ValueError, match="the model's class is OtherLanguageModel"):
    adapters.of_model(_subclass(LanguageModel)(**fields))
