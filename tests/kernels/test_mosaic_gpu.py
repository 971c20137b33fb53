"""The Mosaic GPU recurrences: lowered for CUDA, and run by Pallas' GPU interpreter against float64."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import mosaic_gpu_scan
from kernels.linear_scan import mosaic_gpu as linear_scan_gpu
from kernels.linear_scan import reference as linear_scan_reference
from kernels.rg_lru import mosaic_gpu as rg_lru_gpu
from kernels.rg_lru import reference as rg_lru_reference

OPS = {
  "rg_lru": (rg_lru_gpu.fused, rg_lru_reference.rg_lru),
  "linear_scan": (linear_scan_gpu.scan, linear_scan_reference.linear_scan),
}
# As for the TPU kernels: a few float32 roundings; one bfloat16 rounding, and of h in dlog_a another.
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
  ("op", "steps", "resets"),
  [
    ("rg_lru", 7, True),  # less than a tile
    ("rg_lru", 67, True),  # two tiles and three steps
    ("rg_lru", 32, False),
    ("linear_scan", 7, False),
    ("linear_scan", 67, True),
  ],
)
def test_values_and_gradients_equal_float64(op, steps, resets, dtype):
  run, reference = OPS[op]
  shape = (
    (2, steps, 256) if steps < 10 else (1, steps, 128)
  )  # several warpgroups, or one: it is slow
  arguments, reset, cotangents = problem(op, shape, dtype, resets=resets)
  f = functools.partial(run, interpret=plgpu.InterpretGPUParams())
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
@pytest.mark.parametrize("shape", [(2, 100, 128), (8, 2048, 4096)])
def test_values_and_gradients_lower_for_cuda(op, shape, dtype):
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
  assert lowered.as_text().count("mosaic_gpu") >= 2  # one kernel forward, one backward


@pytest.mark.parametrize("op", OPS)
def test_a_width_that_is_no_multiple_of_128_is_refused(op):
  arguments, reset, _ = problem(op, (1, 4, 192), jnp.float32)
  with pytest.raises(ValueError, match=r"multiple of 128, got 192\. Change the width"):
    OPS[op][0](*arguments, reset)


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
  said = mosaic_gpu_scan.unavailable_reason()
  assert said is None if reason is None else reason in said
