"""Resolves the names in gin statements: modules, functions, classes, parameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util  # gin 0.5.0 needs it and does not import it.
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from base import paths
from base.wording import near
from config import moved_names, types
from config.place import GIN_ROOT, Place
from config.source import Import, NamedReference, Statement


@dataclasses.dataclass(frozen=True)
class Configurable:
  """A function or class with parameters to bind; equal for the same function or class.

  Attributes:
    target: the function or class.
    module: the module that it was found in.
    path: its name there.
  """

  target: Any
  module: str = dataclasses.field(compare=False)
  path: str = dataclasses.field(compare=False)

  @property
  def name(self) -> str:
    """The name with its module's, in the form of gin files."""
    return f"{self.module.rpartition('.')[2]}.{self.path}"

  @functools.cached_property
  def signature(self) -> types.Signature:
    """The parameters and the result."""
    return types.signature(self.target)


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/configurable` or `@scope/configurable()` in a value."""

  scope: str
  configurable: Configurable
  called: bool

  def text(self, name: str) -> str:
    """Formats the reference as gin, with `name` for the configurable."""
    return repr(NamedReference(self.scope, name, self.called))

  def __repr__(self) -> str:
    return self.text(self.configurable.name)


class Names:
  """The names that a configuration's files import.

  Each file sees its own imports. A command-line argument sees those of all files, and full paths
  such as `models.hawk.hawk`.
  """

  def __init__(self, imports: Iterable[Import]):
    self._everywhere: dict[str, list[Import]] = {}
    for item in imports:
      _import(item.module, item.place)
      known = self._everywhere.setdefault(item.name, [])
      if item.module not in [other.module for other in known]:
        known.append(item)

  def configurable(self, name: str, statement: Statement) -> Configurable:
    """Resolves `name` as the statement's file does.

    Raises:
      ConfigError: the name is unknown, or not callable.
    """
    first, _, rest = name.partition(".")
    # Of a reference in the value, the parameter is not its own.
    parameter = statement.parameter if name == statement.selector else ""
    if statement.imports is None and _begins_with_path(name):
      return self._by_full_path(name, parameter, statement.place)
    module = self._module(first, name, statement)
    if module is None:
      return self._by_full_path(name, parameter, statement.place)
    return _attribute(module, rest, name, statement.place)

  def references(self, value: Any, statement: Statement) -> Any:
    """Replaces every `NamedReference` in a value by a `Reference`."""

    def resolve(item: Any) -> Any:
      if isinstance(item, NamedReference):
        return Reference(item.scope, self.configurable(item.name, statement), item.called)
      return item

    return replace(value, resolve)

  def _module(self, first: str, name: str, statement: Statement) -> str | None:
    """Returns the module bound to a name's first part; None to try the name as a full path."""
    if statement.imports is not None:
      if first in statement.imports:
        return statement.imports[first].module
      raise statement.place.error(
        f"{name!r}: this file does not import {first!r}"
        + (_import_line(first, name.partition(".")[2]) or near(first, statement.imports))
      )
    bound = self._everywhere.get(first, [])
    if len(bound) > 1:
      modules = " or ".join(sorted(item.module for item in bound))
      raise statement.place.error(f"{first!r} is ambiguous: {modules}; write the full path")
    return bound[0].module if bound else None

  def _by_full_path(self, name: str, parameter: str, place: Place) -> Configurable:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
      module = ".".join(parts[:end])
      if _exists(module):
        _import(module, place)
        return _attribute(module, ".".join(parts[end:]), name, place)
    hint = _import_line(parts[0], ".".join(parts[1:]), in_file=False)
    hint = hint or self._near(parts[-1], parameter)
    raise place.error(f"no file of this configuration imports {parts[0]!r}{hint}")

  def _near(self, last: str, parameter: str) -> str:
    """Suggests functions and classes of the imported modules for the last part of a name.

    Those that have the parameter come first, then those with this name, now or in the past.
    """
    known = {
      f"{items[0].name}.{own}": Configurable(getattr(module, own), items[0].module, own)
      for items in self._everywhere.values()
      if (module := sys.modules.get(items[0].module)) is not None
      for own in _public(module)
    }
    own = {name for name, one in known.items() if _has(one, parameter)}
    renamed = moved_names.classes_once_named(last)
    named = {
      name
      for name, one in known.items()
      if one.path == last or f"{one.module}.{one.path}" in renamed
    }
    if named := named & own or named:
      return f"; did you mean {named.pop()}?" if len(named) == 1 else near("", named)
    lasts = {name.rpartition(".")[2]: name for name in own or known}
    close = near(last, lasts)
    found = re.fullmatch(r"; did you mean (\w+)\?", close)
    return f"; did you mean {lasts[found[1]]}?" if found else near("", known)


def replace(value: Any, leaf: Callable[[Any], Any]) -> Any:
  """Applies `leaf` to all leaves of nested lists, tuples and dicts."""
  if isinstance(value, list | tuple):
    return type(value)(replace(item, leaf) for item in value)
  if isinstance(value, dict):
    return {replace(key, leaf): replace(item, leaf) for key, item in value.items()}
  return leaf(value)


def leaves(value: Any) -> list[Any]:
  """Lists the leaves of nested lists, tuples and dicts."""
  found: list[Any] = []
  replace(value, found.append)
  return found


def check_parameter(configurable: Configurable, parameter: str, place: Place) -> None:
  """Raises ConfigError if the configurable has no such parameter."""
  signature = configurable.signature
  if parameter not in signature.parameters and not signature.open:
    hint = near(parameter, signature.parameters)
    raise place.error(f"{configurable.name} has no parameter {parameter!r}{hint}")


def _has(configurable: Configurable, parameter: str) -> bool:
  try:
    return parameter in configurable.signature.parameters
  except (TypeError, ValueError, NameError):  # One without a signature, or with unknown types.
    return False


def _begins_with_path(name: str) -> bool:
  """Whether a name of three parts or more begins with a package and a module in it.

  Such as experiment.experiment.Experiment, where a file may have imported the module as experiment.
  """
  parts = name.split(".")
  return len(parts) > 2 and _exists(".".join(parts[:2]))


@functools.cache
def _exists(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):
    return False
  except (Exception, SystemExit):  # A broken package: importing it gives the error.
    return True


def _import(module: str, place: Place) -> Any:
  """Imports a module for a gin file."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name and f"{module}.".startswith(f"{error.name}."):
      top = module.partition(".")[0]
      remedy = "" if _exists(top) else _PATH_REMEDY.format(top)
      raise place.error(f"there is no module {module!r}{_near_module(module)}{remedy}") from None
    raise place.error(_broken(module, error)) from error
  except (Exception, SystemExit) as error:  # A module may call sys.exit.
    raise place.error(_broken(module, error)) from error


_PATH_REMEDY = (
  "; for your own module, start the command in the folder that contains {0}, or add that folder to "
  "PYTHONPATH"
)


def _broken(module: str, error: BaseException) -> str:
  """Formats the error of importing a module that exists."""
  where = "" if isinstance(error, SyntaxError) else f" ({raised_at(error)})"
  return (
    f"importing {module!r} failed: {type(error).__name__}: {' '.join(str(error).split())}{where}"
  )


def raised_at(error: BaseException) -> str:
  """Returns the file and line that raised an error, with the path as a user would type it."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  return f"{paths.shown(frame.filename)}:{frame.lineno}"


def _near_module(module: str) -> str:
  parent, _, last = module.rpartition(".")
  if not parent:
    return near(module, (item.name for item in pkgutil.iter_modules([str(GIN_ROOT.parent)])))
  if not _exists(parent):
    return _near_module(parent)
  package = importlib.import_module(parent)
  if not hasattr(package, "__path__"):
    *above, name = parent.split(".")
    return f"; import the module itself: from {'.'.join(above)} import {name}"
  return near(last, (item.name for item in pkgutil.iter_modules(package.__path__)))


def _import_line(name: str, rest: str, *, in_file: bool = True) -> str:
  """Suggests how to refer to a module of the project called `name`, if there is one.

  Of several with that name, it is one that defines what `rest` begins with.

  Args:
    name: the last part of the module's path.
    rest: what follows it: a function or class, and on the command line its parameter.
    in_file: whether the name stands in a file, which can import.
  """
  defines = re.compile(rf"^(?:def|class) {re.escape(rest.partition('.')[0])}\b", re.MULTILINE)
  found = [
    (not defines.search(module.read_text("utf-8")), module.parent.name)
    for module in GIN_ROOT.parent.glob(f"*/{name}.py")
    if (module.parent / "__init__.py").is_file()
  ]
  if not found:
    return ""
  folder = min(found)[1]
  if in_file:
    return f"; add the line: from {folder} import {name}"
  return f"; write {folder}.{name}.{rest}"


def _attribute(module: str, path: str, name: str, place: Place) -> Configurable:
  """Returns the configurable at `path` in an imported module."""
  holder = importlib.import_module(module)
  parts = path.split(".") if path else []
  for index, part in enumerate(parts):
    if not hasattr(holder, part):
      shown = ".".join([module, *parts[:index]])
      raise place.error(f"{shown} has no function or class {part!r}{near(part, _public(holder))}")
    holder = getattr(holder, part)
    if inspect.ismodule(holder):
      module, path = holder.__name__, ".".join(parts[index + 1 :])
  if not callable(holder) or inspect.ismodule(holder):
    kind = "module" if inspect.ismodule(holder) else type(holder).__name__
    raise place.error(f"{name!r} is a {kind}, not a function or class{near('', _public(holder))}")
  return Configurable(holder, module, path)


def _public(holder: Any) -> list[str]:
  """Lists the functions and classes that a module or class defines itself."""
  owner = holder.__name__ if inspect.ismodule(holder) else getattr(holder, "__module__", None)
  return (
    [
      name
      for name, value in vars(holder).items()
      if not name.startswith("_")
      and callable(value)
      and getattr(value, "__module__", None) == owner
    ]
    if hasattr(holder, "__dict__")
    else []
  )
