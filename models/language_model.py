"""The language model that every architecture of the zoo is an instance of."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from base.equal_partial import EqualPartial
from layers import initial_state
from layers.dtypes import Dtypes, dtypes_of
from layers.embedding import Embedding, OutputHead
from layers.mixer import Mixer, MixerFactory, ModuleFactory, State
from layers.segments import Segments, positions_in_segments
from layers.stack import Stack
from parallel import sequence, sharded_vocabulary


class DecodeState(NamedTuple):
  """What a model remembers of the tokens before.

  Attributes:
    stack: the blocks' states.
    position: [B] int32, the position of each row's next token.
    segment_id: [B] int32, the segment that goes on.
  """

  stack: State
  position: jax.Array
  segment_id: jax.Array


class LanguageModel(nn.Module):
  """Embedding, a stack of residual blocks, a last norm, and logits.

  Section 2.1 of the Griffin paper. Architectures differ only in `pattern`.

  Attributes:
    vocab_size, width, depth: V, D and the number of blocks.
    pattern: mixer factories, repeated and cut to depth.
    mlp, norm: factories of the other parts of a block; an MLP of None is left out.
    embedding_scale: factor on the embedded tokens.
    vocab_multiple: embedding and output have a multiple of this many rows; see `padded_vocab_size`.
    tied: whether the embedding's matrix gives the logits; else one of its own does.
    embedding_fan_in: embedding and output matrix start with variance 1 / this; None is D.
    logit_factor: factor on the logits, before the cap. Both are for `models.maximal_update`.
    logit_cap: logits are bounded to +-cap by a tanh (RecurrentGemma: 30); None leaves them.
    remat: what the backward pass recomputes; a name from `layers.remat.POLICIES`.
    time_chunk: tokens of a row that training runs at a time, with the exact gradient of the row;
      None runs whole rows. See `training.time_chunks`.
    learned_states: whether the mixers' initial states are learned; see `Backbone`.
    unroll: repetitions of the pattern per scan iteration.
    scan: whether the repetitions are scanned; see `unstacked`.
    dtype: type of the activations.
    param_dtype: type of the stored parameters.
  """

  vocab_size: int
  width: int
  depth: int
  pattern: tuple[MixerFactory, ...]
  mlp: ModuleFactory | None
  norm: ModuleFactory
  embedding_scale: float = 1.0
  vocab_multiple: int = 1
  tied: bool = True
  logit_cap: float | None = None
  embedding_fan_in: int | None = None
  logit_factor: float = 1.0
  remat: str = "none"
  time_chunk: int | None = None
  learned_states: bool = False
  unroll: int = 1
  scan: bool = True
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  def setup(self):
    if self.learned_states:
      initial_state.check_mixers(self.mixers())
    dtypes = dtypes_of(self)
    sizes = self.vocab_size, self.width, self.vocab_multiple
    fan_in = self.embedding_fan_in
    self.embedding = Embedding(*sizes, self.embedding_scale, fan_in, **dtypes)
    if not self.tied:
      self.head = OutputHead(*sizes, fan_in, **dtypes)
    self.stack = self._stack()
    self.final_norm = self.norm()

  def _stack(self, **kwargs) -> Stack:
    options = self.remat, self.unroll, self.scan
    return Stack(self.pattern, self.depth, self.mlp, self.norm, *options, **kwargs)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    state: DecodeState | None = None,
    capacity: int | None = None,
    last_only: bool = False,
  ) -> tuple[jax.Array, DecodeState | None]:
    """Predicts the token after each token.

    Args:
      tokens: [B, T] int32.
      segment_ids: [B, T] int32, contiguous runs, 0 on padding; one segment a row if None.
      positions: [B, T] int32 positions within segments; counted from the segment ids if None.
      state: decode state to continue from; positions and segments go on where it stopped.
      capacity: with state None: also return a state with room for this many tokens, T included.
      last_only: give only the last token's logits (all that sampling needs).

    Returns:
      float32 logits [B, T, V] ([B, 1, V] if last_only), and the state after the last token.
    """
    x, state = self._blocks(tokens, segment_ids, positions, state, capacity)
    return self.logits(self.final_norm(x[:, -1:] if last_only else x)), state

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps normalised hidden states [B, T, D] to float32 logits [B, T, V].

    Where the vocabulary is split over devices, to this device's part of [B, T, padded_vocab_size],
    with -inf for padding.
    """
    logits = self.embedding.logits(x) if self.tied else self.head(x)
    if self.logit_factor != 1.0:
      logits = float(self.logit_factor) * logits
    if self.logit_cap is not None:
      cap = float(self.logit_cap)  # JAX takes a whole number of more than 32 bits for no float.
      logits = cap * jnp.tanh(logits / cap)
    # Behind the cap, which would make a number of -inf.
    return sharded_vocabulary.without_padding(logits, self.vocab_size)

  def hidden(
    self,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    state: DecodeState | None = None,
    capacity: int | None = None,
  ) -> tuple[jax.Array, DecodeState | None]:
    """The normalised hidden states [B, T, D] that `logits` maps to predictions, and the state.

    Arguments and state are those of a call. Of a bound model it also gathers the output matrix
    (ZeRO stage 3), so that `logits` of parts of the hidden states share one gather, and one
    reduction of the gradient.
    """
    x, state = self._blocks(tokens, segment_ids, positions, state, capacity)
    if not self.tied:
      _ = self.head.kernel
    return self.final_norm(x), state

  def _blocks(self, tokens, segment_ids, positions, state, capacity):
    """The last block's result [B, T, D], and the state after the last token."""
    segments = self._segments(tokens, segment_ids, positions, state)
    x = self.embedding.embed(tokens)
    x, stack_state = self.stack(x, segments, state and state.stack, capacity)
    if stack_state is None:
      return x, None
    last = jax.tree.map(lambda each: sequence.of_last(each[:, -1]), segments)
    return x, DecodeState(stack_state, last.positions + 1, last.ids)

  def _segments(self, tokens, segment_ids, positions, state) -> Segments:
    if state is not None:
      steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
      if segment_ids is None:
        segment_ids = jnp.broadcast_to(state.segment_id[:, None], tokens.shape)
      if positions is None:
        positions = state.position[:, None] + steps
    if segment_ids is None:
      segment_ids = jnp.ones(tokens.shape, jnp.int32)
    if positions is None:
      positions = positions_in_segments(segment_ids)
    return Segments(segment_ids, positions)

  def initial_state(self, batch_size: int, capacity: int) -> DecodeState:
    """The state before the first token.

    Args:
      batch_size: B.
      capacity: tokens that a global-attention cache has room for; nothing else depends on it.
    """
    return DecodeState(
      stack=self._stack(parent=None).initial_state(batch_size, capacity),
      position=jnp.zeros(batch_size, jnp.int32),
      segment_id=jnp.ones(batch_size, jnp.int32),
    )

  def trains(self, path: str) -> bool:
    """Whether training changes the parameter at this path (names joined by slashes)."""
    del path
    return True

  def with_types(self, dtype: jnp.dtype, param_dtype: jnp.dtype) -> LanguageModel:
    """The same model with activations and parameters of other types."""
    dtypes: Dtypes = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    return self.clone(
      pattern=tuple(EqualPartial(mixer, **dtypes) for mixer in self.pattern),
      mlp=self.mlp and EqualPartial(self.mlp, **dtypes),
      norm=EqualPartial(self.norm, **dtypes),
      **dtypes,
    )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the embedding and of the output matrix: V and those that are padding."""
    return sharded_vocabulary.padded(self.vocab_size, self.vocab_multiple)

  def mixers(self) -> list[Mixer]:
    """The unbound mixer of every block, in order."""
    return self._stack(parent=None).mixers()

  def matmul_flops(self, length: int) -> float:
    """Floating-point operations of the matrix products per token of a row, forward."""
    mlp = self.mlp(parent=None).matmul_flops(self.width) if self.mlp else 0
    mixing = sum(mixer.matmul_flops(self.width, length) for mixer in self.mixers())
    return mixing + self.depth * mlp + 2 * self.padded_vocab_size * self.width
