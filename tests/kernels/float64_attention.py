"""Causal attention and its gradient in float64, in NumPy; the mask is set pair by pair."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.kernels.float64_reference import wide


class Result(NamedTuple):
  """The output [B, T, H, K], and the gradients of `sum(output * g)`."""

  output: np.ndarray
  dq: np.ndarray
  dk: np.ndarray
  dv: np.ndarray


def attention(
  q, k, v, g, *, q_segment_ids=None, kv_segment_ids=None, window=None, scale=None
) -> Result:
  """The arguments of `kernels.attention.attention`, and the cotangent of its result."""
  q, k, v, g = wide(q), wide(k), wide(v), wide(g)
  batch, length, heads, head_dim = q.shape
  keys, kv_heads = k.shape[1:3]
  scale = head_dim**-0.5 if scale is None else scale

  position = np.arange(length)[:, None] + keys - length
  other = np.arange(keys)[None, :]
  visible = other <= position
  if window is not None:
    visible &= position - other < window
  visible = np.broadcast_to(visible, (batch, length, keys)).copy()
  if q_segment_ids is not None:
    visible &= np.asarray(q_segment_ids)[:, :, None] == np.asarray(kv_segment_ids)[:, None, :]

  output, dq = np.zeros_like(q), np.zeros_like(q)
  dk, dv = np.zeros_like(k), np.zeros_like(v)
  for b in range(batch):
    for h in range(heads):
      shared = h // (heads // kv_heads)
      keys_, values = k[b, :, shared], v[b, :, shared]
      scores = np.where(visible[b], scale * q[b, :, h] @ keys_.T, -np.inf)
      # A row that sees nothing: its maximum is replaced so that it gives weights of zero, not NaN.
      largest = np.max(scores, axis=1, keepdims=True)
      weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
      weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
      output[b, :, h] = weights @ values
      dweights = g[b, :, h] @ values.T
      dscores = weights * (dweights - np.sum(weights * dweights, axis=1, keepdims=True))
      dq[b, :, h] = scale * dscores @ keys_
      dk[b, :, shared] += scale * dscores.T @ q[b, :, h]
      dv[b, :, shared] += weights.T @ g[b, :, h]
  return Result(output, dq, dk, dv)
