"""Continues prompts: one prefill, then a compiled loop of single steps from a decode state."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from inference.decode_sharding import DecodeSharding, OneDevice
from inference.sampling import Sampler
from kernels import platform
from layers.stack import unstack
from models.language_model import DecodeState, LanguageModel
from parallel import shards
from parallel.sharded_vocabulary import whole

# Fill value after the stop token.
ENDED = -1
# Lengths of prompts and caches are multiples of this, so that few of them get compiled.
_MULTIPLE = 64
# Where a CPU's cores take rows each instead of sharing the products, each of them reads all weights
# at every token: they must fit into the cache that the cores share, and serve some rows.
_SHARED_CACHE_BYTES = 2**25
_ROWS_PER_CORE = 4
_ONE_DEVICE = OneDevice()


class DecodeCarry(NamedTuple):
  """All that decoding a batch carries from token to token.

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


class TokenConstraints(NamedTuple):
  """Which tokens may be drawn, and which end a row.

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
    params: shapes of the parameters that `advance` reads.
    carry: shapes of the `DecodeCarry` that goes from one to the other.
  """

  prefill: jax.stages.Lowered
  advance: jax.stages.Lowered
  params: Any
  carry: DecodeCarry


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
  def pad(
    cls,
    prompts: Sequence[Sequence[int]],
    least: int = 0,
    identities: np.ndarray | None = None,
  ) -> Prompts:
    """Makes a batch, at least `least` long, of token sequences with at least one token (BOS) each.

    None takes the identities of these prompts alone.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
      raise ValueError("every prompt needs at least one token: begin with the vocabulary's BOS.")
    longest = max(len(prompt) for prompt in prompts)
    length = _round_up(max(longest, least))
    tokens = np.zeros((len(prompts), length), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
      tokens[row, length - len(prompt) :] = prompt
      segment_ids[row, length - len(prompt) :] = 1
    if identities is None:
      identities = identities_of(prompts)
    return cls(tokens, segment_ids, identities)


def identities_of(prompts: Sequence[Sequence[int]]) -> np.ndarray:
  """[B, 2] uint32: a hash of each prompt, and how many equal ones come before it."""
  identities = np.zeros((len(prompts), 2), np.uint32)
  copies: Counter[bytes] = Counter()
  for row, prompt in enumerate(prompts):
    content = np.asarray(prompt, np.int32).tobytes()
    identities[row] = zlib.crc32(content), copies[content]
    copies[content] += 1
  return identities


class Decoder:
  """Generates with one model and one way to sample."""

  def __init__(
    self,
    model: LanguageModel,
    sampler: Sampler,
    *,
    stop_ids: Sequence[int] = (),
    forbidden_ids: Sequence[int] = (),
    where: DecodeSharding | None = None,
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
    constraints = TokenConstraints(
      allowed=~np.isin(tokens, list(forbidden_ids)), stops=np.isin(tokens, list(stop_ids))
    )
    if not constraints.allowed.any():
      raise ValueError(f"all {model.vocab_size} tokens are forbidden: nothing can be generated.")
    self._model = model
    self._sampler = sampler
    self._constraints = constraints
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
    identities: np.ndarray | None = None,
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
      identities: `identities_of` the prompts [B, 2] uint32, where they are part of a longer list.

    Yields:
      [B, n] int32, n <= chunk: the next tokens; `ENDED` from a row's stop token on.
    """
    groups = self._groups(params, len(prompts))
    # Devices, and groups, have equally many rows: some are decoded twice, and shown once.
    surplus = -len(prompts) % (self._where.shards * groups)
    if identities is not None:
      identities = np.concatenate([identities, *[identities[-1:]] * surplus])
    batch = Prompts.pad([*prompts, *list(prompts[-1:]) * surplus], pad_to, identities)
    keys = jnp.split(row_keys(seed, batch.identities), groups)
    capacity = _round_up(batch.tokens.shape[1] + max_tokens)
    params = self._where.place(params)
    prefill = functools.partial(_prefill, self._where, self._model, params, capacity=capacity)
    rows = (np.split(array, groups) for array in (batch.tokens, batch.segment_ids))
    carry = [prefill(group) for group in zip(*rows, strict=True)]
    params = self._cut(params)
    # Compiled here, so that what is in force in the caller's thread holds for all.
    advance = self._lower_advance(params, carry[0], keys[0], self._shared(0), chunk).compile()

    def go_on(group: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
      found, carry[group] = advance(params, carry[group], keys[group], self._shared(steps))
      return jax.device_get(found)

    done = 0
    threads = concurrent.futures.ThreadPoolExecutor(groups)
    try:
      while done < max_tokens:
        steps = min(chunk, max_tokens - done)
        found = threads.map(functools.partial(go_on, steps=steps), range(groups))
        tokens, ended = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        done += steps
        tokens = tokens[: len(prompts), :steps]
        if ended.all():
          tokens = tokens[:, (tokens != ENDED).any(axis=0)]
        if tokens.shape[1]:
          yield tokens
        if ended.all():
          return
    finally:
      # Without waiting: who leaves a generator in the middle may be leaving Python.
      threads.shutdown(wait=False)

  def _groups(self, params: Any, rows: int) -> int:
    """Into how many groups the rows are cut, each of which a thread decodes by itself.

    A small model's products of one token take too little time for a CPU's cores to share each.
    """
    if platform.target() != "cpu" or not self._where.concurrent:
      return 1
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > _SHARED_CACHE_BYTES:
      return 1
    return max(1, min(platform.cores(), rows // _ROWS_PER_CORE))

  def _cut(self, params: Any) -> Any:
    """What `advance` reads: a copy of the parameters, cut into layers, or themselves if memory is
    short.
    """
    return params if self._where.lean else _cut(self._where, params)

  def _shared(self, steps: int) -> tuple[TokenConstraints, np.int32]:
    return self._constraints, np.int32(steps)

  def _lower_advance(self, params, carry, keys, shared, size: int) -> jax.stages.Lowered:
    model = self._model if self._where.lean else self._model.clone(scan=False)
    options = self._where, model, self._sampler
    return _advance.lower(*options, params, carry, keys, shared, size=size)

  def lower(
    self, params: Any, *, rows: int, length: int, max_tokens: int, chunk: int = 64
  ) -> Lowered:
    """The programs of `generate`, to be compiled for devices that need not be here.

    Args:
      params: shapes, types and shardings of the parameters, where `DecodeSharding.place` puts them.
      rows: prompts at a time, a multiple of the shards.
      length: tokens per prompt.
      max_tokens, chunk: as in `generate`.
    """
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    prompts = self._where.abstract((tokens, tokens), "rows")
    options = self._where, self._model, params, prompts
    capacity = _round_up(length + max_tokens)
    carry = self._where.abstract(_prefill.eval_shape(*options, capacity=capacity), "carried")
    cut = params
    if not self._where.lean:
      cut = self._where.abstract(_cut.eval_shape(self._where, params), "carried")
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    keys, shared = (
      self._where.abstract(keys, "rows"),
      self._where.abstract(self._shared(0), "shared"),
    )
    return Lowered(
      prefill=_prefill.lower(*options, capacity=capacity),
      advance=self._lower_advance(cut, carry, keys, shared, chunk),
      params=cut,
      carry=carry,
    )


@functools.partial(jax.jit, static_argnames="where")
def _cut(where: DecodeSharding, params):
  """Cuts the parameters into layers, once for all tokens to come."""

  def cut(params, _):
    return {**params, "stack": unstack(params["stack"])}

  return where.start(cut, params, ())


def _applied(model: LanguageModel, params, tokens, **options) -> tuple[jax.Array, DecodeState]:
  """The model's logits and state; options hold a state or a capacity."""
  return cast(tuple[jax.Array, DecodeState], model.apply({"params": params}, tokens, **options))


@functools.partial(jax.jit, static_argnames=("where", "model", "capacity"))
def _prefill(where: DecodeSharding, model: LanguageModel, params, rows, *, capacity: int):
  """Reads the prompts."""

  def read(params, rows):
    tokens, segment_ids = rows
    logits, state = _applied(
      model, params, tokens, segment_ids=segment_ids, capacity=capacity, last_only=True
    )
    ended = jnp.zeros(tokens.shape[0], bool)
    if not where.lean:
      state = state._replace(stack=unstack(state.stack))
    logits = whole(logits[:, 0], model.vocab_size)
    return DecodeCarry(state, logits, ended, jnp.zeros((), jnp.int32))

  return where.start(read, params, rows)


@functools.partial(
  jax.jit, static_argnames=("where", "model", "sampler", "size"), donate_argnames="carry"
)
def _advance(
  where: DecodeSharding,
  model: LanguageModel,
  sampler: Sampler,
  params: Any,
  carry: DecodeCarry,
  keys: jax.Array,
  shared: tuple[TokenConstraints, jax.Array],
  *,
  size: int,
):
  """Generates up to `steps` <= `size` tokens; stops early once all rows have ended."""

  def advance(params, carry, keys, shared):
    constraints, steps = shared
    first, rows = carry.step, carry.ended.shape[0]

    def unfinished(loop):
      _, carry = loop
      # Of all devices, so that they leave the loop together.
      going = shards.total(jnp.sum(~carry.ended), "batch")
      return (carry.step < first + steps) & (going > 0)

    def step(loop):
      tokens, carry = loop
      column = carry.step - first
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.step)
      # A token that is allowed stays so, whatever the model says of it.
      logits = jnp.maximum(carry.logits, jnp.finfo(jnp.float32).min)
      token = sampler(jnp.where(constraints.allowed, logits, -jnp.inf), step_keys)
      ended = carry.ended | constraints.stops[token]
      logits, state = _applied(model, params, token[:, None], state=carry.state, last_only=True)
      shown = jnp.where(ended, ENDED, token)
      tokens = jax.lax.dynamic_update_slice(tokens, shown[:, None], (0, column))
      logits = whole(logits[:, 0], model.vocab_size)
      return tokens, DecodeCarry(state, logits, ended, carry.step + 1)

    tokens = jnp.full((rows, size), ENDED, jnp.int32)
    tokens, carry = jax.lax.while_loop(unfinished, step, (tokens, carry))
    return (tokens, carry.ended), carry

  return where.go_on(advance, params, carry, keys, shared)


def _round_up(length: int) -> int:
  return -(-length // _MULTIPLE) * _MULTIPLE


def row_keys(seed: int, identities: np.ndarray) -> jax.Array:
  """One random key per row, from the low 32 bits of the seed and the row's identity [B, 2]."""
  key = jax.random.key(np.uint32(seed % 2**32))

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
