"""Compiles the TPU kernels, values and gradients, for TPUs that need not be attached.

    python -m benchmarks.compile_tpu                    # every generation, every shape
    python -m benchmarks.compile_tpu v5e --distinct     # shapes that give distinct kernels, batch 1
    python -m benchmarks.compile_tpu --sample v4 v5p    # of each op the kernel with the most code
    python -m benchmarks.compile_tpu --op attention     # attention only

One line per compiled program; the exit status counts the failures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time

from benchmarks import absent_tpu
from benchmarks.kernel_cases import (
  LENGTHS,
  attention_arguments,
  attention_with_gradient,
  cotangents,
  delta_arguments,
  linear_scan_arguments,
  rg_lru_arguments,
  shard_widths,
)

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from comparison.speed.recurrences import with_gradient
from kernels.attention import splash
from kernels.delta_rule import chunked as delta_rule_chunked
from kernels.delta_rule import pallas_tpu as delta_rule_tpu
from kernels.linear_scan import pallas_tpu as linear_scan_tpu
from kernels.rg_lru import pallas_tpu as rg_lru_tpu
from kernels.scan_tpu import blocks

# A tail's code does not depend on the width beyond the number of blocks.
TAIL_WIDTHS = (128, 1024, 8192)


def all_shapes():
  """(shape, dtype): every paper width and its shards, every length, one row and eight."""
  dtypes = (jnp.bfloat16, jnp.float32)
  for dtype, batch, width, steps in itertools.product(dtypes, (1, 8), shard_widths(), LENGTHS):
    yield (batch, steps, width), dtype


def distinct_shapes():
  """Of those, one per rg_lru kernel: the same blocks and tail compile to the same loops."""
  seen = set()
  shapes = [s for s in all_shapes() if s[0][0] == 1 and s[1] == jnp.bfloat16]
  shapes += [((8, 100, 128), jnp.bfloat16), ((8, 2048, 2560), jnp.float32)]
  for shape, dtype in shapes:
    itemsize = jnp.dtype(dtype).itemsize
    plan = blocks.plan(shape, itemsize, forward_arrays=4, backward_arrays=8)
    several_blocks = shape[1] > plan.forward.time
    key = (plan, dtype, shape[1] % plan.forward.time, several_blocks)
    if shape[1] == 1:
      key = "plain XLA"
    elif shape[1] == 100 and shape[2] not in TAIL_WIDTHS:
      continue
    if key not in seen:
      seen.add(key)
      yield shape, dtype


# The kernel of a recurrence with the most code: eight blocks of channels, and a tail.
SAMPLED_SHAPE = (1, 100, 8192)


def recurrences(generation: str, which: str):
  """(name, thunk that compiles) for one generation."""
  shapes = all_shapes() if which == "all" else distinct_shapes()
  rg_lru = _rg_lru(absent_tpu.GENERATIONS[generation].native_math)
  for shape, dtype in shapes:
    # Blocks and tails are those of the scan, which both ops share: of the bare one, the least and
    # the most code.
    is_known = which != "all" and dtype == jnp.bfloat16 and shape[2] not in (128, 8192)
    if which == "sample" and shape != SAMPLED_SHAPE:
      continue
    for op, run, arguments in (
      ("rg_lru", rg_lru, rg_lru_arguments),
      ("linear_scan", _linear_scan, linear_scan_arguments),
    ):
      if op == "linear_scan" and is_known:
        continue
      given = (*arguments(shape, dtype), *cotangents(shape, dtype))
      name = f"{op} {list(shape)} {jnp.dtype(dtype).name}"
      yield name, functools.partial(_compile, generation, _gradient(run), *given)
  for check_vma in (True,) if which == "sample" else (False, True):
    yield (
      f"rg_lru in shard_map, check_vma={check_vma}",
      functools.partial(_compile_sharded, generation, rg_lru, check_vma),
    )


def _compile(generation: str, function, *arguments):
  """Compiles a function that the generations share, traced once."""
  return absent_tpu.compile_for(generation, absent_tpu.traced(function, *arguments), *arguments)


# One function for all generations that compute alike, so that they share its trace.
_gradient = functools.cache(with_gradient)
_attention_gradient = functools.cache(attention_with_gradient)


@functools.cache
def _rg_lru(native: bool):
  """The op with the arithmetic of a generation."""

  def run(*arguments):
    if arguments[0].shape[1] == 1:
      return rg_lru_tpu.rg_lru(*arguments)
    return rg_lru_tpu.fused(*arguments, native_math=native)

  return run


def _linear_scan(x, log_a, h0, reset):
  return linear_scan_tpu.linear_scan(x, log_a, h0, reset, False)


def _compile_sharded(generation: str, op, check_vma: bool):
  """Values and gradients with batch over 'data' and width over 'model'."""
  mesh = Mesh(np.array(absent_tpu.devices(generation)[:4]).reshape(2, 2), ("data", "model"))
  tile, state, channel = P("data", None, "model"), P("data", "model"), P("model")
  specs = (tile, tile, tile, channel, state, P("data"))
  sharded = jax.shard_map(
    op, mesh=mesh, in_specs=specs, out_specs=(tile, state), check_vma=check_vma
  )
  shape, dtype = (4, 300, 1024), jnp.bfloat16
  given = zip(
    (*rg_lru_arguments(shape, dtype), *cotangents(shape, dtype)),
    (*specs, tile, state),
    strict=True,
  )
  placed = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, s)) for a, s in given
  ]
  return jax.jit(with_gradient(sharded)).lower(*placed).compile()


def attentions(generation: str, which: str):
  """(name, thunk that compiles) for one generation; distinct are two."""
  attend = functools.partial(_attend, generation == "v3")
  grid = itertools.product((128, 256), (1024, 2048, None), (2048, 8192), (1, 2))
  for head_dim, window, steps, kv_heads in grid if which == "all" else [(256, 2048, 8192, 1)]:
    for dtype in (jnp.bfloat16, jnp.float32) if which == "all" else (jnp.bfloat16,):
      arguments = attention_arguments((1, steps, 4, head_dim), kv_heads, dtype)
      yield (
        f"attention [1, {steps}, 4 heads on {kv_heads}, {head_dim}] window={window} "
        f"{jnp.dtype(dtype).name}",
        functools.partial(_compile, generation, _attention_gradient(attend(window)), *arguments),
      )
  sharded = {"sample": 0, "distinct": 1, "all": 2}[which]
  for head_dim, kv_heads, window in ((128, 1, None), (256, 2, 1024))[:sharded]:
    yield (
      f"attention in shard_map, 8 heads on {kv_heads}, {head_dim}, window={window}",
      functools.partial(
        _compile_sharded_attention,
        generation,
        attend(window),
        head_dim,
        kv_heads,
      ),
    )


@functools.cache
def _attend(widen: bool, window: int | None):
  def attend(q, k, v, ids):
    return splash.attend(q, k, v, ids, ids, window, q.shape[-1] ** -0.5, widen=widen)

  return attend


def _compile_sharded_attention(generation: str, attend, head_dim: int, kv_heads: int):
  """Values and gradients with batch over 'data' and heads over 'model', on which one kv head is
  whole.
  """
  mesh = Mesh(np.array(absent_tpu.devices(generation)[:4]).reshape(2, 2), ("data", "model"))
  queries, rows = P("data", None, "model"), P("data")
  keys = queries if kv_heads > 1 else rows
  specs = (queries, keys, keys, rows)
  # JAX's splash attention has no types for check_vma=True.
  sharded = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
  arguments = attention_arguments((4, 2048, 8, head_dim), kv_heads, jnp.bfloat16)
  placed = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, s))
    for a, s in zip(arguments, (*specs, queries), strict=True)
  ]
  return jax.jit(attention_with_gradient(sharded)).lower(*placed).compile()


def delta_rules(generation: str, which: str):
  """(name, thunk that compiles) for one generation; distinct are two, of decays by turns."""
  decays, dtypes = ("head", "channel"), (jnp.bfloat16, jnp.float32)
  turn = list(absent_tpu.GENERATIONS).index(generation) % 2
  sample = [(decays[turn], 128, 2048, jnp.bfloat16), (decays[1 - turn], 128, 1, jnp.bfloat16)]
  for decay, head_dim, steps, dtype in (
    itertools.product(decays, (64, 128, 256), LENGTHS, dtypes) if which == "all" else sample
  ):
    shape = (1, steps, 2, head_dim)
    arguments = delta_arguments(shape, decay, dtype)
    yield (
      f"delta_rule {list(shape)} decay per {decay} {jnp.dtype(dtype).name}",
      functools.partial(_compile, generation, _delta_gradient, *arguments),
    )


def delta_rule_kernels(generation: str, which: str):
  """(name, thunk that compiles) of the Pallas kernels; but for 'all', one on two generations.

  A row of one token and a step of decoding, 16 rows, are what they become there: plain XLA.
  """
  decays, dtypes = ("head", "channel"), (jnp.bfloat16, jnp.float32)
  sample = {"v5e": "head", "tpu7x": "channel"}
  cases = itertools.product(decays, (64, 128, 256), LENGTHS, dtypes)
  if which != "all":
    cases = [(sample[generation], 128, 2000, jnp.bfloat16)] if generation in sample else []
    cases.append((decays[list(absent_tpu.GENERATIONS).index(generation) % 2], 128, 1, jnp.bfloat16))
  for decay, head_dim, steps, dtype in cases if generation != "v3" else ():
    shape = (1, steps, 2, head_dim)
    yield (
      f"delta_rule_kernel {list(shape)} decay per {decay} {jnp.dtype(dtype).name}",
      functools.partial(
        _compile, generation, _delta_kernel_gradient, *delta_arguments(shape, decay, dtype)
      ),
    )
  for decay in decays if generation != "v3" else ():
    *arguments, _, _ = delta_arguments((16, 1, 4, 128), decay, jnp.bfloat16)
    yield (
      f"delta_rule_step [16, 1, 4, 128] decay per {decay} bfloat16",
      functools.partial(_compile, generation, _delta_step, *arguments),
    )


def _delta_rule(q, k, v, beta, log_a, h0, reset):
  return delta_rule_chunked.delta_rule(q, k, v, beta, log_a, h0, reset, True, 64)


_delta_gradient = with_gradient(_delta_rule)
_delta_step = functools.partial(delta_rule_tpu.delta_rule, last=True, chunk=64)
_delta_kernel_gradient = with_gradient(_delta_step)
OPS = {
  "recurrences": recurrences,
  "attention": attentions,
  "delta_rule": delta_rules,
  "delta_rule_kernel": delta_rule_kernels,
}


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("generations", nargs="*", help=f"of {', '.join(absent_tpu.GENERATIONS)}")
  parser.add_argument("--distinct", action="store_true", help="only shapes with distinct kernels")
  parser.add_argument(
    "--sample", nargs="+", default=[], help="generations for which to compile a kernel of each op"
  )
  parser.add_argument("--op", choices=OPS, help="only these; all if left out")
  options = parser.parse_args()
  failures = 0
  which = dict.fromkeys(absent_tpu.chosen(options.sample) if options.sample else (), "sample")
  if options.generations or not options.sample:
    chosen = absent_tpu.chosen(options.generations)
    which |= dict.fromkeys(chosen, "distinct" if options.distinct else "all")
  for generation, shapes in which.items():
    programs = [OPS[op](generation, shapes) for op in ([options.op] if options.op else OPS)]
    for name, compile_program in itertools.chain(*programs):
      start = time.perf_counter()
      try:
        compile_program()
        outcome = "ok"
      except Exception as error:  # every failure is a line of the report
        failures += 1
        outcome = f"FAILED {type(error).__name__}: {str(error)[:500]}"
      print(f"{generation} {name}: {outcome} {time.perf_counter() - start:.1f} s", flush=True)
  print(f"{failures} failures")
  return min(failures, 100)


if __name__ == "__main__":
  raise SystemExit(main())
