"""PyTorch code of an exported model: Griffin, Hawk, CG-LRU, or a Transformer with the same blocks.

It lies beside the weights, and `transformers` loads it with `trust_remote_code=True`. It holds what
no class of transformers holds exactly. Batches with padding, at the left or not at all, give the
same logits as their rows alone: padding resets the recurrences, and attention does not see it.

Shapes: B rows, T tokens, D width, R channels of the recurrence, H heads, G key/value heads, K
channels of a head, N gate blocks.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

DECAY_EXPONENT = 8.0  # c of the Griffin paper's equation 4


class GriffinJaxConfig(PretrainedConfig):
  """The model's sizes and options, by the names of `OPTIONS`."""

  model_type = "griffin_jax"
  OPTIONS: ClassVar[dict[str, Any]] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "block_types": ("rg_lru", "rg_lru", "attention"),  # repeated and cut to the number of layers
    "activation": "gelu_pytorch_tanh",
    "mlp_width": 192,
    "use_bias": False,
    "rnn_width": 64,
    "gate_blocks": 16,
    "conv_width": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "window": None,  # tokens that attention sees, itself included; None: all
    "attention_input_bias": False,
    "attention_output_bias": False,
    "rotary_base": 10_000.0,
    "rotary_fraction": 1.0,
    "rotary_scaling": None,  # factor, original_length, low, high
    "norm_epsilon": 1e-6,
    "zero_centered_norm": False,
    "embedding_scale": 1.0,
    "tied_embedding": True,
    "logit_cap": None,
    "use_cache": True,
  }

  def __init__(self, **kwargs):
    for name, default in self.OPTIONS.items():
      setattr(self, name, kwargs.pop(name, default))
    # `tied_embedding` ties: transformers' own way needs names that differ between its versions.
    kwargs["tie_word_embeddings"] = False
    super().__init__(**kwargs)


class DecodeState:
  """What the blocks remember, and how many tokens, padding included, they have seen.

  Attributes:
    layers: a dictionary of tensors with a leading axis B for each block.
    length: tokens seen.
  """

  is_compileable = False

  def __init__(self, layers: int):
    self.layers: list[dict[str, torch.Tensor]] = [{} for _ in range(layers)]
    self.length = 0

  def get_seq_length(self, layer_idx: int = 0) -> int:
    """Returns the number of tokens seen."""
    return self.length

  def reorder_cache(self, beam_idx: torch.Tensor) -> None:
    """Makes row b that of row `beam_idx[b]`, for beam search."""
    for layer in self.layers:
      for name, tensor in layer.items():
        layer[name] = tensor.index_select(0, beam_idx.to(tensor.device))


class Norm(nn.Module):
  """Root-mean-square normalisation in float32."""

  def __init__(self, config):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(config.hidden_size))
    self.epsilon, self.offset = config.norm_epsilon, float(config.zero_centered_norm)

  def forward(self, x):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
    return (wide * (self.weight.float() + self.offset)).type_as(x)


class BlockDiagonal(nn.Module):
  """A linear map with a bias and N diagonal blocks."""

  def __init__(self, width, blocks, outputs):
    super().__init__()
    self.weight = nn.Parameter(torch.zeros(blocks, width // blocks, outputs // blocks))
    self.bias = nn.Parameter(torch.zeros(outputs))

  def forward(self, x):
    blocks = x.reshape(*x.shape[:-1], self.weight.shape[0], -1)
    return torch.einsum("btni,nio->btno", blocks, self.weight).flatten(-2) + self.bias


def scan(x, a, h0):
  """Solves h_t = a_t h_{t-1} + x_t over axis 1, by doubling.

  Args:
    x, a: [B, T, R], real or complex.
    h0: [B, R], the state before the first step.
  """
  h = torch.cat([x[:, :1] + a[:, :1] * h0[:, None], x[:, 1:]], dim=1)
  step = 1
  while step < h.shape[1]:
    h = torch.cat([h[:, :step], h[:, step:] + a[:, step:] * h[:, :-step]], dim=1)
    a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], dim=1)
    step *= 2
  return h


class RecurrentUnit(nn.Module):
  """RG-LRU (equations 1 to 4 of the Griffin paper) or CG-LRU (appendix B)."""

  def __init__(self, config, is_complex):
    super().__init__()
    self.is_complex, self.blocks = is_complex, config.gate_blocks
    numbers = config.rnn_width // 2 if is_complex else config.rnn_width
    self.a_param = nn.Parameter(torch.zeros(numbers))
    if is_complex:
      self.phase_param = nn.Parameter(torch.zeros(numbers))
    self.gate_a = BlockDiagonal(config.rnn_width, config.gate_blocks, numbers)
    self.gate_x = BlockDiagonal(config.rnn_width, config.gate_blocks, numbers)

  def forward(self, u, reset, state):
    r = torch.sigmoid(self.gate_a(u).float())
    log_a = -DECAY_EXPONENT * r * F.softplus(self.a_param.float())
    # 1 - a^2 with all its digits, also where a is near 1.
    gain = torch.sqrt(-torch.expm1(2 * log_a)).masked_fill(reset, 1.0)
    gain = gain * torch.sigmoid(self.gate_x(u).float())
    a = torch.exp(log_a)
    x = u.float()
    if self.is_complex:
      # A block's channels are its real parts, then its imaginary parts.
      parts = x.reshape(*x.shape[:-1], self.blocks, 2, -1)
      x = torch.complex(parts[..., 0, :].flatten(-2), parts[..., 1, :].flatten(-2))
      a = torch.polar(a, r * self.phase_param.float())
    x, a = gain * x, a.masked_fill(reset, 0.0)
    h = scan(x, a, state.get("h", torch.zeros_like(x[:, 0])))
    state["h"] = h[:, -1]
    if self.is_complex:
      parts = [part.reshape(*part.shape[:-1], self.blocks, 1, -1) for part in (h.real, h.imag)]
      h = torch.cat(parts, dim=-2).flatten(-3)
    return h.type_as(u)


class RecurrentBlock(nn.Module):
  """`out(f(y(x)) * recurrence(conv(x(x))))`, section 2.3 of the Griffin paper."""

  def __init__(self, config, is_complex):
    super().__init__()
    width, channels, bias = config.hidden_size, config.rnn_width, config.use_bias
    self.linear_y = nn.Linear(width, channels, bias=bias)
    self.linear_x = nn.Linear(width, channels, bias=bias)
    self.conv_1d = nn.Conv1d(channels, channels, config.conv_width, groups=channels)
    self.recurrence = RecurrentUnit(config, is_complex)
    self.linear_out = nn.Linear(channels, width, bias=bias)
    self.activation, self.before = ACT2FN[config.activation], config.conv_width - 1

  def forward(self, x, positions, real, state):
    # Padding before the first token gives the convolution zeros, as nothing at all does.
    u = self.linear_x(x) * real[..., None].type_as(x)
    history = state.get("history", u.new_zeros(u.shape[0], self.before, u.shape[2]))
    u = torch.cat([history, u], dim=1)
    state["history"] = u[:, u.shape[1] - self.before :]
    u = self.conv_1d(u.transpose(1, 2)).transpose(1, 2)
    h = self.recurrence(u, (positions == 0)[..., None], state)
    return self.linear_out(self.activation(self.linear_y(x)) * h)


class Attention(nn.Module):
  """Causal attention with shared key/value heads, global or within a window."""

  def __init__(self, config):
    super().__init__()
    self.config = config
    heads, groups, channels = (
      config.num_attention_heads,
      config.num_key_value_heads,
      config.head_dim,
    )
    width, bias = config.hidden_size, config.attention_input_bias
    self.q_proj = nn.Linear(width, heads * channels, bias=bias)
    self.k_proj = nn.Linear(width, groups * channels, bias=bias)
    self.v_proj = nn.Linear(width, groups * channels, bias=bias)
    self.o_proj = nn.Linear(heads * channels, width, bias=config.attention_output_bias)

  def forward(self, x, positions, real, state):
    config, (batch, length, _) = self.config, x.shape
    shape = (batch, length, -1, config.head_dim)
    q, k, v = (proj(x).view(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))
    q, k = (rotate(z, positions, config) for z in (q, k))
    if state:
      k, v = torch.cat([state["k"], k], dim=1), torch.cat([state["v"], v], dim=1)
      real = torch.cat([state["real"], real], dim=1)
    seen = k.shape[1]
    at = torch.arange(seen - length, seen, device=x.device)[:, None]
    lag = at - torch.arange(seen, device=x.device)
    visible = lag >= 0
    if config.window is not None:
      visible = visible & (lag < config.window)
    # Padding sees itself, so that no softmax runs over nothing.
    visible = (visible & real[:, None, :].bool()) | (lag == 0)
    kept = 0 if config.window is None else max(0, seen - config.window)
    state.update(k=k[:, kept:], v=v[:, kept:], real=real[:, kept:])
    repeats = config.num_attention_heads // config.num_key_value_heads
    k, v = (z.repeat_interleave(repeats, dim=2).transpose(1, 2) for z in (k, v))
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=visible[:, None])
    return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotate(x, positions, config):
  """Turns pairs of channels (c, c + half) of [B, T, H, K] by angles that grow with the position."""
  rotated = int(x.shape[-1] * config.rotary_fraction)
  half = min((rotated + 1) // 2, x.shape[-1] // 2)
  rotated = min(rotated, 2 * half)
  if half == 0:
    return x
  channels = torch.arange(half, dtype=torch.float32, device=x.device)
  frequencies = float(config.rotary_base) ** (-2 * channels / rotated)
  scaling = config.rotary_scaling
  if scaling and scaling.get("original_length") is None:
    frequencies = frequencies / scaling["factor"]
  elif scaling:
    fits = scaling["original_length"] * frequencies / (2 * math.pi)
    kept = ((fits - scaling["low"]) / (scaling["high"] - scaling["low"])).clamp(0, 1)
    frequencies = frequencies * (kept + (1 - kept) / scaling["factor"])
  angles = positions[..., None, None].float() * frequencies
  cos, sin = angles.cos(), angles.sin()
  first, second = x[..., :half].float(), x[..., half : 2 * half].float()
  turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
  return torch.cat([turned.type_as(x), x[..., 2 * half :]], dim=-1)


class MLP(nn.Module):
  """The gated MLP."""

  def __init__(self, config):
    super().__init__()
    width, hidden, bias = config.hidden_size, config.mlp_width, config.use_bias
    self.gate_proj = nn.Linear(width, hidden, bias=bias)
    self.up_proj = nn.Linear(width, hidden, bias=bias)
    self.down_proj = nn.Linear(hidden, width, bias=bias)
    self.activation = ACT2FN[config.activation]

  def forward(self, x):
    return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
  """A residual block: a mixer, then an MLP, each behind a norm."""

  def __init__(self, config, kind):
    super().__init__()
    self.mixer_norm, self.mlp_norm = Norm(config), Norm(config)
    self.mixer = (
      Attention(config) if kind == "attention" else RecurrentBlock(config, kind == "cg_lru")
    )
    self.mlp = MLP(config)

  def forward(self, x, positions, real, state):
    x = x + self.mixer(self.mixer_norm(x), positions, real, state)
    return x + self.mlp(self.mlp_norm(x))


class GriffinJaxForCausalLM(PreTrainedModel, GenerationMixin):
  """The language model."""

  config_class = GriffinJaxConfig
  base_model_prefix = ""
  _no_split_modules: ClassVar[list[str]] = ["Block"]
  # In bfloat16 the decays 0.999 and 0.995 would be the same number.
  _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["a_param", "phase_param"]
  _supports_sdpa = True
  _is_stateful = True

  def __init__(self, config):
    super().__init__(config)
    depth, pattern = config.num_hidden_layers, config.block_types
    kinds = [pattern[layer % len(pattern)] for layer in range(depth)]
    self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
    self.layers = nn.ModuleList([Block(config, kind) for kind in kinds])
    self.final_norm = Norm(config)
    if not config.tied_embedding:
      self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    self.post_init()

  def get_input_embeddings(self):
    return self.embed_tokens

  def get_output_embeddings(self):
    return None if self.config.tied_embedding else self.lm_head

  @classmethod
  def _supports_default_dynamic_cache(cls):
    return False  # `forward` makes its own

  def prepare_inputs_for_generation(
    self, input_ids, past_key_values=None, attention_mask=None, use_cache=True, **kwargs
  ):
    """Passes on the tokens that the state has not seen, and the mask of all."""
    if past_key_values is not None:
      input_ids = input_ids[:, past_key_values.get_seq_length() :]
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    inputs |= {"past_key_values": past_key_values, "use_cache": use_cache}
    return inputs | {k: kwargs[k] for k in ("logits_to_keep",) if k in kwargs}

  def forward(
    self,
    input_ids=None,
    attention_mask=None,
    past_key_values=None,
    inputs_embeds=None,
    labels=None,
    use_cache=None,
    logits_to_keep=0,
    num_items_in_batch=None,
    **kwargs,
  ):
    """Predicts the token after each token.

    Args:
      input_ids: [B, T].
      attention_mask: [B, S] for the T tokens and all before them; 0 is padding, at the left.
      past_key_values: the `DecodeState` after the tokens before.
      inputs_embeds: [B, T, D] in place of `input_ids`.
      labels: [B, T] as `input_ids`, -100 for tokens without loss.
      use_cache: whether to return a state.
      logits_to_keep: only the last tokens' logits; 0 gives all.
      num_items_in_batch: the loss is a sum divided by this; None divides by the tokens with a loss.
        The `Trainer` gives the tokens of all batches whose gradients it adds up.
    """
    x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    batch, length, _ = x.shape
    keep_state = self.config.use_cache and not self.training if use_cache is None else use_cache
    state = past_key_values or DecodeState(len(self.layers))
    total = state.length + length
    if attention_mask is None:
      attention_mask = x.new_ones((batch, total), dtype=torch.long)
    if attention_mask.shape[-1] != total:
      raise ValueError(
        f"attention_mask has {attention_mask.shape[-1]} columns, the tokens until here are {total}."
      )
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    real = attention_mask[:, -length:]
    if self.config.embedding_scale != 1.0:
      x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
    for layer, layer_state in zip(self.layers, state.layers, strict=True):
      x = layer(x, positions, real, layer_state)
    state.length = total
    x = self.final_norm(x)[:, -logits_to_keep if logits_to_keep else 0 :]
    head = self.embed_tokens if self.config.tied_embedding else self.lm_head
    logits = F.linear(x, head.weight).float()
    if (cap := self.config.logit_cap) is not None:
      logits = cap * torch.tanh(logits / cap)
    loss = None
    if labels is not None:
      reduction = "mean" if num_items_in_batch is None else "sum"
      targets = labels[:, 1:].flatten().to(logits.device)
      loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction=reduction)
      if num_items_in_batch is not None:
        loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device)
    kept: Any = state if keep_state else None
    return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=kept)
