"""Compares the values of a configuration with the annotations of their parameters."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import itertools
import math
import types
import typing
from typing import Any

from base.ranges import Range

_SCALARS = (bool, int, float, complex, str, bytes)
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


@dataclasses.dataclass(frozen=True)
class BindableParameter:
  """One parameter of a function or of a class' constructor.

  Attributes:
    annotation: the type, or `Any`.
    default: the default, or `inspect.Parameter.empty`.
    marked: the type with its `Annotated` metadata.
  """

  annotation: Any
  default: Any
  marked: Any = Any

  @property
  def required(self) -> bool:
    """Whether the parameter has no default."""
    return self.default is inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Signature:
  """Parameters and result of a configurable.

  Attributes:
    parameters: by name, in order.
    open: whether it accepts any other keyword (`**kwargs`).
    result: the annotation of the return value; for a class, the class itself.
  """

  parameters: dict[str, BindableParameter]
  open: bool
  result: Any


@dataclasses.dataclass(frozen=True)
class Produced:
  """Placeholder for the result of a reference `@f()`; `result` as in `Signature`."""

  result: Any


@dataclasses.dataclass(frozen=True)
class Function:
  """Placeholder for a reference `@f`, the function itself."""


@functools.lru_cache(maxsize=1024)
def signature(target: Any) -> Signature:
  """Reads the signature of a function or class, with annotations resolved if possible.

  Kept: a comparison reads hundreds of configurations of the same functions, and resolving the
  annotations took a quarter of that.
  """
  try:
    parameters = inspect.signature(target).parameters.values()
  except (TypeError, ValueError):  # Some built-in functions have no signature.
    return Signature({}, True, Any)
  hints, marked = _hints(target), _hints(target, include_extras=True)
  known = {
    parameter.name: BindableParameter(
      hints.get(parameter.name, Any), parameter.default, marked.get(parameter.name, Any)
    )
    for parameter in parameters
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  }
  takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
  result = target if inspect.isclass(target) else hints.get("return", Any)
  return Signature(known, takes_any, result)


def _hints(target: Any, *, include_extras: bool = False) -> dict[str, Any]:
  holder = target
  if inspect.isclass(target) and not dataclasses.is_dataclass(target):
    holder = target.__init__
  try:
    return typing.get_type_hints(holder, include_extras=include_extras)
  except (NameError, TypeError, AttributeError):
    # Only type checkers can resolve such annotations: nothing is compared.
    return {}


def accepts(annotation: Any, value: Any) -> bool:
  """Whether a value of literals, `Produced` and `Function` has the annotated type.

  An int is accepted as a float, but not a bool as a number or a list as a tuple. Annotations that
  cannot be compared accept anything.
  """
  if isinstance(value, Produced):
    return _accepts_result(annotation, value.result)
  if isinstance(value, Function):
    return _accepts_function(annotation)
  if annotation is Any or isinstance(annotation, typing.TypeVar | str):
    return True
  if annotation is None or annotation is type(None):
    return value is None
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Union or origin is types.UnionType:
    return any(accepts(choice, value) for choice in arguments)
  if origin is typing.Literal:
    return any(value == choice and type(value) is type(choice) for choice in arguments)
  if origin is typing.Annotated:
    return accepts(arguments[0], value)
  if origin is tuple or annotation is tuple:
    return isinstance(value, tuple) and _accepts_items(arguments, value)
  if origin in (list, set, frozenset, *_SEQUENCES):
    kinds = list | tuple if origin in _SEQUENCES else origin
    return isinstance(value, kinds) and all(accepts(arguments[0], item) for item in value)
  if origin in (dict, collections.abc.Mapping):
    return isinstance(value, dict) and all(
      accepts(arguments[0], key) and accepts(arguments[1], item) for key, item in value.items()
    )
  if origin in (collections.abc.Callable, type):
    return False
  if annotation is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  if annotation is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if inspect.isclass(annotation):
    return _is_instance(value, annotation)
  return True


def fault(marked: Any, value: Any) -> str | None:
  """Describes the range that a number in an accepted value violates; None if there is none.

  Args:
    marked: the annotation with its `base.ranges.Range` marks. A float without one must be finite.
    value: literals, `Produced` and `Function`.
  """
  if isinstance(value, int | float) and not isinstance(value, bool):
    return _fault_of_number(marked, value)
  arguments = typing.get_args(marked)
  if typing.get_origin(marked) in (typing.Union, types.UnionType):
    faults = [fault(choice, value) for choice in arguments if accepts(choice, value)]
    return None if None in faults else next(iter(faults), None)
  if typing.get_origin(marked) is typing.Annotated:
    return fault(arguments[0], value)
  if isinstance(value, dict) and len(arguments) == 2:
    pairs = [(arguments[0], key) for key in value] + [(arguments[1], x) for x in value.values()]
  elif isinstance(value, tuple) and len(arguments) == len(value) and arguments[-1] is not Ellipsis:
    pairs = list(zip(arguments, value, strict=True))
  elif isinstance(value, list | tuple):
    pairs = [(arguments[0] if arguments else Any, item) for item in value]
  else:
    return None
  return next(filter(None, itertools.starmap(fault, pairs)), None)


def _fault_of_number(marked: Any, value: float) -> str | None:
  choices = [choice for choice in _choices(marked) if accepts(choice, value)]
  faults = []
  for choice in choices:
    marks = getattr(choice, "__metadata__", ())
    ranges = [mark for mark in marks if isinstance(mark, Range)] or [Range()]
    faults.append(next(filter(None, (one.fault(value) for one in ranges)), None))
  return None if None in faults else next(iter(faults), None)


def _accepts_items(arguments: tuple[Any, ...], value: tuple[Any, ...]) -> bool:
  if not arguments:
    return True
  if len(arguments) == 2 and arguments[1] is Ellipsis:
    return all(accepts(arguments[0], item) for item in value)
  return len(arguments) == len(value) and all(map(accepts, arguments, value))


def _is_instance(value: Any, kind: type) -> bool:
  try:
    return isinstance(value, kind)
  except TypeError:  # A protocol that cannot be checked at run time: no literal matches one.
    return not isinstance(value, (*_SCALARS, list, tuple, dict, type(None)))


def _accepts_result(annotation: Any, result: Any) -> bool:
  """Whether a call's result (a class, or an annotation) may have the annotated type."""
  choices = _choices(annotation)
  if result is Any or Any in choices or not all(map(inspect.isclass, (result, *choices))):
    return True
  return any(_is_subclass(result, choice) for choice in choices)


def _accepts_function(annotation: Any) -> bool:
  """Whether an uncalled function may have the annotated type."""
  open_types = (Any, object, type, collections.abc.Callable, typing.Callable)
  return any(
    choice in open_types
    or typing.get_origin(choice) in (collections.abc.Callable, type)
    or isinstance(choice, typing.TypeVar | str)
    or getattr(choice, "_is_protocol", False)
    for choice in _choices(annotation)
  )


def _choices(annotation: Any) -> tuple[Any, ...]:
  """Lists the members of a union; only the annotation itself if it is not a union."""
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def _is_subclass(kind: type, parent: type) -> bool:
  if parent is float and kind is int:
    return True
  if getattr(parent, "_is_protocol", False):
    return all(hasattr(kind, name) for name in _methods(parent))
  return issubclass(kind, parent)


def _methods(protocol: type) -> list[str]:
  """Lists the public methods of a protocol."""
  return [
    name
    for part in protocol.__mro__
    if getattr(part, "_is_protocol", False)
    for name, value in vars(part).items()
    if inspect.isfunction(value) and not name.startswith("_")
  ]


def describe(annotation: Any) -> str:
  """Formats an annotation as a user would write it."""
  if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
    return "None" if annotation is type(None) else annotation.__name__
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (typing.Union, types.UnionType):
    return " or ".join(map(describe, arguments))
  if origin is typing.Literal:
    return " or ".join(map(repr, arguments))
  if origin is tuple and arguments:
    return (
      f"tuple[{', '.join('...' if item is Ellipsis else describe(item) for item in arguments)}]"
    )
  if origin is collections.abc.Callable:
    return "a function"
  return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def advice(annotation: Any, value: Any) -> str:
  """Suggests what to write instead of a literal of the wrong type; '' without a guess."""
  choices = _choices(annotation)
  if bool in choices and isinstance(value, str) and value.lower() in ("true", "false"):
    return f"; write {value.capitalize()}"
  if isinstance(value, str) and value.lower() == "none" and type(None) in choices:
    return "; write None"
  if isinstance(value, list) and any(typing.get_origin(item) is tuple for item in choices):
    return f"; write {tuple(value)!r}"
  if str in choices and isinstance(value, int | float):
    return f"; write {str(value)!r}, in quotes"
  if isinstance(value, str) and any(kind in choices for kind in (int, float)):
    try:
      if not math.isfinite(float(value)):
        return ""
    except ValueError:
      return ""
    return f"; write {value}, without quotes"
  if isinstance(value, float) and value.is_integer() and int in choices:
    return f"; write {int(value)}"
  return ""
