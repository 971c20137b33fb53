"""Splash attention, run by Pallas' interpreter against float64, and cuDNN's refusals."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kernels import platform
from kernels.attention import attention, cudnn, reference, splash
from tests.kernels import float64_attention
from tests.kernels.float64_reference import relative_error


def normal(rng, *shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)


def problem(length, keys, heads, kv_heads, *, head_dim=32, batch=1, documents=0, dtype=jnp.float32):
  """((q, k, v, cotangent), (q_segment_ids, kv_segment_ids) or (None, None))."""
  rng = np.random.default_rng(0)
  arrays = tuple(
    normal(rng, batch, n, h, head_dim, dtype=dtype)
    for n, h in ((length, heads), (keys, kv_heads), (keys, kv_heads), (length, heads))
  )
  if not documents:
    return arrays, (None, None)
  ids = np.sort(rng.integers(1, documents + 1, (batch, keys)), axis=1).astype(np.int32)
  q_ids = ids[:, keys - length :].copy()
  q_ids[0, 3:30] = 99  # they see nothing
  q_ids[-1, -5:] = ids[-1, -5:] = 0  # padding
  return arrays, (q_ids, ids)


def check(arrays, ids, window, tolerances):
  def run(arrays, ids):
    def attend(q, k, v):
      return splash.attend(q, k, v, *ids, window, q.shape[-1] ** -0.5, interpret=True)

    output, vjp = jax.vjp(attend, *arrays[:3])
    return output, *vjp(arrays[3])

  got = jax.jit(run)(arrays, ids)
  wanted = float64_attention.attention(
    *arrays, q_segment_ids=ids[0], kv_segment_ids=ids[1], window=window
  )
  for name, a, b, tolerance in zip(wanted._fields, got, wanted, tolerances, strict=True):
    assert a.dtype == arrays[0].dtype
    error = relative_error(a, b)
    assert error <= tolerance, f"{name}: {error:.2e}"
  return got


@pytest.mark.parametrize(
  ("length", "keys", "heads", "kv_heads", "window", "documents"),
  [
    (200, 200, 4, 1, None, 0),
    (300, 300, 4, 1, 100, 3),
    (300, 300, 4, 2, 129, 0),
    (130, 400, 2, 2, 100, 4),
    (140, 270, 2, 1, None, 2),
    (256, 256, 2, 1, 1000, 0),
  ],
)
def test_values_and_gradients_equal_float64(length, keys, heads, kv_heads, window, documents):
  arrays, ids = problem(length, keys, heads, kv_heads, batch=2, documents=documents)
  output, dq, *_ = check(arrays, ids, window, [1e-6] * 4)
  if documents:
    for array in (output, dq):
      assert not np.any(np.asarray(array)[0, 3:30]), "a query that sees nothing gives zeros"


def test_bfloat16_errs_by_the_rounding_of_operands_and_results():
  arrays, ids = problem(300, 300, 2, 1, documents=3, dtype=jnp.bfloat16)
  # 2^-9 each. Output: the scaled q, in scores of a few units, and the result. Gradients: also the
  # output in the softmax's sum and the weights' gradients.
  check(arrays, ids, 100, [3 * 2**-9, 5 * 2**-9, 5 * 2**-9, 4 * 2**-9])


def test_float32_operands_for_chips_without_bfloat16_products():
  (q, k, v, _), ids = problem(130, 130, 2, 1, documents=2, dtype=jnp.bfloat16)
  got = splash.attend(q, k, v, *ids, None, 0.1, widen=True, interpret=True)
  expected = reference.attention(
    *(x.astype(jnp.float32) for x in (q, k, v)), *map(jnp.asarray, ids), None, 0.1
  )
  assert got.dtype == jnp.bfloat16
  assert relative_error(got, np.asarray(expected, np.float64)) <= 2**-9


def test_one_query_is_left_to_xla():
  (q, k, v, _), ids = problem(1, 50, 4, 2)
  got = splash.attention(q, k, v, *ids, 20, 0.3)
  expected = reference.attention(q, k, v, *ids, 20, 0.3)
  np.testing.assert_array_equal(got, expected)


def test_a_mixture_of_types_is_refused():
  (q, k, v, _), ids = problem(130, 130, 2, 1)
  with pytest.raises(
    ValueError, match=r"all in bfloat16, got float32, bfloat16 and float32\. Cast"
  ):
    splash.attention(q, k.astype(jnp.bfloat16), v, *ids, None, 1.0)


def test_shard_map_with_checked_types_is_refused_by_name():
  mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  (q, k, v, _), _ = problem(130, 130, 2, 1)

  def attend(q, k, v):
    return splash.attention(q, k, v, None, None, None, 1.0)

  with pytest.raises(ValueError, match=r"inside shard_map\(check_vma=True\). Pass check_vma=False"):
    jax.shard_map(attend, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(q, k, v)


@pytest.mark.parametrize("window", [7, None, 99])
def test_what_cudnn_is_asked_for_is_this_attention(monkeypatch, window):
  """Replaces cuDNN by JAX's own XLA form with the same arguments, since there is no GPU."""
  ask = jax.nn.dot_product_attention

  def on_cpu(*arrays, implementation, **options):
    assert implementation == "cudnn"
    return ask(*arrays, implementation="xla", **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
  (q, k, v, _), _ = problem(40, 40, 4, 2, dtype=jnp.bfloat16)
  with platform.targeting("gpu"):
    got = attention(q, k, v, window=window, implementation="cudnn")
  wanted = float64_attention.attention(q, k, v, q, window=window).output
  assert relative_error(got, wanted) <= 2 * 2**-9  # of the weights and the result


def test_what_cudnn_cannot_do_is_refused_with_what_can():
  def attend(dtype=jnp.bfloat16, queries=8, head_dim=16, ids=None):
    q = jnp.zeros((1, queries, 2, head_dim), dtype)
    kv = jnp.zeros((1, 8, 1, head_dim), dtype)
    with platform.targeting("gpu"):
      attention(q, kv, kv, q_segment_ids=ids, kv_segment_ids=ids, implementation="cudnn")

  for arguments, message in (
    ({"ids": np.ones((1, 8), np.int32)}, "no segment ids: packed documents would see each other"),
    ({"dtype": jnp.float32}, "bfloat16, got float32, float32 and float32"),
    ({"queries": 5}, "as many keys as queries, got 8 and 5"),
    ({"head_dim": 20}, "a multiple of 8, got 20"),
    ({"head_dim": 512}, "at most 256 channels .* got 512"),
  ):
    with pytest.raises(
      ValueError, match=f"{message}.* Choose the implementation 'mosaic_gpu' or 'xla_blockwise'"
    ):
      attend(**arguments)


@pytest.mark.parametrize(
  ("device", "reason"),
  [
    ({"compute_capability": "9.0", "device_kind": "NVIDIA H200"}, None),
    ({"compute_capability": "7.0", "device_kind": "Tesla V100"}, "Tesla V100 has 7.0"),
    ({"compute_capability": "gfx942", "device_kind": "AMD MI300X"}, "this is AMD MI300X"),
  ],
)
def test_cudnn_says_which_gpus_it_cannot_run_on(monkeypatch, device, reason):
  monkeypatch.setattr(jax, "devices", lambda platform: [types.SimpleNamespace(**device)])
  said = cudnn.unavailable_reason()
  assert said is None if reason is None else reason in said


def test_the_default_on_a_gpu_keeps_packed_documents_apart():
  (q, k, v, _), ids = problem(40, 40, 2, 1, documents=2)
  options = {"q_segment_ids": ids[0], "kv_segment_ids": ids[1], "window": 9}
  with platform.targeting("gpu"):
    got = attention(q, k, v, **options)
  wanted = float64_attention.attention(q, k, v, q, **options).output
  assert relative_error(got, wanted) <= 1e-6
