"""Chooses the steps of a training that shall take a number of FLOPs (the macro `FLOPS`)."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

from config.config import Config
from config.source import OVERRIDE_PREFIX, Source, Statement
from models.accounting import account
from models.language_model import LanguageModel

_FLOPS, _STEPS = "FLOPS", "STEPS"

# Steps of a run that is built only to count the FLOPs of a step: more than any warm-up has.
COUNTING_STEPS = 10**9


class Sized(Protocol):
  """What the FLOPs of a step follow from."""

  @property
  def model(self) -> LanguageModel: ...

  @property
  def batch_size(self) -> int: ...

  @property
  def sequence_length(self) -> int: ...


def asked(source: Source) -> Statement | None:
  """Returns the last statement of FLOPS, unless STEPS is set after it."""
  last = None
  for item in source.statements:
    if _is_macro(item, _FLOPS):
      last = item
    elif _is_macro(item, _STEPS):
      last = None
  return last


def without(source: Source) -> Source:
  """Returns a source without its statements of FLOPS."""
  kept = [item for item in source.statements if not _is_macro(item, _FLOPS)]
  return Source(kept, source.imports, source.moved)


def steps(wanted: Statement, built: Sized) -> int:
  """Returns the number of steps that takes as many FLOPs as asked, as nearly as whole steps do.

  The FLOPs are those of forward and backward over all tokens, without recomputation, as tables of
  comparisons give them.

  Raises:
    ConfigError: it is no number of FLOPs, or too small for a step.
  """
  value = wanted.value
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise wanted.place.error(f"FLOPS = {value!r} must be a number above 0, such as 1e18.")
  counted = account(built.model, batch_size=built.batch_size, length=built.sequence_length)
  of_a_step = counted.training_flops * built.batch_size * built.sequence_length
  found = round(value / of_a_step)
  if found < 1:
    raise wanted.place.error(
      f"FLOPS = {value:g} is less than a step takes ({of_a_step:.3g}). Give more, or a smaller "
      "model or batch."
    )
  return found


def chosen(wanted: Statement, number: int) -> Source:
  """Returns the statement of STEPS that stands for FLOPS, at the place of FLOPS."""
  place, value = wanted.place, wanted.value
  if not place.is_argument:  # An argument names FLOPS itself.
    shown = f"{value:g}" if isinstance(value, int | float) else repr(value)
    place = dataclasses.replace(place, note=f"{_FLOPS} = {shown}")
  return Source(
    [dataclasses.replace(wanted, selector=_STEPS, value=number, text=None, place=place)]
  )


def told(config: Config) -> str | None:
  """Returns the argument or the line of FLOPS that set the steps; None if none did."""
  steps = config.macros.get(_STEPS)
  if steps is None:
    return None
  place = steps.place
  if place.is_argument:
    return str(place) if place.source.startswith(f"{OVERRIDE_PREFIX}{_FLOPS}=") else None
  return f"{place.note} in {dataclasses.replace(place, note='')}" if place.note else None


def _is_macro(item: Statement, name: str) -> bool:
  return item.selector == name and not item.parameter and not item.scope
