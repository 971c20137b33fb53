"""Models with an asked number of parameters: chooses the MLP width, or the depth without MLPs."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from base.equal_partial import EqualPartial
from models import lora
from models.accounting import ModelError, list_parameters
from models.language_model import LanguageModel

TOLERANCE = 0.01
# Of an MLP's width: the largest with which the number is met. Meshes and tiles like large ones.
MULTIPLES = (256, 128, 64, 32, 16, 8)
# An MLP this many times as wide as the model is not what was meant.
_WIDEST = 64


class Sized(NamedTuple):
  """A model, and what was chosen for it in words."""

  model: LanguageModel
  chosen: str


def sized(model: LanguageModel, parameters: float) -> Sized:
  """Changes a model's MLP width, or its depth if it has no MLPs, to have so many parameters.

  The number of parameters grows evenly with either, so that two counts give the rest.

  Args:
    model: any model of the zoo.
    parameters: the asked number, without that of adapters.

  Raises:
    ModelError: the rest of the model has more parameters, or nearly as few that no width is meant;
      or its MLPs have no argument `hidden`.
  """
  if model.mlp is None:
    return _by_depth(model, parameters)
  if "hidden" not in getattr(model.mlp, "keywords", {}):
    raise ModelError(
      f"PARAMETERS={parameters:g}: the model's MLPs are built without an argument `hidden`, so no "
      "width can be chosen. Build them with one, or leave PARAMETERS out."
    )
  return _by_mlp(model, parameters)


def _by_mlp(model: LanguageModel, parameters: float) -> Sized:
  def of(width: int) -> LanguageModel:
    mlp: Any = model.mlp
    return model.clone(mlp=EqualPartial(mlp, hidden=width))

  least = MULTIPLES[-1]
  first, second = _count(of(least)), _count(of(2 * least))
  exact = least + (parameters - first) * least / (second - first)
  if exact < least / 2:
    raise ModelError(
      f"PARAMETERS={parameters:g}: without MLPs the model has {2 * first - second:,} already. Ask "
      "for more, or choose a smaller file of gin/sizes/ (WIDTH, DEPTH)."
    )
  if exact > _WIDEST * model.width:
    raise ModelError(
      f"PARAMETERS={parameters:g} would need MLPs of width {exact:,.0f}, more than {_WIDEST} times "
      f"the model's {model.width}. Ask for fewer, or choose a larger file of gin/sizes/."
    )
  widths = [max(1, round(exact / multiple)) * multiple for multiple in MULTIPLES]
  counts = [first + (width - least) * (second - first) // least for width in widths]
  near = [
    (width, count, multiple)
    for width, count, multiple in zip(widths, counts, MULTIPLES, strict=True)
    if abs(count - parameters) <= TOLERANCE * parameters
  ]
  width, count, multiple = (near or [(widths[-1], counts[-1], least)])[0]
  return Sized(
    of(width),
    f"PARAMETERS = {parameters:g}: MLPs of width {width:,}, a multiple of {multiple}; "
    f"{_result(count, parameters)}",
  )


def of_depth(model: LanguageModel, depth: int) -> LanguageModel:
  """Changes the number of a model's blocks, and the initial scale of their outputs with it."""

  def scaled(mixer: Any) -> Any:
    scale = getattr(mixer, "keywords", {}).get("output_scale")
    return mixer if scale is None else EqualPartial(mixer, output_scale=scale * model.depth / depth)

  return model.clone(depth=depth, pattern=tuple(map(scaled, model.pattern)))


def _by_depth(model: LanguageModel, parameters: float) -> Sized:
  of = functools.partial(of_depth, model)
  repeat = len(model.pattern)
  first, second = _count(of(repeat)), _count(of(2 * repeat))
  depth = round(repeat * (1 + (parameters - first) / (second - first)))
  if depth < 1:
    raise ModelError(
      f"PARAMETERS={parameters:g}: without blocks the model has {2 * first - second:,} already. "
      "Ask for more, or choose a smaller file of gin/sizes/ (WIDTH)."
    )
  if depth > _WIDEST * model.depth:
    raise ModelError(
      f"PARAMETERS={parameters:g} would need {depth:,} blocks, more than {_WIDEST} times the size "
      f"file's {model.depth}. Ask for fewer, or choose a larger file of gin/sizes/."
    )
  found = of(depth)
  return Sized(
    found,
    f"PARAMETERS = {parameters:g}: {depth:,} blocks without MLPs; "
    f"{_result(_count(found), parameters)}",
  )


def _result(count: int, parameters: float) -> str:
  return f"{count:,} parameters, {count / parameters - 1:+.2%} of what was asked"


def _count(model: LanguageModel) -> int:
  """The parameters without adapters, so that these fit the model that they are for."""
  adapters = (lora.A, lora.B) if isinstance(model, lora.AdaptedModel) else ()
  return sum(
    parameter.count
    for parameter in list_parameters(model)
    if parameter.path.rpartition("/")[2] not in adapters
  )
