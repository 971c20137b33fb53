"""The Llama-style Transformer against Hugging Face's, with the same random weights."""

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.backbone import Backbone
from models.llama import llama
from tests.small_models import initialize

VOCAB, WIDTH, DEPTH, HEADS, KV_HEADS = 61, 32, 3, 4, 2
# Our path within a block -> theirs; all are matrices that lie transposed there, or norms.
BLOCK = {
  "mixer_norm/scale": "input_layernorm",
  "mixer/query/kernel": "self_attn.q_proj",
  "mixer/key/kernel": "self_attn.k_proj",
  "mixer/value/kernel": "self_attn.v_proj",
  "mixer/output/kernel": "self_attn.o_proj",
  "mlp_norm/scale": "post_attention_layernorm",
  "mlp/gate/kernel": "mlp.gate_proj",
  "mlp/up/kernel": "mlp.up_proj",
  "mlp/down/kernel": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def ours():
  model = llama(
    Backbone(vocab_size=VOCAB, width=WIDTH, depth=DEPTH), heads=HEADS, kv_heads=KV_HEADS
  )
  params = initialize(model)
  keys = iter(jax.random.split(jax.random.key(1), 100))

  def moved(x):  # norms too, which start at one
    return x + 0.1 * jax.random.normal(next(keys), x.shape)

  return model, jax.tree.map(moved, params)


@pytest.fixture(scope="module")
def theirs(ours):
  _, params = ours
  config = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=3 * WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    tie_word_embeddings=False,
  )
  tensors = {
    "model.embed_tokens": params["embedding"]["embedding"],
    "model.norm": params["final_norm"]["scale"],
    "lm_head": params["head"]["kernel"].T,
  }
  block = params["stack"]["repeats"]["block_0"]
  for path, name in BLOCK.items():
    leaf = block
    for key in path.split("/"):
      leaf = leaf[key]
    for layer in range(DEPTH):
      tensors[f"model.layers.{layer}.{name}"] = leaf[layer].T
  model = LlamaForCausalLM(config).eval()
  state = {f"{name}.weight": torch.tensor(np.asarray(x)) for name, x in tensors.items()}
  model.load_state_dict(state)
  return model


def test_logits_equal_transformers(ours, theirs):
  model, params = ours
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens)).logits.numpy()
  found, _ = model.apply({"params": params}, tokens)
  assert np.abs(expected).max() > 1
  # Some hundred float32 roundings on logits of size 5.
  np.testing.assert_allclose(found, expected, atol=5e-5)


def test_the_head_is_a_matrix_of_its_own(ours):
  model, params = ours
  changed = params | {"embedding": {"embedding": params["embedding"]["embedding"][::-1]}}
  hidden = jax.random.normal(jax.random.key(2), (1, 3, WIDTH))
  logits = [model.apply({"params": p}, hidden, method="logits") for p in (params, changed)]
  np.testing.assert_array_equal(*logits)


def test_key_value_heads_that_do_not_divide_the_heads_are_refused():
  with pytest.raises(ValueError, match="kv_heads=3 does not divide heads=4"):
    llama(Backbone(vocab_size=8, width=32, depth=1), heads=4, kv_heads=3)
