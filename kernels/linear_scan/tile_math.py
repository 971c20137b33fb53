"""Formulas of the linear recurrence for accelerator kernels, on float32 tiles of any shape."""

from __future__ import annotations

import jax.numpy as jnp


def decay(tiles, channels, mask):
  """Returns (a_t,) from log a_t; mask is a large negative number at a reset."""
  del channels
  log_a = tiles[0]
  return (jnp.exp(log_a if mask is None else log_a + mask),)


def coefficients(tiles, channels, mask):
  """Returns a_t and u_t = x_t."""
  x, log_a = tiles
  return (*decay((log_a,), channels, mask), x)


def gradients(tiles, channels, kept, g, h_before):
  """Returns the gradients of x and log a: dx = g and dlog_a = g a h_before."""
  del tiles, channels
  return (g, kept[0] * g * h_before), ()
