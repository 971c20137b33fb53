"""Attention in plain XLA against float64, in value and gradient, and its cost."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import attention
from tests.kernels import float64_attention
from tests.kernels.float64_reference import relative_error

IMPLEMENTATIONS = ("reference", "xla_blockwise")
NAMES = ("output", "dq", "dk", "dv")


class Case(NamedTuple):
  """A problem: B, T, S, H, G, K of `attention`."""

  batch: int
  length: int
  keys: int
  heads: int
  kv_heads: int
  head_dim: int
  window: int | None = None
  documents: int = 0  # per row, of random lengths; 0 passes no segment ids
  scale: float | None = None


CASES = {
  "multi-query, window smaller than T": Case(2, 37, 37, 4, 1, 8, 7),
  "grouped-query, window of whole blocks": Case(1, 64, 64, 4, 2, 8, 32),
  "multi-head, window larger than T": Case(2, 20, 20, 3, 3, 8, 100),
  "window of one": Case(1, 19, 19, 2, 1, 4, 1),
  "one token": Case(2, 1, 1, 2, 1, 4, 5),
  "global": Case(2, 33, 33, 4, 2, 8),
  "global, several blocks, a scale": Case(1, 600, 600, 2, 1, 4, scale=0.3),
  "history longer than the window": Case(2, 21, 90, 2, 1, 8, 16),
  "history shorter than the window": Case(2, 40, 45, 2, 1, 8, 16),
  "history, global": Case(1, 21, 53, 4, 2, 8),
  "one query with history": Case(2, 1, 23, 4, 1, 8, 6),
  "documents": Case(2, 70, 70, 4, 1, 8, 16, 4),
  "documents, global": Case(2, 50, 50, 4, 2, 8, None, 3),
  "documents with history": Case(2, 30, 61, 2, 1, 8, 24, 5),
}


def normal(rng, *shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)


def problem(case: Case, dtype=jnp.float32, seed=0):
  """((q, k, v, cotangent), (q_segment_ids, kv_segment_ids) or (None, None))."""
  rng = np.random.default_rng(seed)
  queries = (case.batch, case.length, case.heads, case.head_dim)
  keys = (case.batch, case.keys, case.kv_heads, case.head_dim)
  arrays = tuple(normal(rng, *shape, dtype=dtype) for shape in (queries, keys, keys, queries))
  if not case.documents:
    return arrays, (None, None)
  starts = np.zeros((case.batch, case.keys), np.int32)
  for row in starts:
    row[rng.choice(np.arange(1, case.keys), case.documents - 1, replace=False)] = 1
  ids = np.cumsum(starts, axis=1, dtype=np.int32) + 1
  ids[0, -3:] = 0  # padding
  return arrays, (ids[:, case.keys - case.length :], ids)


def value_and_gradients(implementation, arrays, ids, window, scale=None):
  """(output, dq, dk, dv)."""

  def run(arrays, ids):
    def attend(q, k, v):
      return attention(
        q,
        k,
        v,
        q_segment_ids=ids[0],
        kv_segment_ids=ids[1],
        window=window,
        scale=scale,
        implementation=implementation,
      )

    output, vjp = jax.vjp(attend, *arrays[:3])
    return output, *vjp(arrays[3])

  return jax.jit(run)(arrays, ids)


def expected(arrays, ids, window, scale=None):
  return float64_attention.attention(
    *arrays, q_segment_ids=ids[0], kv_segment_ids=ids[1], window=window, scale=scale
  )


def assert_close(got, wanted, tolerances):
  # Where a query sees one key only, gradients are differences of equal numbers, and their error is
  # that of the numbers: relative to the output, then.
  size = float(np.linalg.norm(wanted[0]))
  for name, a, b, tolerance in zip(NAMES, got, wanted, tolerances, strict=True):
    error = relative_error(a, b, at_least=size)
    assert error <= tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients_equal_float64(implementation, case):
  arrays, ids = problem(case)
  got = value_and_gradients(implementation, arrays, ids, case.window, case.scale)
  # A few float32 roundings each (6e-8), in sums over the window and over K.
  assert_close(got, expected(arrays, ids, case.window, case.scale), [1e-6] * 4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_errs_by_the_rounding_of_its_products_operands_and_results(implementation):
  case = CASES["documents"]
  arrays, ids = problem(case, jnp.bfloat16)
  got = value_and_gradients(implementation, arrays, ids, case.window)
  assert all(a.dtype == jnp.bfloat16 for a in got)
  # Roundings of 2^-9 each. Output: the weights and the result. Gradients: the output in the
  # softmax's sum, the weights or their gradients, and the result, in each of two products for dq
  # and dk.
  wanted = expected(arrays, ids, case.window)
  assert_close(got, wanted, [2 * 2**-9, 4 * 2**-9, 4 * 2**-9, 4 * 2**-9])


@pytest.mark.parametrize("window", [12, None])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_documents_equal_separate_documents(implementation, window):
  lengths = (9, 30, 1, 15)
  case = Case(1, sum(lengths), sum(lengths), 4, 2, 8, window)
  arrays, _ = problem(case)
  ids = np.repeat(np.arange(1, 5), lengths)[None].astype(np.int32)
  packed = value_and_gradients(implementation, arrays, (ids, ids), window)
  cuts = np.cumsum(lengths)[:-1]
  documents = zip(*(np.split(np.asarray(a), cuts, axis=1) for a in arrays), strict=True)
  separate = [expected(document, (None, None), window) for document in documents]
  assert_close(
    packed, [np.concatenate(parts, 1) for parts in zip(*separate, strict=True)], [1e-6] * 4
  )


@pytest.mark.parametrize("window", [16, None])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_that_sees_nothing_gives_zeros_and_zero_gradients(implementation, window):
  case = Case(2, 40, 40, 2, 1, 8, window, 3)
  arrays, (q_ids, kv_ids) = problem(case)
  blind = np.zeros(q_ids.shape, bool)
  blind[0, 5:9] = blind[1, :33] = True
  ids = (np.where(blind, 99, q_ids), kv_ids)
  got = value_and_gradients(implementation, arrays, ids, window)
  assert_close(got, expected(arrays, ids, window), [1e-6] * 4)
  for array in got[:2]:
    assert not np.any(np.asarray(array)[blind])
  nothing = value_and_gradients(implementation, arrays, (np.full_like(q_ids, 99), kv_ids), window)
  assert not any(np.any(np.asarray(array)) for array in nothing)


def test_scores_far_beyond_the_range_of_exp_do_not_overflow():
  case = CASES["documents"]
  arrays, ids = problem(case)
  arrays = (1e3 * arrays[0], *arrays[1:])
  for implementation in IMPLEMENTATIONS:
    got = value_and_gradients(implementation, arrays, ids, case.window)
    # A score of 1e3 is rounded by 6e-5, and so is the logarithm of its weight.
    assert_close(got, expected(arrays, ids, case.window), [1e-3] * 4)


def flops(implementation, length, window, *, gradient):
  """Returns the FLOPs of one batch row, by XLA's own count of the compiled program."""
  q = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
  kv = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

  def attend(q, k, v, ids):
    return attention(
      q,
      k,
      v,
      q_segment_ids=ids,
      kv_segment_ids=ids,
      window=window,
      implementation=implementation,
    )

  def total(*arguments):
    return jnp.sum(attend(*arguments) ** 2)

  run = jax.grad(total, argnums=(0, 1, 2)) if gradient else attend
  analysis = jax.jit(run).lower(q, kv, kv, ids).compile().cost_analysis()
  return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_cost_grows_with_the_window_not_with_the_length_squared(gradient):
  window, lengths = 128, (512, 1024, 2048)
  short, middle, long = (
    flops("xla_blockwise", length, window, gradient=gradient) for length in lengths
  )
  # The first block sees padding instead of keys, so the cost is linear from the start.
  assert (long - middle) / (middle - short) == pytest.approx(2, rel=0.01)
  # Products per query and head: forward 2, gradient 7 with the scores again, 1.5 windows of keys
  # each; the softmax on top is 10 to 20 operations per score, against 2 K = 32 of a product.
  products = 7 if gradient else 2
  per_token_and_head = long / lengths[-1] / 2
  assert per_token_and_head <= 1.5 * window * (products * 2 * 16 + 40)
  # That this can fail: the whole mask costs four times as much for twice the length.
  whole = [flops("reference", length, window, gradient=gradient) for length in lengths[:2]]
  assert whole[1] / whole[0] > 3.5


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"window": 0}, "window is 0; it must be at least 1"),
    ({"q_segment_ids": np.ones((1, 4), np.int32)}, "pass both q_segment_ids and kv_segment_ids"),
    (
      {"q_segment_ids": np.ones((1, 4)), "kv_segment_ids": np.ones((1, 5))},
      r"shapes \(1, 4\) and \(1, 5\); \(1, 4\) and \(1, 4\) are needed",
    ),
    ({"k": jnp.zeros((1, 3, 1, 8)), "v": jnp.zeros((1, 3, 1, 8))}, "at least as many keys"),
    ({"k": jnp.zeros((1, 4, 3, 8)), "v": jnp.zeros((1, 4, 3, 8))}, "4 query heads cannot share 3"),
    ({"q": jnp.zeros((1, 4, 4, 8), jnp.float16)}, "must be float32 or bfloat16, got float16"),
    ({"q": jnp.zeros((4, 4, 8))}, r"q must be \[B, T, H, K\]"),
    ({"implementation": "flash"}, "'flash' is unknown; available on cpu: xla_blockwise, reference"),
    (
      {"implementation": "splash"},
      "'splash' runs on tpu, and this program is built for cpu; available on cpu: xla_blockwise",
    ),
    (
      {"implementation": "cudnn"},
      "'cudnn' runs on gpu, and this program is built for cpu; available on cpu: xla_blockwise",
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, message):
  q, kv = jnp.zeros((1, 4, 4, 8)), jnp.zeros((1, 4, 1, 8))
  with pytest.raises(ValueError, match=message):
    attention(**{"q": q, "k": kv, "v": kv} | arguments)
