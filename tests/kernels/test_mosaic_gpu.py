"""The Mosaic GPU recurrences: lowered for CUDA, and interpreted by Pallas against float64."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import platform
from kernels.linear_scan import IMPLEMENTATIONS as LINEAR_SCANS
from kernels.linear_scan import mosaic_gpu as linear_scan_gpu
from kernels.linear_scan import reference as linear_scan_reference
from kernels.rg_lru import IMPLEMENTATIONS as RG_LRUS
from kernels.rg_lru import mosaic_gpu as rg_lru_gpu
from kernels.rg_lru import reference as rg_lru_reference
from kernels.scan_gpu import chunks as mosaic_gpu_chunks
from kernels.scan_gpu import scan

OPS = {
  "rg_lru": (rg_lru_gpu.fused, rg_lru_reference.rg_lru),
  "linear_scan": (linear_scan_gpu.scan, linear_scan_reference.linear_scan),
}
# As for the TPU kernels: a few float32 roundings; one bfloat16 rounding, and of h in dlog_a
# another.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 3e-3}

needs_interpreter = pytest.mark.skipif(
  not hasattr(plgpu, "InterpretGPUParams"),
  reason="this JAX has no interpreter of Mosaic GPU kernels",
)


def problem(op, shape, dtype, *, resets=True):
  """(differentiable arguments, reset, cotangents of h and h_last) of an op."""
  rng = np.random.default_rng(0)
  batch, steps, width = shape

  def normal(*size, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(size), jnp.float32).astype(dtype)

  log_decay = jnp.asarray(np.log(rng.uniform(0.8, 0.999, width)), jnp.float32)
  log_decay = log_decay.at[: width // 4].set(-1e-4)
  x, gate_a, gate_x = (normal(*shape, dtype=dtype) for _ in range(3))
  h0 = normal(batch, width)
  if op == "rg_lru":
    arguments = (x, gate_a, gate_x, log_decay, h0)
  else:
    arguments = (x, (jax.nn.sigmoid(gate_a.astype(jnp.float32)) * log_decay).astype(dtype), h0)
  reset = jnp.asarray(rng.uniform(size=(batch, steps)) < 0.05) if resets else None
  return arguments, reset, (normal(*shape, dtype=dtype), normal(batch, width))


def values_and_gradients(f, arguments, cotangents):
  values, vjp = jax.vjp(f, *arguments)
  return (*values, *vjp(cotangents))


@needs_interpreter
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("op", "steps", "resets", "chunks"),
  [
    ("rg_lru", 7, True, 1),  # less than a tile
    ("rg_lru", 67, True, 1),  # two tiles and three steps
    ("rg_lru", 32, False, 1),
    ("linear_scan", 7, False, 1),
    ("linear_scan", 67, True, 1),
    ("rg_lru", 70, True, 2),  # each a tile and three steps
    ("linear_scan", 9, True, 3),
  ],
)
def test_values_and_gradients_equal_float64(op, steps, resets, chunks, dtype):
  run, reference = OPS[op]
  shape = (
    (2, steps, 256) if steps < 10 else (1, steps, 128)
  )  # several warpgroups, or one: it is slow
  arguments, reset, cotangents = problem(op, shape, dtype, resets=resets)
  f = functools.partial(run, chunks=chunks, interpret=plgpu.InterpretGPUParams())
  got = values_and_gradients(lambda *a: f(*a, reset), arguments, cotangents)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (arguments, cotangents))
    extra = (False,) if op == "linear_scan" else ()
    expected = values_and_gradients(lambda *a: reference(*a, reset, *extra), *wide)
  for index, (a, b) in enumerate(zip(got, expected, strict=True)):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error <= TOLERANCE[dtype], f"output {index} of (h, h_last, gradients): {error:.2e}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
  ("shape", "passes"), [((2, 100, 128), 1), ((8, 2048, 4096), 1), ((2, 32768, 2560), 2)]
)
def test_values_and_gradients_lower_for_cuda(op, shape, passes, dtype):
  run, _ = OPS[op]
  shapes = jax.eval_shape(lambda: problem(op, (1, 2, 128), dtype))
  arguments, _, cotangents = shapes
  arguments, cotangents = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      {3: shape, 2: (shape[0], shape[2]), 1: (shape[2],)}[a.ndim], a.dtype
    ),
    (arguments, cotangents),
  )
  reset = jax.ShapeDtypeStruct(shape[:2], jnp.bool_)

  def both(arguments, reset, cotangents):
    return values_and_gradients(lambda *a: run(*a, reset), arguments, cotangents)

  lowered = jax.jit(both).trace(arguments, reset, cotangents).lower(lowering_platforms=("cuda",))
  # A kernel for each pass, forward and backward.
  assert lowered.as_text().count("custom_call @mosaic_gpu") == 2 * passes


def test_time_is_cut_where_one_pass_leaves_the_gpu_idle_and_only_there():
  choose = mosaic_gpu_chunks.choose
  for batch, steps, width in ((8, 2048, 4096), (8, 2048, 5632), (16, 32768, 2560), (1, 101, 128)):
    assert choose((batch, steps, width), 2) == 1
  for batch, steps, width in ((2, 32768, 2560), (1, 2048, 1024), (1, 96 * 1024, 256)):
    chunks = choose((batch, steps, width), 2)
    assert steps % chunks == 0
    assert steps // chunks >= mosaic_gpu_chunks.MIN_STEPS
    # As many blocks as fit side by side, or no shorter chunks to make them of.
    blocks = batch * width // 256 * chunks
    assert blocks >= 0.9 * mosaic_gpu_chunks.MULTIPROCESSORS or steps // chunks < 256


@pytest.mark.parametrize("op", OPS)
def test_a_width_that_is_no_multiple_of_128_is_refused(op):
  arguments, reset, _ = problem(op, (1, 4, 192), jnp.float32)
  with pytest.raises(ValueError, match=r"multiple of 128, got 192\. Change the width"):
    OPS[op][0](*arguments, reset)


@pytest.mark.parametrize("platform_name", ["gpu", "tpu"])
@pytest.mark.parametrize(("op", "table"), [("rg_lru", RG_LRUS), ("linear_scan", LINEAR_SCANS)])
def test_a_width_that_is_no_multiple_of_128_takes_the_associative_scan_by_default(
  caplog, platform_name, op, table
):
  named = {"gpu": "mosaic_gpu", "tpu": "pallas_tpu"}[platform_name]
  said = r"needs a width \(per shard\) that is a multiple of 128, got 192"
  platform._say_once.cache_clear()
  with platform.targeting(platform_name), caplog.at_level("INFO"):
    chosen = platform.resolve(op, None, table, (jnp.zeros((1, 4, 192)),))
    with pytest.raises(ValueError, match=rf"'{named}' {said}; available on .*associative"):
      platform.resolve(op, named, table, (jnp.zeros((1, 4, 192)),))
    # A single step is plain XLA at any width, and a width that fits is the kernel's.
    for shape in ((1, 1, 192), (1, 4, 256)):
      kernel = platform.resolve(op, None, table, (jnp.zeros(shape),))
      assert kernel.__module__ == f"kernels.{op}.{named}"
  assert chosen.__module__ == f"kernels.{op}.associative"
  assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
  ("device", "reason"),
  [
    ({"compute_capability": "9.0", "device_kind": "NVIDIA H200"}, None),
    ({"compute_capability": "10.0", "device_kind": "NVIDIA B200"}, None),
    ({"compute_capability": "8.0", "device_kind": "NVIDIA A100"}, "A100 has 8.0"),
    ({"compute_capability": "gfx942", "device_kind": "AMD MI300X"}, "this is AMD MI300X"),
  ],
)
def test_it_says_which_gpus_it_cannot_run_on(monkeypatch, device, reason):
  monkeypatch.setattr(jax, "devices", lambda platform: [types.SimpleNamespace(**device)])
  said = scan.unavailable_reason()
  assert said is None if reason is None else reason in said


@pytest.mark.parametrize(("op", "table"), [("rg_lru", RG_LRUS), ("linear_scan", LINEAR_SCANS)])
def test_the_default_on_older_gpus_is_the_associative_scan_and_says_why_once(
  monkeypatch, caplog, op, table
):
  old = types.SimpleNamespace(compute_capability="8.0", device_kind="NVIDIA A100")
  monkeypatch.setattr(jax, "devices", lambda platform: [old])
  platform._say_once.cache_clear()
  with platform.targeting("gpu"), caplog.at_level("INFO"):
    chosen = [platform.resolve(op, None, table) for _ in range(2)]
    with pytest.raises(
      ValueError, match=r"'mosaic_gpu' needs compute capability 9\.0 .* A100 has 8.0"
    ):
      platform.resolve(op, "mosaic_gpu", table)
  assert {f.__module__ for f in chosen} == {f"kernels.{op}.associative"}
  (record,) = caplog.records
  assert record.levelname == "WARNING"
  assert (
    f"{op} on gpu: associative; 'mosaic_gpu' needs compute capability 9.0" in record.getMessage()
  )


def test_what_the_default_picks_is_said_once(caplog):
  platform._say_once.cache_clear()
  with caplog.at_level("INFO"):
    for _ in range(3):
      platform.resolve("rg_lru", "auto", RG_LRUS)
      platform.resolve("rg_lru", None, RG_LRUS)
  assert [r.getMessage() for r in caplog.records] == ["rg_lru on cpu: cpu"]
