"""One network, several libraries: this one, `recurrentgemma` (Flax) and `transformers` (PyTorch).

There are two networks: RecurrentGemma, and Gated DeltaNet as in Qwen3-Next with the delta rule in
every layer. transformers' delta rule is its pure PyTorch form.

Each function returns a thunk that does the work and waits for it. A process imports one library
only, so that its peak memory is that library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from base.ranges import FloatName

# RecurrentGemma's options at the quickstart's size: r, r, a, r, r, a.
CONFIG = {
  "vocab_size": 256,
  "hidden_size": 256,
  "lru_width": 256,
  "intermediate_size": 1536,  # both branches of the gated MLP
  "num_hidden_layers": 6,
  "num_attention_heads": 4,
  "num_key_value_heads": 1,
  "attention_window_size": 128,
  "logits_soft_cap": 30.0,
}
# The same size (5.6 M parameters): six layers of four heads of 64 channels.
DELTA = {
  "vocab_size": 256,
  "hidden_size": 256,
  "intermediate_size": 768,
  "num_hidden_layers": 6,
  "linear_num_key_heads": 4,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 64,
  "linear_value_head_dim": 64,
}
OURS = "ours"
OUR_DELTA, THEIR_DELTA = "ours (Gated DeltaNet)", "transformers (Qwen3-Next)"
# The library's training step takes a batch in parts; half of this one is no slower, and half the
# memory.
MICROBATCHES = 2
SIDES = {
  "recurrentgemma": (OURS, "recurrentgemma linear", "recurrentgemma associative", "transformers"),
  "gated_deltanet": (OUR_DELTA, THEIR_DELTA),
}
LIBRARIES = {
  "recurrentgemma": ("recurrentgemma", "transformers", "torch"),
  "gated_deltanet": ("transformers", "torch"),
}


def training_step(name: str, dtype: FloatName, batch: int, length: int) -> Callable[[], None]:
  """Loss and gradient of all parameters for a batch of random tokens."""
  tokens = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (batch, length + 1))
  if name in (OURS, OUR_DELTA):
    return _our_training_step(name, dtype, tokens)
  if name.startswith("transformers"):
    return _torch_training_step(name, dtype, tokens)
  return _recurrentgemma_training_step(name.split()[1], dtype, tokens)


def decoding(name: str, dtype: FloatName, batch: int, prompt: int) -> Callable[[int], None]:
  """Reads a prompt; the thunk continues it greedily by so many tokens, from where it left off."""
  tokens = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], (batch, prompt))
  if name in (OURS, OUR_DELTA):
    return _our_decoding(name, dtype, tokens)
  if name.startswith("transformers"):
    return _torch_decoding(name, dtype, tokens)
  return _recurrentgemma_decoding(name.split()[1], dtype, tokens)


def _ours(name: str, dtype: FloatName):
  import jax
  import jax.numpy as jnp
  from flax import linen as nn

  if name == OUR_DELTA:
    model = _our_gated_deltanet(dtype)
  else:
    from conversion import recurrent_gemma

    model = recurrent_gemma.model_from_hugging_face(CONFIG, dtype=dtype, param_dtype=dtype)
  init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
  return model, nn.unbox(init())


def _our_gated_deltanet(dtype: FloatName):
  from models.backbone import Backbone
  from models.gated_deltanet import gated_deltanet

  backbone = Backbone(
    vocab_size=DELTA["vocab_size"],
    width=DELTA["hidden_size"],
    depth=DELTA["num_hidden_layers"],
    mlp_width=DELTA["intermediate_size"],
    zero_centered_norm=True,
    dtype=dtype,
    param_dtype=dtype,
  )
  return gated_deltanet(
    backbone, heads=DELTA["linear_num_key_heads"], head_dim=DELTA["linear_key_head_dim"]
  )


def _our_training_step(name, dtype, tokens):
  import jax

  from data.loader import batch_of_rows
  from training import host_memory
  from training.step import StepOptions, loss_and_gradient

  model, params = _ours(name, dtype)
  model = model.clone(remat="save_mixer_outputs")  # as the quickstart trains
  batch = batch_of_rows(tokens[:, 1:], np.ones_like(tokens[:, 1:]), bos_id=0)
  options = StepOptions(grad_accum_steps=min(MICROBATCHES, len(tokens)))
  key = jax.random.key_data(jax.random.key(0))
  step = jax.jit(functools.partial(loss_and_gradient, model, options))
  step.lower(params, batch, key).compile()
  host_memory.release_free_memory()
  return lambda: jax.block_until_ready(step(params, batch, key))


def _our_decoding(name, dtype, tokens):
  from inference.decoder import Decoder
  from inference.sampling import Sampler

  model, params = _ours(name, dtype)
  endless = Decoder(model, Sampler(temperature=0)).generate(
    params, tokens.tolist(), max_tokens=2**20, chunk=32
  )

  def run(steps: int) -> None:
    for _ in range(steps // 32):
      next(endless)

  return run


def _recurrentgemma(scan: str, dtype: FloatName):
  import jax
  import jax.numpy as jnp
  from recurrentgemma import common
  from recurrentgemma import jax as recurrentgemma

  kinds = common.TemporalBlockType
  config = common.GriffinConfig(
    vocab_size=CONFIG["vocab_size"],
    width=CONFIG["hidden_size"],
    mlp_expanded_width=CONFIG["intermediate_size"] // 2,
    num_heads=CONFIG["num_attention_heads"],
    block_types=(kinds.RECURRENT, kinds.RECURRENT, kinds.ATTENTION) * 2,
    embeddings_scale_by_sqrt_dim=True,
    attention_window_size=CONFIG["attention_window_size"],
    logits_soft_cap=CONFIG["logits_soft_cap"],
    lru_width=CONFIG["lru_width"],
    scan_type=common.ScanType[f"{scan.upper()}_NATIVE"],
  )
  model = recurrentgemma.Griffin(config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
  one = jnp.zeros((1, 1), jnp.int32)
  return model, jax.jit(lambda: model.init(jax.random.key(0), one, one))()


def _recurrentgemma_training_step(scan, dtype, tokens):
  import jax
  import jax.numpy as jnp

  model, variables = _recurrentgemma(scan, dtype)
  tokens = jnp.asarray(tokens, jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), tokens[:, 1:].shape)

  @jax.jit
  def step(variables, tokens, positions):
    def loss(variables):
      logits, _ = model.apply(variables, tokens[:, :-1], positions, None, True, False)
      chosen = jax.nn.log_softmax(logits.astype(jnp.float32))
      return -jnp.mean(jnp.take_along_axis(chosen, tokens[:, 1:, None], axis=-1))

    return jax.value_and_grad(loss)(variables)

  return lambda: jax.block_until_ready(step(variables, tokens, positions))


def _recurrentgemma_decoding(scan, dtype, tokens):
  import jax
  import jax.numpy as jnp

  model, variables = _recurrentgemma(scan, dtype)
  tokens = jnp.asarray(tokens, jnp.int32)
  batch, prompt = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(prompt), tokens.shape)

  # Its own sampler needs a SentencePiece file; this is the loop in it, compiled as a whole.
  @jax.jit
  def advance(variables, carry):
    def step(_, carry):
      token, time, cache = carry
      logits, cache = model.apply(variables, token, time, cache)
      return jnp.argmax(logits, axis=-1).astype(jnp.int32), time + 1, cache

    return jax.lax.fori_loop(0, 32, step, carry)

  logits, cache = jax.jit(model.apply)(variables, tokens, positions)
  token = jnp.argmax(logits[:, -1:], axis=-1).astype(jnp.int32)
  carry = [(token, jnp.full((batch, 1), prompt), cache)]

  def run(steps: int) -> None:
    for _ in range(steps // 32):
      carry[0] = jax.block_until_ready(advance(variables, carry[0]))

  return run


def _torch_model(name: str, dtype: FloatName):
  import torch
  import transformers

  torch.manual_seed(0)
  if name == THEIR_DELTA:
    sizes: dict[str, Any] = {
      **DELTA,
      "layer_types": DELTA["num_hidden_layers"] * ["linear_attention"],
    }
    config = transformers.Qwen3NextConfig(**sizes, num_experts=0, tie_word_embeddings=True)
    model = transformers.Qwen3NextForCausalLM(config)
  else:
    config = transformers.RecurrentGemmaConfig(**CONFIG, pad_token_id=None)
    model = transformers.RecurrentGemmaForCausalLM(config)
  return torch, config, model.to(getattr(torch, dtype))


def _torch_training_step(name, dtype, tokens):
  torch, _, model = _torch_model(name, dtype)
  tokens = torch.tensor(tokens)

  def step():
    model.zero_grad()
    logits = model(tokens[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.float().flatten(0, 1), tokens[:, 1:].reshape(-1)
    )
    loss.backward()

  return step


def _torch_decoding(name, dtype, tokens):
  from transformers import DynamicCache

  torch, config, model = _torch_model(name, dtype)
  model.eval()
  cache = DynamicCache(config=config)
  without_attention = name == THEIR_DELTA

  def read(tokens):
    given: dict[str, Any] = {}
    if without_attention:  # the model asks its cache for a length, which only attention has there
      given = {
        "position_ids": torch.arange(tokens.shape[1])[None],
        "attention_mask": {"full_attention": None, "linear_attention": None},
      }
    with torch.inference_mode():
      logits = model(tokens, use_cache=True, past_key_values=cache, **given).logits
    return logits[:, -1:].argmax(-1)

  last = [read(torch.tensor(tokens))]

  def run(steps: int) -> None:
    for _ in range(steps):
      last[0] = read(last[0])

  return run
