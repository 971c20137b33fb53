"""mLSTM as gated linear attention (section 2.3 of Beck et al. 2024, arXiv 2405.04517).

    C_t = f_t C_{t-1} + i_t k_t v_t^T,  n_t = f_t n_{t-1} + i_t k_t
    y_t = C_t^T q_t / max(|n_t^T q_t|, 1)

An input gate `i = exp(log_i)` may overflow. So states are kept as multiples of exp(m), with the
stabilizer `m_t = max(log f_t + m_{t-1}, log_i_t)` of equation 15. In these units the decay is
`f_t exp(m_{t-1} - m_t)` and the input gate `exp(log_i_t - m_t)`, both at most 1: they are decays
and keys of gated linear attention. The normalizer n is a column of the state, with values of 1.

The result does not depend on m, so m has no gradient. Its roundings cancel too: it enters as its
differences, which add up to what they were taken from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kernels.gated_linear_attention import gated_linear_attention

# exp of this and of its negative are float32 numbers.
_LARGEST_EXPONENT = 80.0


def mlstm(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_f: jax.Array,
  log_i: jax.Array,
  h0: jax.Array | None = None,
  m0: jax.Array | None = None,
  *,
  reset: jax.Array | None = None,
  last: bool = True,
  chunk: int = 64,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
  """Runs mLSTM over a row.

  Args:
    q, k: [B, T, H, K] queries and keys, float32 or bfloat16; a scale of the scores is the caller's.
    v: [B, T, H, V] values in q's dtype.
    log_f: [B, T, H] float32 <= 0, logarithms of the forget gates.
    log_i: [B, T, H] float32, logarithms of the input gates.
    h0: [B, H, K, V + 1] float32 state before the first step, C beside n, over exp(m0); zeros if
      None.
    m0: [B, H] float32 stabilizer of h0; zeros if None.
    reset, last, chunk, implementation: as in `gated_linear_attention`.

  Returns:
    y: [B, T, H, V] in q's dtype; the state after the last step like h0, None without `last`; and
    its stabilizer [B, H] float32, without a gradient.

  Raises:
    ValueError: shapes or types disagree.
  """
  for name, gate in {"log_f": log_f, "log_i": log_i}.items():
    if gate.shape != v.shape[:3] or gate.dtype not in (jnp.float32, jnp.float64):
      raise ValueError(
        f"mlstm: {name} must be float32 {v.shape[:3]}, got {gate.dtype} {gate.shape}."
      )
  m = stabilizers(log_f, log_i, m0, reset)
  arrays = stabilized(q, k, v, log_f, log_i, m, m0, reset)
  y, h = gated_linear_attention(
    *arrays, h0, reset=reset, last=last, chunk=chunk, implementation=implementation
  )
  return normalized(y, m), h, m[:, -1]


def stabilizers(
  log_f: jax.Array,
  log_i: jax.Array,
  m0: jax.Array | None = None,
  reset: jax.Array | None = None,
) -> jax.Array:
  """Solves `m_t = max(log_f_t + m_{t-1}, log_i_t)`, without a gradient: [B, T, H].

  Arguments as in `mlstm`. Where a segment starts, m is log_i.
  """
  decay, value = maxima(log_f, log_i, reset)
  return jnp.maximum(decay + (0 if m0 is None else jax.lax.stop_gradient(m0)[:, None]), value)


def maxima(
  log_f: jax.Array, log_i: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """The maps from the stabilizer before a row to those in it, `m -> max(m + decay, value)`.

  Both are [B, T, H], without a gradient.
  """
  log_f, log_i = jax.lax.stop_gradient((log_f, log_i))
  if reset is not None:
    log_f = jnp.where(reset[..., None], -jnp.inf, log_f)

  def joined(early, late):
    return early[0] + late[0], jnp.maximum(early[1] + late[0], late[1])

  return jax.lax.associative_scan(joined, (log_f, log_i), axis=1)


def stabilized(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_f: jax.Array,
  log_i: jax.Array,
  m: jax.Array,
  m0: jax.Array | None = None,
  reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The arguments q, k, v and log_a of `gated_linear_attention`, from those of `mlstm`.

  Args:
    m: [B, T, H], from `stabilizers` with the same m0 and reset.
  """
  first = jnp.zeros_like(m[:, :1]) if m0 is None else jax.lax.stop_gradient(m0)[:, None]
  log_a = log_f + (jnp.concatenate([first, m[:, :-1]], axis=1) - m)
  if reset is not None:
    # Nothing is kept there; m may fall by more than a float32 exponential takes.
    log_a = jnp.where(reset[..., None], 0, log_a)
  k = (k * jnp.exp(log_i - m)[..., None]).astype(k.dtype)
  return q, k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1), log_a


def normalized(y: jax.Array, m: jax.Array) -> jax.Array:
  """Divides C^T q by max(|n^T q|, 1), all over exp(m): [B, T, H, V] from [B, T, H, V + 1]."""
  wide = y.astype(m.dtype)
  one = jnp.exp(jnp.clip(-m, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))[..., None]
  size = jnp.abs(wide[..., -1:])
  # Not `maximum`: its gradient compares the result with both, and is lost where the compiler
  # computes one of them twice with another last digit.
  return (wide[..., :-1] / jnp.where(size > one, size, one)).astype(y.dtype)
