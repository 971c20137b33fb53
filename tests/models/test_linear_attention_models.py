"""xLSTM against transformers' own model, HGRN2 against its equations in float64, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import xLSTMConfig, xLSTMForCausalLM

from conversion import adapters
from layers.hgrn2 import HGRN2
from models.accounting import list_parameters
from models.backbone import Backbone
from models.hgrn2 import hgrn2
from models.hybrid import hybrid
from models.xlstm import xlstm
from tests.conversion import pairs
from tests.models.test_delta_models import layers_of
from training.optimizer import is_decayed

BACKBONE = Backbone(vocab_size=8, width=16, depth=3)
# Their state has a multiple of 64 channels of queries, so of 128 of width.
DEPTH, WIDTH, HEADS, MLP_WIDTH = 2, 128, 2, 384
# Longer than a chunk of theirs (64), and no multiple of ours.
LENGTH, PROMPT = 75, 70


def tensors(params):
  """Our parameters of xLSTM, or their gradients, as transformers' tensors."""
  found = {
    "backbone.embeddings.weight": params["embedding"]["embedding"],
    "backbone.out_norm.weight": params["final_norm"]["scale"],
    "lm_head.weight": params["head"]["kernel"].T,
  }
  maps = {"q": "q", "k": "k", "v": "v", "o": "ogate_preact", "out": "out_proj"}
  gates = {"i": "igate_preact", "f": "fgate_preact"}
  mlp = {"gate": "proj_up_gate", "up": "proj_up", "down": "proj_down"}
  for index, block in enumerate(layers_of(params["stack"])):
    mixer, layer = block["mixer"], {}
    for ours, theirs in (maps | gates).items():
      layer[f"mlstm_layer.{theirs}.weight"] = mixer[ours]["kernel"].T
    for ours, theirs in gates.items():
      layer[f"mlstm_layer.{theirs}.bias"] = mixer[f"{ours}_bias"]
    layer["mlstm_layer.multihead_norm.weight"] = mixer["norm"]["scale"]
    for ours, theirs in mlp.items():
      layer[f"ffn.{theirs}.weight"] = block["mlp"][ours]["kernel"].T
    layer["norm_mlstm.weight"] = block["mixer_norm"]["scale"]
    layer["norm_ffn.weight"] = block["mlp_norm"]["scale"]
    found |= {f"backbone.blocks.{index}.{name}": array for name, array in layer.items()}
  return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in found.items()}


def test_xlstm_equals_transformers():
  """Logits of whole rows, of a prompt and of tokens after it, and gradients of all parameters."""
  config = xLSTMConfig(
    vocab_size=pairs.VOCAB_SIZE,
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_heads=HEADS,
    ffn_proj_factor=MLP_WIDTH / WIDTH,
  )
  theirs = xLSTMForCausalLM(config)
  backbone = Backbone(vocab_size=pairs.VOCAB_SIZE, width=WIDTH, depth=DEPTH, mlp_width=MLP_WIDTH)
  ours = xlstm(backbone, heads=HEADS, chunk=16)
  params = pairs.parameters(ours)
  theirs.load_state_dict(tensors(params))
  tokens = np.random.default_rng(0).integers(0, pairs.VOCAB_SIZE, (2, LENGTH))
  weights = np.random.default_rng(1).standard_normal((*tokens.shape, pairs.VOCAB_SIZE))
  weights = weights.astype(np.float32)
  logits = theirs(torch.tensor(tokens), use_cache=False).logits
  (logits * torch.tensor(weights)).sum().backward()
  expected = logits.detach().numpy()
  assert expected.std() > 0.5

  @jax.jit
  def gradient(params):
    def loss(params):
      found, _ = ours.apply({"params": params}, tokens)
      return jnp.sum(found * weights), found

    return jax.grad(loss, has_aux=True)(params)

  gradients, found = gradient(params)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  gradients = tensors(gradients)
  assert set(gradients) == set(wanted)
  for name, right in wanted.items():
    scale = np.abs(right).max()
    # The gates' biases are sums over all tokens that nearly cancel.
    most = 2e-4 if name.endswith("preact.bias") else 1e-4
    np.testing.assert_allclose(gradients[name], right, atol=most * scale, err_msg=name)

  with torch.no_grad():
    given = torch.tensor(tokens)
    step = theirs(given[:, :PROMPT], use_cache=True)
    parts = [step.logits.numpy()]
    for t in range(PROMPT, LENGTH):
      step = theirs(given[:, t : t + 1], cache_params=step.cache_params, use_cache=True)
      parts.append(step.logits.numpy())
  expected = np.concatenate(parts, axis=1)
  np.testing.assert_allclose(decoded(ours, params, tokens), expected, rtol=0, atol=1e-4)


def decoded(model, params, tokens):
  """Logits of the prompt, and of the tokens after it one by one."""

  @jax.jit
  def run(params):
    apply = lambda tokens, **rest: model.apply({"params": params}, tokens, **rest)  # noqa: E731
    found, state = apply(tokens[:, :PROMPT], capacity=LENGTH)
    parts = [found]
    for t in range(PROMPT, LENGTH):
      found, state = apply(tokens[:, t : t + 1], state=state)
      parts.append(found)
    return jnp.concatenate(parts, axis=1)

  return run(params)


def hgrn2_equations(params: Any, tokens: np.ndarray, heads: int) -> Any:
  """Logits of HGRN2 by its equations, token by token, of parameters of any type.

  Section 2 of the HGRN2 paper; lower bounds from equation 3 of HGRN (arXiv 2311.04823).
  """

  def norm(x, scale):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

  stack = params["stack"]
  table = jnp.exp(stack["depth_table"]["lower_bounds"])
  share = table / jnp.sum(table, axis=0)
  count = table.shape[0]
  blocks = stack["repeats"]["block_0"]
  x = params["embedding"]["embedding"][tokens]
  for layer in range(count):
    block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
    maps = {n: block["mixer"][n]["kernel"] for n in ("q", "f", "i", "out")}
    bound = sum((share[below] for below in range(1, layer + 1)), jnp.zeros_like(share[0]))
    z = norm(x, block["mixer_norm"]["scale"])
    query = z @ maps["q"]
    query = query / (1 + jnp.exp(-query))
    forget = bound + (1 - bound) / (1 + jnp.exp(-(z @ maps["f"])))
    rows, length, _ = z.shape
    query, forget, value = (
      each.reshape(rows, length, heads, -1) for each in (query, forget, z @ maps["i"])
    )
    state = jnp.zeros((rows, heads, forget.shape[3], value.shape[3]), value.dtype)
    read = []
    for t in range(length):
      outer = (1 - forget[:, t])[..., None] * value[:, t, :, None]
      state = forget[:, t][..., None] * state + outer
      read.append(jnp.sum(query[:, t][..., None] * state, axis=2).reshape(rows, -1))
    y = norm(jnp.stack(read, axis=1), block["mixer"]["norm"]["scale"])
    x = x + y @ maps["out"]
    z = norm(x, block["mlp_norm"]["scale"])
    gate = z @ block["mlp"]["gate"]["kernel"]
    gate = gate / (1 + jnp.exp(-gate))
    x = x + (gate * (z @ block["mlp"]["up"]["kernel"])) @ block["mlp"]["down"]["kernel"]
  return norm(x, params["final_norm"]["scale"]) @ params["embedding"]["embedding"].T


def test_hgrn2_equals_its_equations():
  """Logits of whole rows, decoded ones, and gradients of all parameters, the bounds' included."""
  model = hgrn2(Backbone(vocab_size=pairs.VOCAB_SIZE, width=16, depth=3), heads=2, chunk=8)
  params = pairs.parameters(model)
  tokens = np.random.default_rng(0).integers(0, pairs.VOCAB_SIZE, (2, 19))
  weights = np.random.default_rng(1).standard_normal((*tokens.shape, pairs.VOCAB_SIZE))

  def values(logits):
    """Gradients of the weighted sum, and the logits."""

    @jax.jit
    def run(params):
      def loss(params):
        found = logits(params)
        return jnp.sum(found * weights.astype(found.dtype)), found

      return jax.grad(loss, has_aux=True)(params)

    return run

  gradients, found = values(lambda p: model.apply({"params": p}, tokens)[0])(params)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
    wanted, expected = values(lambda p: hgrn2_equations(p, tokens, heads=2))(wide)
    wanted, expected = jax.tree.map(np.asarray, (wanted, expected))
  assert expected.std() > 0.5
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  for path, right in jax.tree_util.tree_leaves_with_path(wanted):
    left = gradients
    for key in path:
      left = left[key.key]
    scale = np.abs(right).max()
    np.testing.assert_allclose(left, right, atol=1e-5 * scale, err_msg=str(path))
  assert np.abs(wanted["stack"]["depth_table"]["lower_bounds"]).max() > 1e-3

  @jax.jit
  def decode(params):
    found, state = model.apply({"params": params}, tokens[:, :12], capacity=19)
    parts = [found]
    for t in range(12, 19):
      found, state = model.apply({"params": params}, tokens[:, t : t + 1], state=state)
      parts.append(found)
    return jnp.concatenate(parts, axis=1)

  np.testing.assert_allclose(decode(params), expected, rtol=0, atol=1e-5)


def test_lower_bounds_grow_with_depth_also_between_other_mixers():
  """Each block of HGRN2 in a hybrid has its row, in the order of depth."""
  backbone = dataclasses.replace(BACKBONE, depth=5)
  models = {"a": lambda: hgrn2(backbone, heads=2), "b": lambda: xlstm(backbone, heads=2)}
  model = hybrid(backbone, mixers=models, pattern=["a", "b"])
  tokens = np.zeros((1, 3), np.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
  assert variables["params"]["stack"]["depth_table"]["lower_bounds"].value.shape == (3, 16)
  bounds = []

  def note(next_function, args, kwargs, context):
    if isinstance(context.module, HGRN2) and context.method_name == "__call__":
      bounds.append(args[4])
    return next_function(*args, **kwargs)

  with nn.intercept_methods(note):
    model.clone(scan=False).init(jax.random.key(0), tokens)
  np.testing.assert_allclose([bound[0] for bound in bounds], [0, 1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("build", [hgrn2, xlstm])
def test_weight_decay_acts_on_linear_maps_and_the_embedding_alone(build):
  paths = [tuple(p.path.split("/")) for p in list_parameters(build(BACKBONE, heads=2))]
  plain = {path[-2] for path in paths if not is_decayed(path)}
  table = {"depth_table"} if build is hgrn2 else {"mixer"}
  assert plain == {"norm", "mixer_norm", "mlp_norm", "final_norm"} | table


def test_sizes_that_the_papers_do_not_have():
  mixer = hgrn2(BACKBONE, heads=4, expansion=6).mixers()[0]
  assert (mixer.key_dim, mixer.value_dim) == (6, 4)
  model = xlstm(dataclasses.replace(BACKBONE, logit_cap=9.0), heads=4, key_dim=3)
  assert (model.mixers()[0].key_dim, model.mixers()[0].value_dim) == (3, 4)
  assert (model.logit_cap, model.tied) == (9.0, False)


@pytest.mark.parametrize("build", [hgrn2, xlstm])
def test_there_is_no_export(build):
  with pytest.raises(ValueError, match=r"^the PyTorch code of exports lacks parts of[^\n]*$"):
    adapters.of_model(build(BACKBONE, heads=2))


@pytest.mark.parametrize(
  ("build", "options", "message"),
  [
    (hgrn2, {"heads": 3}, "heads=3 does not divide width=16"),
    (xlstm, {"heads": 3}, "heads=3 does not divide width=16"),
    (hgrn2, {"heads": 2, "chunk": 48}, "chunk=48 is no power of two"),
    (xlstm, {"heads": 16}, "heads=16: a head of one value has no layer norm"),
  ],
)
def test_what_does_not_fit_is_refused(build, options, message):
  with pytest.raises(ValueError, match=message):
    build(BACKBONE, **options)
