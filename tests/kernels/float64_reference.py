"""The recurrences and their gradients in float64, one step at a time, in NumPy.

Written from the equations, independently of everything under kernels/: the gradients are the
adjoint recurrence by hand, and test_recurrences.py checks them by finite differences of the values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MAX_SQRT_GRADIENT = 1000.0


class Result(NamedTuple):
  """Values of an op, and the gradients of `sum(h * dh) + sum(h_last * dh_last)`."""

  h: np.ndarray  # [B, T, R]
  h_last: np.ndarray  # [B, R]
  gradients: dict[str, np.ndarray]  # by argument, in the order of the op's arguments


def wide(array: Any) -> np.ndarray | None:
  """An array of any type, bfloat16 included, in float64; None stays None."""
  return None if array is None else np.asarray(array).astype(np.float64)


def linear_scan(x, log_a, h0=None, reset=None, reverse=False, dh=None, dh_last=None) -> Result:
  """`h_t = exp(log_a_t) h_{t-1} + x_t`.

  Args:
    x, log_a: [B, T, R]; h0: [B, R] or None; reset: [B, T] bool or None.
    reverse: run from the last step to the first.
    dh, dh_last: cotangents of h and of the last state; zero if None.

  Returns:
    float64 values, and gradients for x, log_a, h0.
  """
  a = _decay(wide(log_a), reset)
  h, before, h_last = _run(wide(x), a, wide(h0), reverse)
  g, dh0 = _adjoint(a, _or_zeros(dh, h), _or_zeros(dh_last, h_last), reverse)
  return Result(h, h_last, {"x": g, "log_a": g * before * a, "h0": dh0})


def rg_lru(x, gate_a, gate_x, log_decay, h0=None, reset=None, dh=None, dh_last=None) -> Result:
  """Equations 1 to 4 of the Griffin paper; a = 0, and so no input scaling, at a reset.

  Args:
    x, gate_a, gate_x: [B, T, R]; log_decay: [R]; h0: [B, R] or None; reset: [B, T] bool or None.
    dh, dh_last: cotangents of h and of the last state; zero if None.

  Returns:
    float64 values, and gradients for x, gate_a, gate_x, log_decay, h0, with the derivative of the
    square root bounded by MAX_SQRT_GRADIENT.
  """
  x, gate_a, gate_x, log_decay = wide(x), wide(gate_a), wide(gate_x), wide(log_decay)
  r, i = _sigmoid(gate_a), _sigmoid(gate_x)
  log_a = r * log_decay
  a = _decay(log_a, reset)
  square = -np.expm1(2 * log_a)
  scale = np.sqrt(square)
  sqrt_slope = 0.5 / np.maximum(scale, 0.5 / MAX_SQRT_GRADIENT)
  # d scale / d log a = sqrt'(1 - a^2) * (-2 a^2)
  scale_slope = sqrt_slope * -2 * np.exp(2 * log_a)
  if reset is not None:
    start = np.asarray(reset)[..., None]
    scale, scale_slope = np.where(start, 1, scale), np.where(start, 0, scale_slope)

  h, before, h_last = _run(scale * i * x, a, wide(h0), False)
  g, dh0 = _adjoint(a, _or_zeros(dh, h), _or_zeros(dh_last, h_last), False)
  dlog_a = g * before * a + g * i * x * scale_slope
  return Result(
    h,
    h_last,
    {
      "x": g * scale * i,
      "gate_a": dlog_a * log_decay * r * (1 - r),
      "gate_x": g * scale * x * i * (1 - i),
      "log_decay": np.sum(dlog_a * r, axis=(0, 1)),
      "h0": dh0,
    },
  )


def complex_scan(
  x, log_a, phase, h0=None, reset=None, reverse=False, dh=None, dh_last=None
) -> Result:
  """`h_t = exp(log_a_t + i phase_t) h_{t-1} + x_t` in complex128.

  Args:
    x: [B, T, 2C], h0: [B, 2C] or None: real, then imaginary parts; log_a, phase: [B, T, C].
    reset: [B, T] bool or None.
    reverse: run from the last step to the first.
    dh, dh_last: cotangents of h and of the last state; zero if None.

  Returns:
    float64 values with real parts first, and gradients for x, log_a, phase, h0.
  """
  a = np.exp(wide(log_a) + 1j * wide(phase))
  if reset is not None:
    a = np.where(np.asarray(reset)[..., None], 0, a)
  x = _complex(x)
  state = np.zeros_like(x[:, 0]) if h0 is None else _complex(h0)
  h, before, h_last = _run(x, a, state, reverse)
  dh = np.zeros_like(h) if dh is None else _complex(dh)
  dh_last = np.zeros_like(h_last) if dh_last is None else _complex(dh_last)
  # With real inner products, the adjoint of a product with a is a product with its conjugate.
  g, dh0 = _adjoint(a.conj(), dh, dh_last, reverse)
  slope = g.conj() * a * before
  return Result(
    _parts(h),
    _parts(h_last),
    {"x": _parts(g), "log_a": slope.real, "phase": -slope.imag, "h0": _parts(dh0)},
  )


def _complex(parts):
  real, imag = np.split(wide(parts), 2, axis=-1)
  return real + 1j * imag


def _parts(z):
  return np.concatenate([z.real, z.imag], axis=-1)


def relative_error(got: Any, expected: np.ndarray, at_least: float = 1e-30) -> float:
  """Euclidean norm of the difference over that of the expected array; inf unless got is finite.

  Args:
    got: of any type.
    expected: float64.
    at_least: replaces the norm of `expected` where that is smaller.
  """
  got = wide(got)
  if got.shape != expected.shape or not np.all(np.isfinite(got)):
    return np.inf
  return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), at_least))


def _run(x, a, h0, reverse):
  """The states, the state before each step, and the last state."""
  state = np.zeros_like(x[:, 0]) if h0 is None else h0
  h, before = np.empty_like(x), np.empty_like(x)
  for t in _order(x.shape[1], reverse):
    before[:, t] = state
    state = a[:, t] * state + x[:, t]
    h[:, t] = state
  return h, before, state


def _adjoint(a, dh, dh_last, reverse):
  """The gradient of each step's input, and of the first state."""
  g = np.empty_like(a)
  carried = dh_last
  for t in _order(a.shape[1], not reverse):
    g[:, t] = dh[:, t] + carried
    carried = a[:, t] * g[:, t]
  return g, carried


def _decay(log_a, reset):
  a = np.exp(log_a)
  return a if reset is None else np.where(np.asarray(reset)[..., None], 0, a)


def _order(steps, reverse):
  return range(steps - 1, -1, -1) if reverse else range(steps)


def _or_zeros(array, like):
  return np.zeros_like(like) if array is None else wide(array)


def _sigmoid(v):
  # Without overflow, and with all digits of small values.
  small = np.exp(-np.abs(v))
  return np.where(v >= 0, 1, small) / (1 + small)
