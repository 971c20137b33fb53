"""The gated step of the RG-LRU: nonlinearities of the gates, input scaling and recurrence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.linear_scan import check_scan_arguments
from kernels.platform import Implementation, resolve

IMPLEMENTATIONS = {
  "cpu": Implementation("kernels.rg_lru.cpu", default_on=("cpu",)),
  "pallas_tpu": Implementation("kernels.rg_lru.pallas_tpu", ("tpu",), ("tpu",)),
  "mosaic_gpu": Implementation("kernels.rg_lru.mosaic_gpu", ("gpu",), ("gpu",)),
  "associative": Implementation("kernels.rg_lru.associative", default_on=("gpu", "tpu")),
  "reference": Implementation("kernels.rg_lru.reference"),
}


def rg_lru(
  x: jax.Array,
  gate_a: jax.Array,
  gate_x: jax.Array,
  log_decay: jax.Array,
  h0: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Solves `h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(gate_x_t) x_t`.

  With `log a_t = sigmoid(gate_a_t) log_decay`, these are equations 1 to 4 of the Griffin paper. At
  the start of a segment a_t is 0, so that the input is not scaled down (as in RecurrentGemma).

  Args:
    x: [B, T, R] inputs, float32 or bfloat16.
    gate_a: [B, T, R] recurrence gate before its sigmoid.
    gate_x: [B, T, R] input gate before its sigmoid.
    log_decay: [R] float32 <= 0, the logarithm of the decay at a fully open gate.
    h0: [B, R] float32 state before the first step; zeros if None.
    reset: [B, T] bool, True where a segment starts.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's best for this width.

  Returns:
    h: [B, T, R] in x's dtype, and the state after the last step: [B, R] float32. All arithmetic is
    float32; the derivative of the square root is bounded by 1000.

  Raises:
    ValueError: shapes or types disagree, or the implementation cannot run here.
  """
  check_scan_arguments("rg_lru", x, {"gate_a": gate_a, "gate_x": gate_x}, h0, reset)
  if log_decay.shape != x.shape[2:] or log_decay.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(
      f"rg_lru: log_decay must be float32 {x.shape[2:]}, got {log_decay.dtype} {log_decay.shape}."
    )
  run = resolve("rg_lru", implementation, IMPLEMENTATIONS, (x,))
  return run(x, gate_a, gate_x, log_decay, h0, reset)
