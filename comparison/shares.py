"""Intervals of shares of right answers, over seeds and over questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from comparison.statistics import CONFIDENCE, Interval, interval


def wilson(right: float, questions: int, confidence: float = CONFIDENCE) -> Interval:
  """Computes Wilson's interval of a share of independent questions (Wilson 1927).

  Args:
    right: the share that is right.
    questions: the number of questions.
    confidence: probability that the interval holds the true share.

  Raises:
    ValueError: the share is not in [0, 1], or there are no questions.
  """
  if not 0 <= right <= 1 or questions < 1:
    raise ValueError(f"a share of {right} of {questions} questions is none.")
  z = float(ndtri((1 + confidence) / 2))
  scale = 1 + z**2 / questions
  middle = (right + z**2 / (2 * questions)) / scale
  half = z / scale * math.sqrt(right * (1 - right) / questions + z**2 / (4 * questions**2))
  # Not beyond the share by rounding, at 0 and 1.
  low, high = min(middle - half, right), max(middle + half, right)
  return Interval(right, max(low, 0.0), min(high, 1.0), questions)


def of_seeds(rights: Sequence[float], questions: int) -> Interval:
  """Computes the interval of a share from the shares of some seeds, all asked equal questions.

  It holds Student's interval over the seeds and Wilson's over the questions: seeds that are all
  wrong on a few questions do not make the share certain.
  """
  own = wilson(float(np.mean(rights)), max(questions, 1))
  if len(rights) < 2:
    return own
  seeds = interval(rights)
  low, high = max(min(own.low, seeds.low), 0.0), min(max(own.high, seeds.high), 1.0)
  return Interval(own.mean, low, high, len(rights))


def spread_text(seeds: int) -> str:
  """Describes the intervals of `of_seeds` for a figure."""
  over = f"{CONFIDENCE:.0%} interval (Wilson) over the questions"
  if seeds < 2:
    return f"{over}, one seed"
  return f"{over}, or (Student's t) over {seeds} seeds where that is wider"
