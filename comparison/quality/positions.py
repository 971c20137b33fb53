"""The loss by position: where it is summed up, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

from comparison.statistics import Claims, Interval, paired_difference, signed


def edges(scored: int, lengths: Sequence[int]) -> list[int]:
  """Returns the buckets' edges: powers of two, every training length, and the scored length."""
  powers = [2**n for n in range(3, scored.bit_length())]
  return sorted({0, *powers, *lengths, scored})


def says_beyond(
  name: str, buckets: Sequence[Sequence[Sequence[float]]], length: int, claims: Claims
) -> str:
  """Describes the change of the loss beyond the training length, seed by seed.

  Args:
    name: name of what changes, for `claims`.
    buckets: of each seed, its (start, stop, tokens, loss) by position.
    length: the training length.
    claims: notes the change.
  """
  within = [next(b[3] for b in reversed(one) if b[1] <= length) for one in buckets]
  beyond = [one[-1][3] for one in buckets]
  change = paired_difference(beyond, within)
  claims.note(f"{name}: near the last position minus within the training length", change)
  return _says_change(change)


def _says_change(change: Interval) -> str:
  if not change.supports_claim:
    return f"changes by {signed(change.mean)} (too few seeds to claim it)"
  values = f"{signed(change.low)} to {signed(change.high)}"
  if not change.excludes_zero:
    return f"shows no difference ({values})"
  return f"{'falls' if change.mean < 0 else 'rises'} by {abs(change.mean):.3f} ({values})"
