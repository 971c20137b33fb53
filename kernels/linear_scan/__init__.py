"""The diagonal linear recurrence h_t = a_t h_{t-1} + x_t."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.linear_scan.rotation import complex_scan
from kernels.platform import Implementation, resolve

IMPLEMENTATIONS = {
  "cpu": Implementation("kernels.linear_scan.cpu", default_on=("cpu",)),
  "pallas_tpu": Implementation("kernels.linear_scan.pallas_tpu", ("tpu",), ("tpu",)),
  "mosaic_gpu": Implementation("kernels.linear_scan.mosaic_gpu", ("gpu",), ("gpu",)),
  "associative": Implementation("kernels.linear_scan.associative", default_on=("gpu", "tpu")),
  "reference": Implementation("kernels.linear_scan.reference"),
}


def linear_scan(
  x: jax.Array,
  log_a: jax.Array,
  h0: jax.Array | None = None,
  *,
  phase: jax.Array | None = None,
  reset: jax.Array | None = None,
  reverse: bool = False,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Solves `h_t = exp(log_a_t) h_{t-1} + x_t` along time.

  With `phase` the recurrence is complex: `h_t = exp(log_a_t + i phase_t) h_{t-1} + x_t`. The first
  half of the channels of x, h0 and h are then real parts, the second half imaginary parts.

  Args:
    x: [B, T, R] inputs, float32 or bfloat16.
    log_a: [B, T, R] logarithms of the decays, <= 0 (a itself would lose its digits in bfloat16);
      with `phase`, [B, T, R / 2].
    h0: [B, R] float32 state before the first step; zeros if None.
    phase: [B, T, R / 2] float32, radians; None for a real recurrence.
    reset: [B, T] bool; True where a segment starts: the state before that step is zero.
    reverse: run from the last step to the first.
    implementation: a name from IMPLEMENTATIONS; None takes the platform's best for this width.

  Returns:
    h: [B, T, R] in x's dtype, and the state after the last executed step: [B, R] float32.
    Accumulation is float32.

  Raises:
    ValueError: shapes or types disagree, or the implementation cannot run here.
  """
  check_scan_arguments("linear_scan", x, {} if phase is not None else {"log_a": log_a}, h0, reset)
  if phase is not None:
    _check_complex(x, log_a, phase)
  run = resolve("linear_scan", implementation, IMPLEMENTATIONS, (x,))
  if phase is not None:
    return complex_scan(run, x, log_a, phase, h0, reset, reverse)
  return run(x, log_a, h0, reset, reverse)


def _check_complex(x: jax.Array, log_a: jax.Array, phase: jax.Array) -> None:
  """Raises ValueError unless log_a and phase of complex decays fit x [B, T, R]."""
  if x.shape[2] % 2:
    raise ValueError(
      f"linear_scan: x of shape {x.shape} cannot hold real and imaginary parts: R must be even."
    )
  half = (*x.shape[:2], x.shape[2] // 2)
  for name, array in {"log_a": log_a, "phase": phase}.items():
    if array.shape != half:
      raise ValueError(
        f"linear_scan: {name} has shape {array.shape}; complex x of shape {x.shape} needs {half}."
      )
  if phase.dtype not in (jnp.float32, jnp.float64):
    raise ValueError(f"linear_scan: phase must be float32, got {phase.dtype}.")


def check_scan_arguments(
  op: str,
  x: jax.Array,
  like_x: dict[str, jax.Array],
  h0: jax.Array | None,
  reset: jax.Array | None,
) -> None:
  """Raises ValueError unless all arguments of a recurrence fit x [B, T, R].

  Args:
    op: name of the operation, for the message.
    x: inputs.
    like_x: further arguments of x's shape, by name.
    h0, reset: see `linear_scan`.
  """
  if x.ndim != 3 or 0 in x.shape:
    raise ValueError(f"{op}: x must be [B, T, R] and not empty, got shape {x.shape}.")
  if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
    raise ValueError(f"{op}: x must be float32 or bfloat16, got {x.dtype}.")
  for name, array in like_x.items():
    if array.shape != x.shape:
      raise ValueError(f"{op}: {name} has shape {array.shape}, x has {x.shape}; they must agree.")
  if h0 is not None and h0.shape != (x.shape[0], x.shape[2]):
    raise ValueError(
      f"{op}: h0 has shape {h0.shape}; x of shape {x.shape} needs {(x.shape[0], x.shape[2])}."
    )
  if reset is not None and (reset.shape != x.shape[:2] or reset.dtype != jnp.bool_):
    raise ValueError(f"{op}: reset must be bool {x.shape[:2]}, got {reset.dtype} {reset.shape}.")
