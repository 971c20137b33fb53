"""Continues prompts: one prefill, then a compiled loop of single steps from a decode state."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inference.sampling import Sampler
from layers.stack import unstack
from models.language_model import DecodeState, LanguageModel
from parallel import shards
from parallel.rows import OneDevice, Rows
from parallel.vocabulary import whole

# What stands in a row after its end.
ENDED = -1
# Lengths of prompts and caches are multiples of this, so that few of them get compiled.
_MULTIPLE = 64
_ONE_DEVICE = OneDevice()


class Progress(NamedTuple):
  """Where the decoding of a batch stands.

  Attributes:
    state: the model's state after the last token.
    logits: [B, V] float32, of the next token.
    ended: [B] bool, rows that have met a stop token.
    step: int32, tokens generated.
  """

  state: DecodeState
  logits: jax.Array
  ended: jax.Array
  step: jax.Array


class Choices(NamedTuple):
  """What may be drawn.

  Attributes:
    allowed: [V] bool, tokens that may be drawn.
    stops: [V] bool, tokens that end a row.
  """

  allowed: np.ndarray
  stops: np.ndarray


class Lowered(NamedTuple):
  """The programs of a decoder, before they are compiled.

  Attributes:
    prefill: reads the prompts.
    advance: generates a chunk of tokens; its loop's body is one token.
    carried: shapes of what goes from one to the other, (parameters cut into layers, `Progress`).
  """

  prefill: jax.stages.Lowered
  advance: jax.stages.Lowered
  carried: Any


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Prompts of different lengths as one batch, padded on the left.

  Attributes:
    tokens: [B, T] int32.
    segment_ids: [B, T] int32, 0 on padding and 1 on the prompt.
    identities: [B, 2] uint32: a hash of what the prompt says, and which of its copies this is.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  identities: np.ndarray

  @classmethod
  def pad(cls, prompts: Sequence[Sequence[int]], least: int = 0) -> Prompts:
    """Makes a batch, at least `least` long, of token sequences with at least one token (BOS) each."""
    if not prompts or not all(len(prompt) for prompt in prompts):
      raise ValueError("every prompt needs at least one token: begin with the vocabulary's BOS.")
    longest = max(len(prompt) for prompt in prompts)
    length = _round_up(max(longest, least))
    tokens = np.zeros((len(prompts), length), np.int32)
    segment_ids = np.zeros_like(tokens)
    identities = np.zeros((len(prompts), 2), np.uint32)
    copies: Counter[bytes] = Counter()
    for row, prompt in enumerate(prompts):
      tokens[row, length - len(prompt) :] = prompt
      segment_ids[row, length - len(prompt) :] = 1
      content = np.asarray(prompt, np.int32).tobytes()
      identities[row] = zlib.crc32(content), copies[content]
      copies[content] += 1
    return cls(tokens, segment_ids, identities)


class Decoder:
  """Generates with one model and one way to sample."""

  def __init__(
    self,
    model: LanguageModel,
    sampler: Sampler,
    *,
    stop_ids: Sequence[int] = (),
    forbidden_ids: Sequence[int] = (),
    where: Rows | None = None,
  ):
    """Sets what all calls share.

    Args:
      model: the model.
      sampler: how tokens are drawn.
      stop_ids: a row ends before the first of these.
      forbidden_ids: never drawn; ids of padding, say.
      where: the devices; one if None.

    Raises:
      ValueError: every token is forbidden.
    """
    tokens = np.arange(model.vocab_size)
    choices = Choices(
      allowed=~np.isin(tokens, list(forbidden_ids)), stops=np.isin(tokens, list(stop_ids))
    )
    if not choices.allowed.any():
      raise ValueError(f"all {model.vocab_size} tokens are forbidden: nothing can be generated.")
    self._model = model
    self._sampler = sampler
    self._choices = choices
    self._where = where or _ONE_DEVICE

  def generate(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    seed: int = 0,
    chunk: int = 64,
    pad_to: int = 0,
  ) -> Iterator[np.ndarray]:
    """Continues prompts.

    What a prompt is continued with depends on the seed, the prompt, and how many copies of it came
    before it in the batch, on nothing else: other prompts beside it change nothing.

    Args:
      params: the model's parameters.
      prompts: token ids, each beginning with BOS.
      max_tokens: where rows end that met no stop token.
      seed: of the draws.
      chunk: tokens per compiled loop; the caller gets control in between.
      pad_to: prompts are padded to this length at least, so that batches share compiled programs.

    Yields:
      [B, n] int32, n <= chunk: the next tokens; `ENDED` from a row's stop token on.
    """
    # Devices have equally many rows: some are decoded twice, and shown once.
    surplus = -len(prompts) % self._where.shards
    batch = Prompts.pad([*prompts, *prompts[-1:] * surplus], pad_to)
    keys = row_keys(seed, batch.identities)
    capacity = _round_up(batch.tokens.shape[1] + max_tokens)
    rows = batch.tokens, batch.segment_ids
    params = self._where.place(params)
    carried = _prefill(self._where, self._model, params, rows, capacity=capacity)
    model, done = self._model.clone(scan=False), 0
    while done < max_tokens:
      steps = min(chunk, max_tokens - done)
      shared = self._choices, np.int32(steps)
      (tokens, ended), carried = _advance(
        self._where, model, self._sampler, carried, keys, shared, size=chunk
      )
      done += steps
      tokens = np.asarray(tokens)[: len(prompts), :steps]
      ended = np.asarray(ended).all()
      if ended:
        tokens = tokens[:, (tokens != ENDED).any(axis=0)]
      if tokens.shape[1]:
        yield tokens
      if ended:
        return

  def lower(
    self, params: Any, *, rows: int, length: int, max_tokens: int, chunk: int = 64
  ) -> Lowered:
    """The programs of `generate`, to be compiled for devices that need not be here.

    Args:
      params: shapes, types and shardings of the parameters, where `Rows.place` puts them.
      rows: prompts at a time, a multiple of the shards.
      length: tokens per prompt.
      max_tokens, chunk: as in `generate`.
    """
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    prompts = self._where.abstract((tokens, tokens), "rows")
    options = self._where, self._model, params, prompts
    capacity = _round_up(length + max_tokens)
    carried = _prefill.eval_shape(*options, capacity=capacity)
    carried = self._where.abstract(carried, "carried")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    advance = _advance.lower(
      self._where,
      self._model.clone(scan=False),
      self._sampler,
      carried,
      self._where.abstract(keys, "rows"),
      self._where.abstract((self._choices, np.int32(0)), "shared"),
      size=chunk,
    )
    return Lowered(_prefill.lower(*options, capacity=capacity), advance, carried)


@functools.partial(jax.jit, static_argnames=("where", "model", "capacity"))
def _prefill(where: Rows, model: LanguageModel, params, rows, *, capacity: int):
  """Reads the prompts; cuts parameters and state into layers, once for all tokens to come."""

  def read(params, rows):
    tokens, segment_ids = rows
    logits, state = model.apply(
      {"params": params}, tokens, segment_ids=segment_ids, capacity=capacity, last_only=True
    )
    ended = jnp.zeros(tokens.shape[0], bool)
    state = state._replace(stack=unstack(state.stack))
    progress = Progress(state, whole(logits[:, 0]), ended, jnp.zeros((), jnp.int32))
    return {**params, "stack": unstack(params["stack"])}, progress

  return where.start(read, params, rows)


@functools.partial(
  jax.jit, static_argnames=("where", "model", "sampler", "size"), donate_argnames="carried"
)
def _advance(
  where: Rows,
  model: LanguageModel,
  sampler: Sampler,
  carried: tuple[Any, Progress],
  keys: jax.Array,
  shared: tuple[Choices, jax.Array],
  *,
  size: int,
):
  """Generates up to `steps` <= `size` tokens; stops early once all rows have ended."""

  def advance(carried, keys, shared):
    (params, progress), (choices, steps) = carried, shared
    first, rows = progress.step, progress.ended.shape[0]

    def unfinished(carry):
      _, progress = carry
      # Of all devices, so that they leave the loop together.
      going = shards.total(jnp.sum(~progress.ended), "batch")
      return (progress.step < first + steps) & (going > 0)

    def step(carry):
      tokens, progress = carry
      column = progress.step - first
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, progress.step)
      token = sampler(jnp.where(choices.allowed, progress.logits, -jnp.inf), step_keys)
      ended = progress.ended | choices.stops[token]
      logits, state = model.apply(
        {"params": params}, token[:, None], state=progress.state, last_only=True
      )
      shown = jnp.where(ended, ENDED, token)
      tokens = jax.lax.dynamic_update_slice(tokens, shown[:, None], (0, column))
      return tokens, Progress(state, whole(logits[:, 0]), ended, progress.step + 1)

    tokens = jnp.full((rows, size), ENDED, jnp.int32)
    tokens, progress = jax.lax.while_loop(unfinished, step, (tokens, progress))
    return (tokens, progress.ended), (params, progress)

  return where.go_on(advance, carried, keys, shared)


def _round_up(length: int) -> int:
  return -(-length // _MULTIPLE) * _MULTIPLE


def row_keys(seed: int, identities: np.ndarray) -> jax.Array:
  """One random key per row, from the seed and the row's identity [B, 2] (see `Prompts`)."""
  key = jax.random.key(seed)

  def of_row(identity: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, identity[0]), identity[1])

  return jax.vmap(of_row)(jnp.asarray(identities))


def rows_of(chunks: Iterator[np.ndarray] | Sequence[np.ndarray], batch: int) -> list[list[int]]:
  """Joins what `Decoder.generate` yields into one list of ids per row, ends cut off."""
  rows: list[list[int]] = [[] for _ in range(batch)]
  for tokens in chunks:
    for row, ids in zip(rows, tokens, strict=True):
      row += [int(token) for token in ids if token != ENDED]
  return rows
