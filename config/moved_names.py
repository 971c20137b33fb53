"""Names that gin files of earlier versions use, and what they are called now.

Files that people have, and the configurations that old run directories keep, go on working: the old
names are translated where they are read, so that nothing else has to know of them.
"""

from __future__ import annotations

import re
from typing import Any

# Modules that gin files import.
_MODULES = {
  "data.vocabularies": "data.tokenizers",
  "launch.comparison": "comparison.comparison",
  "launch.experiment": "experiment.experiment",
  "launch.model_zoo": "experiment.model_zoo",
  "launch.step_estimate": "planning.step_estimate",
  "parallel.layout": "parallel.sharding_plan",
  "evaluation.long_context": "comparison.quality.long_context",
  "evaluation.recall_curves": "comparison.quality.recall_curves",
  "evaluation.recall_learning": "comparison.quality.recall_learning",
  "evaluation.recall_of_runs": "comparison.quality.recall_of_runs",
  "evaluation.scaling": "comparison.quality.scaling",
  "evaluation.window_size": "comparison.quality.window_size",
  "evaluation.speed.decoding": "comparison.speed.decoding",
  "evaluation.speed.kernels": "comparison.speed.kernels",
  "evaluation.speed.memory": "comparison.speed.memory",
  "evaluation.speed.throughput": "comparison.speed.throughput",
  "evaluation.speed.training": "comparison.speed.training",
}

# Classes, by their present modules.
_CLASSES = {
  "training.step.Options": "StepOptions",
  "training.loop.Options": "LoopOptions",
  "comparison.comparison.Measured": "OnUntrainedModels",
  "comparison.comparison.Trained": "OnTrainedModels",
}

# Parameters, by the present name of the class or function that they are bound for.
_PARAMETERS = {"training.step.StepOptions.accumulate": "grad_accum_steps"}
# Values that are names, by the parameter that takes them. `layers.remat` has them too, for models
# that are built in Python.
_VALUES = {
  "models.backbone.Backbone.remat": {"products": "save_dots", "mixers": "save_mixer_outputs"}
}


class Translation:
  """Translates the names of one file, or of the arguments of a command.

  Attributes:
    found: the old names that were met, with the new ones.
  """

  def __init__(self, short: dict[str, str] | None = None):
    self.found: dict[str, str] = {}
    self._short = dict(short or {})
    self._bound: dict[str, str] = {}

  def module(self, name: str, bound: str) -> str:
    """The present path of a module that the file imports under the name `bound`."""
    new = self._current(name)
    if bound == name.rpartition(".")[2]:
      self._short[bound] = new.rpartition(".")[2]
    self._bound[bound] = new
    return new

  def name(self, text: str) -> str:
    """The present form of a name in a binding or reference: with a module's whole path, or its last
    part.
    """
    new = self._current(text)
    first, dot, rest = new.partition(".")
    last = self._short.get(first, first)
    if not dot:
      return new
    if last != first:
      if first not in {old.rpartition(".")[2] for old in self.found}:
        self.found[first] = last
      new = last + dot + rest
    for old, class_name in _CLASSES.items():
      if self._may_be(new, old):
        self.found[_short_form(old, 2)] = _short_form(_renamed(old, class_name), 2)
        return _renamed(new, class_name)
    return new

  def binding(self, selector: str, parameter: str, value: Any) -> tuple[str, str, Any]:
    """The present form of `selector.parameter = value`."""
    selector = self.name(selector)
    left = f"{selector}.{parameter}"
    for old, new in _PARAMETERS.items():
      if self._may_be(left, old):
        self.found[_short_form(old, 3)] = _short_form(_renamed(old, new), 3)
        return selector, new, value
    for taker, names in _VALUES.items():
      if isinstance(value, str) and value in names and self._may_be(left, taker):
        self.found[f"{parameter}={value!r}"] = f"{parameter}={names[value]!r}"
        return selector, parameter, names[value]
    return selector, parameter, value

  def _may_be(self, name: str, path: str) -> bool:
    """Whether a name stands for a path, by the imports of its file; on the command line, whether it
    is the end of it.
    """
    first, _, rest = name.partition(".")
    if not self._bound:
      return f".{path}".endswith(f".{name}")
    return path in (name, f"{self._bound.get(first, first)}.{rest}")

  def _current(self, name: str) -> str:
    for old, new in _MODULES.items():
      if name == old or name.startswith(f"{old}."):
        self.found[old] = new
        return new + name.removeprefix(old)
    return name


class AsWritten(Translation):
  """Leaves every name as it is written, so that a file means the same text to every version."""

  def module(self, name: str, bound: str) -> str:
    return name

  def name(self, text: str) -> str:
    return text

  def binding(self, selector: str, parameter: str, value: Any) -> tuple[str, str, Any]:
    return selector, parameter, value


def classes_once_named(name: str) -> set[str]:
  """The present paths of classes that had this name, without a module, in earlier versions."""
  return {_renamed(old, new) for old, new in _CLASSES.items() if old.rpartition(".")[2] == name}


def of_arguments() -> Translation:
  """Translates names on the command line, which may be short although nothing is imported there."""
  last_parts = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in _MODULES.items()}
  return Translation(last_parts)


def first_form(text: str) -> str:
  """A text with the last parts of modules, the parameters and the values that it was first written
  with.

  What was measured or trained is found by digests of such texts, made under the old names.
  """
  renamed = [(_PARAMETERS, 3), (_CLASSES, 2)]  # from the newest names to the first ones
  for names, parts in renamed:
    for old, new in names.items():
      present = re.escape(_short_form(_renamed(old, new), parts))
      text = re.sub(rf"\b{present}\b", _short_form(old, parts), text)
  for names in _VALUES.values():
    for old, new in names.items():
      text = text.replace(repr(new), repr(old))
  for old, new in _MODULES.items():
    was, now = old.rpartition(".")[2], new.rpartition(".")[2]
    if was != now:
      text = re.sub(rf"\b{now}\.(?=[A-Z])", f"{was}.", text)
  return text


def _renamed(path: str, last: str) -> str:
  """A path with another last part."""
  return f"{path.rpartition('.')[0]}.{last}"


def _short_form(path: str, parts: int) -> str:
  """A name as files write it: the last part of its module, a class, and perhaps a parameter."""
  return ".".join(path.split(".")[-parts:])
