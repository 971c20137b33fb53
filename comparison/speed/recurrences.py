"""Runs of the recurrences for timing: an op, an implementation, forward or with gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels import platform
from kernels.linear_scan import IMPLEMENTATIONS as LINEAR_SCANS
from kernels.linear_scan import linear_scan
from kernels.rg_lru import IMPLEMENTATIONS as RG_LRUS
from kernels.rg_lru import rg_lru

OPS = {"rg_lru": (rg_lru, RG_LRUS), "linear_scan": (linear_scan, LINEAR_SCANS)}
FORWARD = "forward"
BOTH = "forward and backward"


def available(op: str) -> list[str]:
  """Lists the implementations of an op that run on the target platform."""
  reasons = platform.availability(OPS[op][1])
  return [name for name, reason in reasons.items() if reason is None]


def problem(op: str, shape: tuple[int, int, int], dtype: Any, seed: int = 0):
  """Makes (differentiable arguments, reset, cotangents), with decays between 0.9 and 1 - 1e-6."""
  rng = np.random.default_rng(seed)
  batch, steps, width = shape

  def normal(*size, dtype=jnp.float32):
    return jnp.asarray(rng.standard_normal(size, np.float32)).astype(dtype)

  log_decay = jnp.asarray(-(10.0 ** rng.uniform(-6, -1, width)), jnp.float32)
  x, gate_a, gate_x = (normal(*shape, dtype=dtype) for _ in range(3))
  h0 = normal(batch, width)
  if op == "rg_lru":
    arguments = (x, gate_a, gate_x, log_decay, h0)
  else:
    arguments = (x, (jax.nn.sigmoid(gate_a.astype(jnp.float32)) * log_decay).astype(dtype), h0)
  reset = jnp.asarray(rng.uniform(size=(batch, steps)) < 0.01)
  return arguments, reset, (normal(*shape, dtype=dtype), normal(batch, width))


def bind(op: str, implementation: str) -> Callable[..., Any]:
  """Binds a named implementation: returns op(*arguments, reset)."""
  function, _ = OPS[op]
  return lambda *a: function(*a[:-1], reset=a[-1], implementation=implementation)


def with_gradient(op: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function (*arguments, reset, dh, dh_last) -> values and gradients of an op."""

  def both(*arguments):
    *inputs, reset, dh, dh_last = arguments
    values, vjp = jax.vjp(lambda *a: op(*a, reset), *inputs)
    return values, vjp((dh, dh_last))

  return both


def runs(
  op: str, shape: tuple[int, int, int], dtype: Any
) -> dict[tuple[str, str], Callable[[], Any]]:
  """Returns runs of every available implementation in both directions, compiled on first use."""
  arguments, reset, cotangents = problem(op, shape, dtype)
  found = {}
  for name in available(op):
    forward = jax.jit(bind(op, name))
    both = jax.jit(with_gradient(bind(op, name)))
    found[name, FORWARD] = functools.partial(forward, *arguments, reset)
    found[name, BOTH] = functools.partial(both, *arguments, reset, *cotangents)
  return found
