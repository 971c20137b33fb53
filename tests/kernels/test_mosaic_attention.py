"""Flash attention for Hopper GPUs: lowered for CUDA, and interpreted by Pallas against float64."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import platform
from kernels.attention import IMPLEMENTATIONS, attention, mosaic_gpu
from kernels.attention_gpu import ranges
from tests.kernels import float64_attention
from tests.kernels.float64_reference import relative_error

needs_interpreter = pytest.mark.skipif(
  not hasattr(plgpu, "InterpretGPUParams"),
  reason="this JAX has no interpreter of Mosaic GPU kernels",
)


def arrays_of(length, keys, heads, kv_heads, head_dim):
  """(q, k, v, cotangent) in bfloat16."""
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.standard_normal((1, n, h, head_dim)), jnp.bfloat16)
    for n, h in ((length, heads), (keys, kv_heads), (keys, kv_heads), (length, heads))
  )


@needs_interpreter
@pytest.mark.parametrize(
  ("length", "keys", "heads", "kv_heads", "head_dim", "window", "documents"),
  [
    (140, 270, 2, 1, 64, 100, 3),  # packed, after a state, no whole blocks, shared keys
    (256, 256, 1, 1, 128, None, 1),  # blocks that need no mask
    (130, 130, 1, 1, 256, 70, 2),  # two warpgroups per set of keys
  ],
)
def test_values_and_gradients_equal_float64(
  length, keys, heads, kv_heads, head_dim, window, documents
):
  arrays = arrays_of(length, keys, heads, kv_heads, head_dim)
  ids = np.sort(np.random.default_rng(1).integers(1, documents + 1, (1, keys)), axis=1)
  ids = ids.astype(np.int32)
  q_ids = ids[:, keys - length :].copy()
  if documents > 1:
    q_ids[0, 3:30] = 99  # they see nothing
    q_ids[0, -5:] = ids[0, -5:] = 0  # padding

  def attend(q, k, v):
    scale = head_dim**-0.5
    interpreter = plgpu.InterpretGPUParams()
    return mosaic_gpu.attend(q, k, v, q_ids, ids, window, scale, interpret=interpreter)

  output, vjp = jax.vjp(attend, *arrays[:3])
  got = (output, *vjp(arrays[3]))
  wanted = float64_attention.attention(
    *arrays, q_segment_ids=q_ids, kv_segment_ids=ids, window=window
  )
  # 2^-9 each. Output: the weights and the result. dq, dk: the output in the sum over channels, the
  # weights' gradients, the result; dv: the weights, the result.
  for name, a, b, roundings in zip(wanted._fields, got, wanted, (2, 3, 3, 2), strict=True):
    error = relative_error(a, b)
    assert error <= roundings * 2**-9, f"{name}: {error:.2e}"
  if documents > 1:
    for array in got[:2]:
      assert not np.any(np.asarray(array)[0, 3:30]), "a query that sees nothing gives zeros"


@pytest.mark.parametrize("head_dim", mosaic_gpu.HEAD_DIMS)
def test_values_and_gradients_lower_for_cuda(head_dim):
  q = jax.ShapeDtypeStruct((2, 1000, 4, head_dim), jnp.bfloat16)
  kv = jax.ShapeDtypeStruct((2, 1000, 2, head_dim), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((2, 1000), jnp.int32)

  def both(q, k, v, ids, g):
    def attend(q, k, v):
      return attention(
        q, k, v, q_segment_ids=ids, kv_segment_ids=ids, window=300, implementation="mosaic_gpu"
      )

    output, vjp = jax.vjp(attend, q, k, v)
    return output, vjp(g)

  with platform.targeting("gpu"):
    lowered = jax.jit(both).trace(q, kv, kv, ids, q).lower(lowering_platforms=("cuda",))
  # Forward, dq, and dk with dv.
  assert lowered.as_text().count("custom_call @mosaic_gpu") == 3


@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("offset", [0, 16])
def test_the_blocks_that_are_visited_have_all_visible_pairs(window, offset):
  """With ids in any order; where no mask is set, every query sees every key."""
  rng = np.random.default_rng(0)
  length, q_block, kv_block = 48, 8, 4
  keys = length + offset
  for runs in (1, 2, 5, 40):  # the last: no order
    ids = np.sort(rng.integers(0, runs, (3, keys)), axis=1).astype(np.int32)
    ids = rng.permuted(ids, axis=1) if runs == 40 else ids
    q_ids = ids[:, offset:]
    distance = np.arange(length)[:, None] + offset - np.arange(keys)[None, :]
    visible = (distance >= 0) & (distance < (window or keys))
    visible = visible & (q_ids[:, :, None] == ids[:, None, :])
    blocks = visible.reshape(3, length // q_block, q_block, keys // kv_block, kv_block)
    found = ranges.pairs(
      q_ids, ids, q_block=q_block, kv_block=kv_block, window=window, offset=offset
    )
    for axes, pairs in (((2, 4), found), ((2, 4), ranges.swapped(found))):
      some, every = blocks.any(axes), blocks.all(axes)
      if pairs is not found:
        some, every = np.swapaxes(some, 1, 2), np.swapaxes(every, 1, 2)
      first, plain, plain_end, end = np.moveaxis(np.asarray(ranges.spans(pairs)), -1, 0)
      assert np.all((first <= plain) & (plain <= plain_end) & (plain_end <= end))
      at = np.arange(some.shape[2])
      assert not np.any(some & ~((at >= first[..., None]) & (at < end[..., None])))
      assert not np.any(~every & (at >= plain[..., None]) & (at < plain_end[..., None]))
      if runs == 1 and window is None:
        assert np.all((plain_end - plain) == every.sum(-1)), "the blocks below the diagonal"


@pytest.mark.parametrize(
  ("dtype", "head_dim", "said", "level"),
  [
    # A model in float32 is meant to be: a warning at every start would ask for nothing.
    (jnp.float32, 64, "needs q, k and v in bfloat16, got float32, float32 and float32", "INFO"),
    (jnp.bfloat16, 96, "needs heads of 64, 128, 256 channels, got 96", "WARNING"),
  ],
)
def test_what_it_cannot_do_is_refused_and_left_to_xla_by_default(
  caplog, dtype, head_dim, said, level
):
  q = jnp.ones((1, 8, 2, head_dim), dtype)
  platform._say_once.cache_clear()
  with platform.targeting("gpu"), caplog.at_level("INFO"):
    with pytest.raises(ValueError, match=rf"'mosaic_gpu' {said}; available on gpu: xla_blockwise"):
      attention(q, q, q, implementation="mosaic_gpu")
    got = attention(q, q, q)
  np.testing.assert_array_equal(got, q)  # values are all the same
  (record,) = caplog.records
  assert f"attention on gpu: xla_blockwise; 'mosaic_gpu' {said}" in record.getMessage()
  assert record.levelname == level


@pytest.mark.parametrize(
  ("capability", "reason"), [("9.0", None), ("10.0", "needs compute capability 9.x (Hopper)")]
)
def test_it_runs_on_hopper_alone(monkeypatch, capability, reason):
  device = types.SimpleNamespace(compute_capability=capability, device_kind="a GPU")
  monkeypatch.setattr(jax, "devices", lambda platform: [device])
  q = jnp.ones((1, 8, 1, 64), jnp.bfloat16)
  with platform.targeting("gpu"):
    said = platform.availability(IMPLEMENTATIONS, (q, q, q))["mosaic_gpu"]
  assert said is None if reason is None else reason in (said or "")
