"""Shared parts of the figures of speed: conditions and the wording of findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from comparison.page.figure import Places, Series
from comparison.speed.timing import MedianInterval
from models.accounting import list_parameters
from models.language_model import LanguageModel

NO_DIFFERENCE = "no difference seen"


def check_baseline(baseline: str, models: Mapping[str, LanguageModel]) -> None:
  """Raises ValueError if the baseline is not one of the models."""
  if baseline not in models:
    raise ValueError(f"unknown baseline={baseline!r}. Name one of {', '.join(map(repr, models))}.")


def conditions(models: Mapping[str, LanguageModel]) -> tuple[tuple[str, str], ...]:
  """Returns sizes and dtypes of the models, as conditions of a figure."""
  counts, kinds = [], {}
  for name, model in models.items():
    parameters = list_parameters(model)
    counts.append(f"{name} {sum(p.count for p in parameters) / 1e6:.4g} M")
    kinds[f"{np.dtype(model.param_dtype)}, computing in {np.dtype(model.dtype)}"] = None
  return ("parameters", ", ".join(counts)), ("types", "; ".join(kinds))


def series(
  name: str,
  x: Sequence[int] | Sequence[str],
  intervals: Sequence[MedianInterval],
  scale: float = 1.0,
) -> Series:
  """Makes a series of measured intervals, multiplied by `scale`."""
  scaled = [one.scaled(scale) for one in intervals]
  return Series(
    name=name,
    x=cast(Places, tuple(x)),
    y=tuple(one.median for one in scaled),
    low=tuple(one.low for one in scaled),
    high=tuple(one.high for one in scaled),
  )


def times(value: MedianInterval, reference: MedianInterval) -> str:
  """Compares a value with a reference: '1.46 times', or that no difference is seen."""
  if value.overlaps(reference):
    return NO_DIFFERENCE
  return f"{value.median / reference.median:.3g} times"


def change(before: MedianInterval, after: MedianInterval, unit: str = "") -> str:
  """Formats a change: '1.00 to 1.46', marked if it is not significant; `unit` follows a number."""
  text = f"{before.median:.2f} to {after.median:.2f}{unit}"
  return f"{text} ({NO_DIFFERENCE})" if before.overlaps(after) else text


def listed(parts: Sequence[str]) -> str:
  """Joins parts: 'a, b and c'."""
  *most, last = parts
  return f"{', '.join(most)} and {last}" if most else last
