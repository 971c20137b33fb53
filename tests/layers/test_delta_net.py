"""Gated DeltaNet and Kimi Delta Attention against transformers' own layers, on random weights."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DynamicCache, KimiLinearConfig, OlmoHybridConfig, Qwen3NextConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from layers.delta_net import GatedDeltaNet, KimiDeltaAttention
from layers.segments import Segments, positions_in_segments
from parallel import shards

WIDTH, HEADS, KEYS, VALUES = 24, 2, 8, 8
# Longer than a chunk of theirs (64), and no multiple of ours.
LENGTH, PROMPT = 75, 70
SHARED = {"hidden_size": WIDTH, "rms_norm_eps": 1e-5, "num_hidden_layers": 1}
LINEAR = {"layer_types": ["linear_attention"], "linear_conv_kernel_dim": 4}


def gated_delta_net():
  """Our layer, theirs, and a function from our parameters to their tensors."""
  sizes = {
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "linear_key_head_dim": KEYS,
    "linear_value_head_dim": 2 * VALUES,
  }
  config = Qwen3NextConfig(**SHARED, **LINEAR, **sizes)
  ours = GatedDeltaNet(HEADS, KEYS, 2 * VALUES, chunk=16)

  def tensors(p):
    joined = [
      p["qkv"]["kernel"].reshape(WIDTH, HEADS, -1),
      p["z"]["kernel"].reshape(WIDTH, HEADS, -1),
    ]
    gates = [p[name]["kernel"][..., None] for name in ("b", "a")]
    return common(p, 2 * VALUES) | {
      "in_proj_qkvz.weight": np.concatenate(joined, axis=2).reshape(WIDTH, -1).T,
      "in_proj_ba.weight": np.concatenate(gates, axis=2).reshape(WIDTH, -1).T,
      "A_log": p["a_log"],
      "dt_bias": p["dt_bias"],
      "norm.weight": p["norm"]["scale"],
      "out_proj.weight": p["out"]["kernel"].T,
    }

  return ours, Qwen3NextGatedDeltaNet(config, 0), config, tensors


def reflecting_delta_net():
  """As OLMo Hybrid has it: eigenvalues from -1 to 1, a map for each of queries, keys and values."""
  config = OlmoHybridConfig(
    **SHARED | {"num_hidden_layers": 2},
    layer_types=["linear_attention", "full_attention"],
    num_attention_heads=HEADS,
    linear_key_head_dim=KEYS,
    linear_value_head_dim=2 * VALUES,
    linear_allow_neg_eigval=True,
  )
  ours = GatedDeltaNet(HEADS, KEYS, 2 * VALUES, chunk=16, negative_eigenvalues=True)

  def tensors(p):
    qkv = p["qkv"]["kernel"].reshape(WIDTH, HEADS, -1)
    parts = np.split(qkv, [KEYS, 2 * KEYS], axis=2)
    maps = {"a_proj": "a", "b_proj": "b", "g_proj": "z", "o_proj": "out"}
    return (
      common(p, 2 * VALUES)
      | {f"{n}_proj.weight": w.reshape(WIDTH, -1).T for n, w in zip("qkv", parts, strict=True)}
      | {f"{theirs}.weight": p[name]["kernel"].T for theirs, name in maps.items()}
      | {"A_log": p["a_log"], "dt_bias": p["dt_bias"], "o_norm.weight": p["norm"]["scale"]}
    )

  return ours, OlmoHybridGatedDeltaNet(config, 0), config, tensors


def kimi_delta_attention():
  config = KimiLinearConfig(**SHARED, **LINEAR, linear_num_heads=HEADS, linear_head_dim=KEYS)
  ours = KimiDeltaAttention(HEADS, KEYS, VALUES, chunk=16, rank=KEYS)

  def tensors(p):
    qkv = p["qkv"]["kernel"].reshape(WIDTH, HEADS, 3, KEYS)
    maps = {
      "b_proj": "b",
      "forget_gate.f_a_proj": "a_in",
      "forget_gate.f_b_proj": "a_out",
      "g_a_proj": "z_in",
      "g_b_proj": "z_out",
      "o_proj": "out",
    }
    return (
      common(p, VALUES)
      | {f"{n}_proj.weight": qkv[:, :, i].reshape(WIDTH, -1).T for i, n in enumerate("qkv")}
      | {f"{theirs}.weight": p[name]["kernel"].T for theirs, name in maps.items()}
      | {
        "forget_gate.A_log": p["a_log"].reshape(1, 1, HEADS, 1),
        "forget_gate.dt_bias": p["dt_bias"],
        "o_norm.weight": p["norm"]["scale"],
      }
    )

  return ours, KimiLinearDeltaAttention(config, 0), config, tensors


def common(p, values):
  """Their convolution's weight: all queries, then all keys, then all values."""
  taps = p["conv1d"]["kernel"].reshape(4, HEADS, -1)
  parts = np.split(taps, [KEYS, 2 * KEYS], axis=2)
  taps = np.concatenate([part.reshape(4, -1) for part in parts], axis=1)
  assert taps.shape[1] == HEADS * (2 * KEYS + values)
  return {"conv1d.weight": taps[::-1].T[:, None]}  # the current token comes last there


def segments(length):
  ids = jnp.ones((2, length), jnp.int32)
  return Segments(ids, positions_in_segments(ids))


@pytest.mark.parametrize("pair", [gated_delta_net, reflecting_delta_net, kimi_delta_attention])
def test_a_layer_equals_transformers(pair):
  """Whole rows and their gradients, a prompt, and the tokens after it one by one."""
  ours, theirs, config, tensors = pair()
  x = 0.5 * jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
  params = jax.jit(lambda key: nn.unbox(ours.init(key, x, segments(LENGTH)))["params"])
  params = jax.tree.map(
    lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape),
    params(jax.random.key(1)),
  )

  def load(values):
    return {
      name: torch.tensor(np.ascontiguousarray(value))
      for name, value in tensors(jax.tree.map(np.asarray, values)).items()
    }

  theirs.load_state_dict(load(params))
  given = torch.tensor(np.asarray(x), requires_grad=True)
  expected = theirs(given)
  (0.5 * expected**2).sum().backward()

  def loss(params, x):
    y, _ = ours.apply({"params": params}, x, segments(LENGTH))
    return 0.5 * jnp.sum(y**2), y

  (_, y), (dparams, dx) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
  assert expected.abs().max() > 0.3
  # Some hundred float32 roundings.
  np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-5)
  wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  for name, found in {**load(dparams), "x": torch.tensor(np.asarray(dx))}.items():
    right = given.grad.numpy() if name == "x" else wanted[name]
    scale = np.abs(right).max()
    np.testing.assert_allclose(found, right, atol=1e-4 * scale, err_msg=name)

  with torch.no_grad():
    cache = DynamicCache(config=config)
    prefilled = [theirs(given[:, :PROMPT], cache_params=cache).numpy()]
    for t in range(PROMPT, LENGTH):
      prefilled.append(theirs(given[:, t : t + 1], cache_params=cache).numpy())
  np.testing.assert_allclose(np.concatenate(prefilled, axis=1), expected.detach(), atol=1e-5)

  @jax.jit
  def decode(params, x):
    apply = lambda x, segments, *rest: ours.apply({"params": params}, x, segments, *rest)  # noqa: E731
    whole = segments(LENGTH)
    cut = lambda start, stop: Segments(*(a[:, start:stop] for a in whole))  # noqa: E731
    found, state = apply(x[:, :PROMPT], cut(0, PROMPT), None, LENGTH)
    parts = [found]
    for t in range(PROMPT, LENGTH):
      found, state = apply(x[:, t : t + 1], cut(t, t + 1), state)
      parts.append(found)
    return jnp.concatenate(parts, axis=1), state

  found, state = decode(params, x)
  np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
  np.testing.assert_allclose(state.h, cache.get_recurrent_state(0, state_idx=0), atol=1e-5)


def test_several_corrections_without_decay_continue_from_a_state():
  """DeltaProduct without decay: rows in two parts equal whole rows."""
  ours = GatedDeltaNet(
    HEADS, KEYS, VALUES, corrections=2, decays=False, negative_eigenvalues=True, chunk=8
  )
  x = jax.random.normal(jax.random.key(0), (2, 21, WIDTH))
  whole = segments(21)
  params = ours.init(jax.random.key(1), x, whole)["params"]
  assert "a" not in params
  apply = jax.jit(ours.apply, static_argnums=4)
  expected, _ = apply({"params": params}, x, whole, None, None)
  first, second = (Segments(*(a[:, part] for a in whole)) for part in (slice(13), slice(13, None)))
  start, state = apply({"params": params}, x[:, :13], first, None, 21)
  end, _ = apply({"params": params}, x[:, 13:], second, state, None)
  np.testing.assert_allclose(jnp.concatenate([start, end], axis=1), expected, atol=2e-6)


def test_heads_that_devices_cannot_share_are_refused():
  """Also one head, and layers without a parameter of as many numbers as heads."""
  region = shards.Region(table=(("heads", ("model",)),), sizes=(("model", 2),))
  layers = (
    GatedDeltaNet(1, KEYS, VALUES),
    GatedDeltaNet(3, KEYS, VALUES, corrections=2, decays=False),
    KimiDeltaAttention(1, KEYS, VALUES),
  )
  for layer in layers:
    told = f"{layer.heads} heads? of the delta rule cannot be split over 2 devices"
    with shards.per_device(region), pytest.raises(ValueError, match=told):
      layer.init(jax.random.key(0), jnp.zeros((2, 4, WIDTH)), segments(4))
