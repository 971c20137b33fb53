"""Continues prompts: a prefill, then a compiled loop of decode steps."""

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
# Lengths of prompts and caches are multiples of this, so that few programs are compiled.
_MULTIPLE = 64
# If a CPU's cores decode rows separately instead of sharing matrix products, each reads all weights
# at every token: the weights must fit into the shared cache, and each core needs several rows.
_SHARED_CACHE_BYTES = 2**25
_ROWS_PER_CORE = 4
_ONE_DEVICE = OneDevice()


class DecodeCarry(NamedTuple):
  """The state of decoding a batch between tokens.

  Attributes:
    state: the model's state after the last token.
    logits: [B, V] float32, logits of the next token.
    ended: [B] bool, rows that have reached a stop token.
    step: int32, number of generated tokens.
  """

  state: DecodeState
  logits: jax.Array
  ended: jax.Array
  step: jax.Array


class TokenConstraints(NamedTuple):
  """Masks of the tokens that may be drawn, and of those that end a row.

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
    params: shapes of the parameters of `advance`.
    carry: shapes of the `DecodeCarry` between them.
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
    identities: [B, 2] uint32: a hash of the prompt, and the number of equal prompts before it.
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
    """Makes a batch, at least `least` long, of nonempty token sequences (with BOS).

    Identities of None are computed from these prompts.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
      raise ValueError("every prompt needs at least one token: begin with the tokenizer's BOS.")
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
  """Returns [B, 2] uint32: a hash of each prompt, and the number of equal prompts before it."""
  identities = np.zeros((len(prompts), 2), np.uint32)
  copies: Counter[bytes] = Counter()
  for row, prompt in enumerate(prompts):
    content = np.asarray(prompt, np.int32).tobytes()
    identities[row] = zlib.crc32(content), copies[content]
    copies[content] += 1
  return identities


class Decoder:
  """Generates with a model and a sampler."""

  def __init__(
    self,
    model: LanguageModel,
    sampler: Sampler,
    *,
    stop_ids: Sequence[int] = (),
    forbidden_ids: Sequence[int] = (),
    where: DecodeSharding | None = None,
  ):
    """Sets the model, the sampler and the devices.

    Args:
      model: the model.
      sampler: the sampler.
      stop_ids: a row ends before the first of these.
      forbidden_ids: ids that are never drawn, such as padding.
      where: the devices; None is one device.

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

    A continuation depends only on the seed, the prompt, and the number of equal prompts before it,
    not on other prompts.

    Args:
      params: the model's parameters.
      prompts: token ids, each starting with BOS.
      max_tokens: the most tokens per row.
      seed: seed of the sampler.
      chunk: tokens per compiled loop, after which the generator yields.
      pad_to: least length that prompts are padded to, so that batches share compiled programs.
      identities: `identities_of` the prompts [B, 2] uint32, if they are part of a longer list.

    Yields:
      [B, n] int32, n <= chunk: the next tokens; `ENDED` from a row's stop token on.
    """
    groups = self._groups(params, len(prompts))
    # Devices, and groups, need the same number of rows: some are decoded twice.
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
    # Compiled here, so that the settings of the caller's thread apply.
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
      # Without waiting: a generator may be closed while Python exits.
      threads.shutdown(wait=False)

  def _groups(self, params: Any, rows: int) -> int:
    """Returns the number of groups of rows, each decoded by its own thread.

    A small model's matrix products of a token are too short for a CPU's cores to share.
    """
    if platform.target() != "cpu" or not self._where.concurrent:
      return 1
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > _SHARED_CACHE_BYTES:
      return 1
    return max(1, min(platform.cores(), rows // _ROWS_PER_CORE))

  def _cut(self, params: Any) -> Any:
    """Returns the parameters for `advance`: a copy split into layers, or themselves if lean."""
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
    """Lowers the programs of `generate`, also for devices that are not attached.

    Args:
      params: shapes, dtypes and shardings of the parameters, as after `DecodeSharding.place`.
      rows: prompts per batch, a multiple of the shards.
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
  """Splits the parameters into layers, once for all tokens."""

  def cut(params, _):
    return {**params, "stack": unstack(params["stack"])}

  return where.start(cut, params, ())


def _applied(model: LanguageModel, params, tokens, **options) -> tuple[jax.Array, DecodeState]:
  """Applies the model; returns logits and state. Options are a state or a capacity."""
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
      # Over all devices, so that they leave the loop together.
      going = shards.total(jnp.sum(~carry.ended), "batch")
      return (carry.step < first + steps) & (going > 0)

    def step(loop):
      tokens, carry = loop
      column = carry.step - first
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.step)
      # An allowed token stays possible, even at logit -inf.
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
  """Makes a random key per row from the low 32 bits of the seed and its identity [B, 2]."""
  key = jax.random.key(np.uint32(seed % 2**32))

  def of_row(identity: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, identity[0]), identity[1])

  return jax.vmap(of_row)(jnp.asarray(identities))


def rows_of(chunks: Iterator[np.ndarray] | Sequence[np.ndarray], batch: int) -> list[list[int]]:
  """Joins the chunks of `Decoder.generate` into a list of ids per row, without fill values."""
  rows: list[list[int]] = [[] for _ in range(batch)]
  for tokens in chunks:
    for row, ids in zip(rows, tokens, strict=True):
      row += [int(token) for token in ids if token != ENDED]
  return rows
