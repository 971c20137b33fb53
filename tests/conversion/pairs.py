"""Pairs of a model here and one of transformers' classes with the same weights."""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import torch

from conversion import adapters, weight_map, weight_stream
from models.accounting import list_parameters
from models.backbone import Backbone

VOCAB_SIZE = 44  # padded to 48 rows
TOLERANCE = 1e-4  # float32, logits of standard deviation 1 to 4
NEW_TOKENS = 200


def random_like(name: str, shape: tuple[int, ...], scale: float = 0.3) -> np.ndarray:
  """Numbers that differ by name: what is zero or one at the start would hide where it goes."""
  generator = np.random.default_rng(zlib.crc32(name.encode()))
  # Recurrences forget.
  mean = 1.0 if "norm" in name else -3.0 if "_param" in name else 0.0
  return (mean + scale * generator.standard_normal(shape)).astype(np.float32)


def randomize(model: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
  """Fills a model of transformers with random weights."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.copy_(torch.tensor(random_like(name, tuple(parameter.shape), scale)))
  return model.eval()


def parameters(model) -> dict:
  """Random parameters of a model here, with zeros in the padding of the vocabulary."""
  flat = {}
  for parameter in list_parameters(model):
    array = random_like(parameter.path, parameter.shape)
    if parameter.path == weight_map.EMBEDDING:
      array[model.vocab_size :] = 0
    if parameter.path == weight_map.HEAD:
      array[:, model.vocab_size :] = 0
    flat[parameter.path] = jnp.asarray(array, parameter.dtype)
  return weight_stream.nest(flat.items())


def from_theirs(theirs: torch.nn.Module):
  """The model here for one of transformers, and its parameters, as an import makes them."""
  config = theirs.config.to_dict()
  adapter = adapters.of_configuration(config)
  backbone, mixers = adapter.options(config)
  module, _, function = adapter.model.rpartition(".")
  build = getattr(__import__(module, fromlist=[function]), function)
  model = build(Backbone(**backbone, vocab_multiple=16), **mixers)
  tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  return model, weight_stream.nest(adapter.files.stream(tensors, shapes, model))


def to_theirs(model, params, kind, **more):
  """The model of a class of transformers for one here, with the tensors of an export."""
  adapter = adapters.of_model(model)
  theirs = kind(kind.config_class(**adapter.config(model, **more)))
  leaves = weight_stream.leaves(params, model)
  made = weight_stream.tensors(leaves, adapter.table(model), np.dtype(np.float32))
  tensors = {name: torch.tensor(array) for name, array in made}
  missing, unexpected = theirs.load_state_dict(tensors, strict=False)
  assert not unexpected
  assert missing in ([], ["lm_head.weight"])
  theirs.tie_weights()
  return theirs.eval()


def random_tokens(length: int, rows: int = 2) -> np.ndarray:
  return np.random.default_rng(length).integers(3, VOCAB_SIZE, (rows, length))


@functools.partial(jax.jit, static_argnames="model")
def logits(model, params, tokens):
  return model.apply({"params": params}, tokens)[0]


@functools.partial(jax.jit, static_argnames=("model", "count"))
def greedy(model, params, tokens, segment_ids=None, count: int = NEW_TOKENS):
  """[B, count] the likeliest tokens after [B, T], decoded with a state; segment 0 is padding."""
  found, state = model.apply(
    {"params": params}, tokens, segment_ids=segment_ids, capacity=tokens.shape[1] + count
  )

  def step(carry, _):
    token, state = carry
    found, state = model.apply({"params": params}, token[:, None], state=state)
    return (jnp.argmax(found[:, -1], -1).astype(jnp.int32), state), token

  first = jnp.argmax(found[:, -1], -1).astype(jnp.int32)
  return jax.lax.scan(step, (first, state), length=count)[1].T


def check(model, params, theirs, prompt: int = 7) -> None:
  """Compares logits, and 200 greedily generated tokens."""
  tokens = random_tokens(37)
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens), use_cache=False).logits.float().numpy()
  assert expected.std() > 0.5
  np.testing.assert_allclose(logits(model, params, tokens), expected, rtol=0, atol=TOLERANCE)
  tokens = tokens[:, :prompt]
  with torch.no_grad():
    found = theirs.generate(
      torch.tensor(tokens),
      attention_mask=torch.ones(tokens.shape, dtype=torch.long),
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )
  np.testing.assert_array_equal(greedy(model, params, tokens), found[:, prompt:].numpy())
