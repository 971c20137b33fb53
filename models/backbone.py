"""What all models of the zoo have in common: everything but the mixers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp

from base.equal_partial import EqualPartial
from base.ranges import Count, Depth, FloatName, Immaterial, Positive
from layers.activations import Gate, gelu_gated
from layers.attention import SelfAttention
from layers.dtypes import Dtypes
from layers.mixer import MixerFactory
from layers.mlp import GatedMLP
from layers.norm import RMSNorm
from layers.recurrent_block import RecurrentBlock
from layers.rotary import RotaryScaling
from models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
  """Sizes and options that Griffin, Hawk and the MQA Transformer share (sections 2.1 and 2.2).

  Attributes:
    vocab_size: V.
    vocab_multiple: embedding and output have a multiple of this many rows, so that a mesh divides
      them; those behind the last id stand for nothing, and no id is drawn or learnt there.
    width: D.
    depth: number of residual blocks.
    mlp_expansion: MLP width over D, where `mlp_width` is None.
    mlp_width: MLP width F, any number.
    use_bias: biases on the linear maps, but for the attention's inputs (RecurrentGemma has them).
    tied: whether the embedding's matrix gives the logits too; None is the architecture's default.
    norm_epsilon: added to the mean square in every norm.
    zero_centered_norm: norms store scale - 1 (RecurrentGemma).
    scale_embedding: multiply the embedded tokens by sqrt(D), rounded to bfloat16 (RecurrentGemma).
    logit_cap: bound on the logits (RecurrentGemma: 30).
    dtype: type of the activations.
    param_dtype: type of the stored parameters.
    remat: what the backward pass recomputes; a name from `layers.remat.POLICIES`.
    time_chunk: tokens of a row that training runs at a time, with the exact gradient of the row;
      None runs whole rows. See `training.time_chunks`.
    learned_states: whether recurrences begin each document with a state that is learned, instead of
      zero; see `layers.initial_state`. Convolutions and windows of attention begin with nothing.
    unroll: repetitions of the pattern per scan iteration.
  """

  vocab_size: Count
  width: Count
  depth: Depth
  vocab_multiple: Annotated[Count, Immaterial()] = 1
  mlp_expansion: Count = 3
  mlp_width: Count | None = None
  use_bias: bool = False
  tied: bool | None = None
  norm_epsilon: Positive = 1e-6
  zero_centered_norm: bool = False
  scale_embedding: bool = False
  logit_cap: Positive | None = None
  dtype: FloatName = "float32"
  param_dtype: FloatName = "float32"
  remat: str = "none"
  time_chunk: Count | None = None
  learned_states: bool = False
  unroll: Count = 1

  def recurrent(
    self,
    *,
    rnn_width: int,
    gate_blocks: int,
    implementation: str | None,
    conv_width: int = 4,
    activation: str = "gelu_tanh",
  ) -> MixerFactory:
    """The recurrent block at this size."""
    if rnn_width % gate_blocks:
      raise ValueError(
        f"gate_blocks={gate_blocks} does not divide rnn_width={rnn_width}: "
        "choose a number of gate blocks that does."
      )
    return EqualPartial(
      RecurrentBlock,
      rnn_width=rnn_width,
      gate_blocks=gate_blocks,
      conv_width=conv_width,
      activation=activation,
      use_bias=self.use_bias,
      output_scale=self.output_scale,
      implementation=implementation,
      **self.dtypes,
    )

  def attention(
    self,
    *,
    heads: int,
    window: int | None,
    rotary_fraction: float,
    implementation: str | None,
    kv_heads: int = 1,
    head_dim: int | None = None,
    rotary_base: float = 10_000.0,
    rotary_scaling: RotaryScaling | None = None,
    input_bias: bool = False,
    output_bias: bool | None = None,
  ) -> MixerFactory:
    """Multi-query attention (with one key/value head) at this size.

    `head_dim` is `width / heads` if it is None, and `output_bias` is `use_bias`.
    """
    if head_dim is None and self.width % heads:
      raise ValueError(
        f"heads={heads} does not divide width={self.width}: choose a number of heads that does."
      )
    if heads % kv_heads:
      raise ValueError(
        f"kv_heads={kv_heads} does not divide heads={heads}: choose a number that does."
      )
    return EqualPartial(
      SelfAttention,
      heads=heads,
      head_dim=head_dim or self.width // heads,
      kv_heads=kv_heads,
      window=window,
      rotary_fraction=rotary_fraction,
      rotary_base=rotary_base,
      rotary_scaling=rotary_scaling,
      use_input_bias=input_bias,
      use_output_bias=self.use_bias if output_bias is None else output_bias,
      output_scale=self.output_scale,
      implementation=implementation,
      **self.dtypes,
    )

  def mlp(self, gated: Gate = gelu_gated) -> Callable[..., GatedMLP]:
    """The MLP at this size; `gated` joins its branches."""
    return EqualPartial(
      GatedMLP,
      hidden=self.mlp_width or self.mlp_expansion * self.width,
      output_scale=self.output_scale,
      use_bias=self.use_bias,
      gated=gated,
      **self.dtypes,
    )

  def model(
    self,
    pattern: tuple[MixerFactory, ...],
    *,
    mlp: Callable[..., GatedMLP] | None = None,
    tied: bool = True,
  ) -> LanguageModel:
    """The language model whose blocks mix by `pattern`, repeated and cut to depth.

    Args:
      pattern: the mixers of the blocks.
      mlp: of every block; None is `self.mlp()`.
      tied: whether the embedding is the output head too, where the option of that name is None.
    """
    return self._model(pattern, mlp or self.mlp(), depth=self.depth, tied=tied)

  def model_of_mixers(self, pattern: tuple[MixerFactory, ...], *, depth: int) -> LanguageModel:
    """A language model of `depth` mixers without MLPs, such as Mamba-2."""
    return self._model(pattern, None, depth=depth, tied=True)

  def _model(
    self,
    pattern: tuple[MixerFactory, ...],
    mlp: Callable[..., GatedMLP] | None,
    *,
    depth: int,
    tied: bool,
  ) -> LanguageModel:
    if self.learned_states:
      # The others are refused when the model is used: a hybrid takes one mixer of a model.
      pattern = tuple(
        EqualPartial(mixer, learned_state=True)
        if hasattr(mixer(parent=None), "learned_state")
        else mixer
        for mixer in pattern
      )
    scale = float(jnp.sqrt(self.width).astype(jnp.bfloat16)) if self.scale_embedding else 1.0
    return LanguageModel(
      vocab_size=self.vocab_size,
      vocab_multiple=self.vocab_multiple,
      width=self.width,
      depth=depth,
      pattern=pattern,
      mlp=mlp,
      tied=tied if self.tied is None else self.tied,
      norm=EqualPartial(
        RMSNorm,
        epsilon=self.norm_epsilon,
        zero_centered=self.zero_centered_norm,
        **self.dtypes,
      ),
      embedding_scale=scale,
      logit_cap=self.logit_cap,
      remat=self.remat,
      time_chunk=self.time_chunk,
      learned_states=self.learned_states,
      unroll=self.unroll,
      **self.dtypes,
    )

  @property
  def dtypes(self) -> Dtypes:
    """The types that every module takes by keyword."""
    return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

  @property
  def output_scale(self) -> float:
    """The scale at which the last map of a mixer or MLP is initialised."""
    # Each block adds two outputs to the residual stream: its variance at the last block is then
    # of order one whatever the depth.
    return 2.0 / self.depth
