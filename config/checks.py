"""Checks macros, types and unused bindings of a configuration after its names are resolved."""

from __future__ import annotations

import dataclasses
from typing import Any

from base.wording import near
from config import source as gin_source
from config import types as gin_types
from config.file_choices import files_that_set
from config.names import Configurable, Reference, leaves, replace
from config.place import GIN_ROOT, ConfigError, Place
from config.source import Macro

_REQUIRED = "gin.REQUIRED"
# Files that a message names.
_SHOWN_FILES = 4
Scope = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
  """A value and its place."""

  value: Any
  place: Place


@dataclasses.dataclass(frozen=True)
class Key:
  """The left side of a binding: `scope/configurable.parameter`."""

  scope: str
  configurable: Configurable
  parameter: str

  @property
  def name(self) -> str:
    """The left side in the form of gin files."""
    scope = f"{self.scope}/" if self.scope else ""
    return f"{scope}{self.configurable.name}.{self.parameter}"

  @property
  def full_name(self) -> str:
    """The left side with the full module path, which arguments can use whatever files import."""
    scope = f"{self.scope}/" if self.scope else ""
    return f"{scope}{self.configurable.module}.{self.configurable.path}.{self.parameter}"

  @property
  def marked(self) -> Any:
    """The parameter's annotation with its marks; see `config.types.BindableParameter`."""
    parameter = self.configurable.signature.parameters.get(self.parameter)
    return parameter.marked if parameter else Any


@dataclasses.dataclass(frozen=True)
class Operative:
  """A parameter in force: one of a call made by `Config.build`, with macros resolved."""

  value: Any
  place: Place | None

  @property
  def is_default(self) -> bool:
    """Whether no binding sets it."""
    return self.place is None


def _remedy(macro: str, macros: dict[str, Setting]) -> str:
  """Says what defines a missing macro, as the end of an error message."""
  files = files_that_set(macro)
  if not files:
    return near(macro, macros)
  shown = ", ".join(files[:_SHOWN_FILES]) + (" and others" if len(files) > _SHOWN_FILES else "")
  return f". Add a file that sets it ({shown}), or --gin.{macro}=..."


class Checks:
  """Checks of bindings with resolved names."""

  def __init__(
    self, macros: dict[str, Setting], parameters: dict[Key, Setting], mentioned: set[str]
  ):
    """Sets the final bindings, and the macros in any binding, including replaced ones."""
    self._macros = macros
    self._parameters = parameters
    self._mentioned = mentioned
    self._used_macros: set[str] = set()
    self._used_keys: set[Key] = set()

  def macros_exist(self) -> None:
    """Checks that each referenced macro is defined, and none refers to itself."""
    for setting in [*self._macros.values(), *self._parameters.values()]:
      for leaf in leaves(setting.value):
        if isinstance(leaf, Macro) and leaf.name not in self._macros and leaf.name != _REQUIRED:
          raise setting.place.error(
            f"no macro {leaf.name} is defined{_remedy(leaf.name, self._macros)}"
          )
    for name, setting in self._macros.items():
      self._expand(setting.value, setting.place, (name,))

  def _expand(self, value: Any, place: Place, within: tuple[str, ...] = ()) -> Any:
    """Replaces all macros in a value by their values."""

    def leaf(item: Any) -> Any:
      if not isinstance(item, Macro) or item.name == _REQUIRED:
        return item
      if item.name in within:
        raise place.error(f"the macro {item.name} refers to itself")
      return self._expand(self._macros[item.name].value, place, (*within, item.name))

    return replace(value, leaf)

  def shape(self, value: Any) -> Any:
    """Converts a value to the form that `gin_types.accepts` takes."""

    def leaf(item: Any) -> Any:
      if not isinstance(item, Reference):
        return item
      if not item.called:
        return gin_types.Function()
      return gin_types.Produced(item.configurable.signature.result)

    return replace(self._expand(value, Place("")), leaf)

  def annotation(self, key: Key) -> Any:
    """The annotation of the parameter a binding is for."""
    parameter = key.configurable.signature.parameters.get(key.parameter)
    return parameter.annotation if parameter else Any

  def types(self) -> None:
    """Checks each value against the type and range of its parameter's annotation."""
    for key, setting in self._parameters.items():
      annotation = self.annotation(key)
      shape = self.shape(setting.value)
      if any(leaf == Macro(_REQUIRED) for leaf in leaves(shape)):
        continue
      accepted = gin_types.accepts(annotation, shape)
      fault = gin_types.fault(key.marked, shape) if accepted else None
      if accepted and not fault:
        continue
      place, named, value = setting.place, key.name, setting.value
      while isinstance(value, Macro):
        named = f"{key.name}, set by %{value.name},"
        place, value = self._macros[value.name].place, self._macros[value.name].value
      if fault:
        raise place.error(f"{named} is {value!r}; it must be {fault}")
      wanted = gin_types.describe(annotation)
      advice = gin_types.advice(annotation, value)
      if isinstance(value, Reference):
        if not value.called:
          advice = f"; write {value!r}()"
        else:
          advice = f", but {value!r} returns {gin_types.describe(shape.result)}"
      elif not advice and isinstance(value, str):
        advice = _file_that_sets(value)
      raise place.error(f"{named} is {value!r}; it must be {wanted}{advice}")

  def reach(self, root: Configurable, source: str) -> dict[Key, Operative]:
    """Finds the parameters in force by following references from the root.

    As in gin, a reference with a scope is called only in that scope, one without in the caller's
    scope, and a macro's references in the scope of the macro's name.
    """
    operative: dict[Key, Operative] = {}
    done: set[tuple[Scope, Configurable]] = set()
    waiting: list[tuple[Scope, Configurable, Place, bool]] = [((), root, Place(source), True)]

    def follow(value: Any, scope: Scope, place: Place) -> None:
      for leaf in leaves(value):
        if isinstance(leaf, Reference):
          own = tuple(leaf.scope.split("/")) if leaf.scope else scope
          waiting.append((own, leaf.configurable, place, leaf.called))
        elif isinstance(leaf, Macro) and leaf.name != _REQUIRED:
          self._used_macros.add(leaf.name)
          follow(self._macros[leaf.name].value, tuple(leaf.name.split("/")), place)

    while waiting:
      scope, configurable, place, called = waiting.pop()
      if (scope, configurable) in done:
        continue
      done.add((scope, configurable))
      bound = self._bound(scope, configurable)
      for parameter, (key, setting) in bound.items():
        self._used_keys.add(key)
        follow(setting.value, scope, setting.place)
        value = self._expand(setting.value, setting.place)
        if any(leaf == Macro(_REQUIRED) for leaf in leaves(value)):
          raise self._must_be_given(key, setting)
        operative[Key(key.scope, configurable, parameter)] = Operative(value, setting.place)
      for name, parameter in configurable.signature.parameters.items():
        if name in bound:
          continue
        if not parameter.required:
          operative[Key("", configurable, name)] = Operative(parameter.default, None)
        elif called:
          wanted = gin_types.describe(parameter.annotation)
          raise place.error(
            f"{configurable.name} needs {name!r} ({wanted}), which is not set; "
            f"add {Key('', configurable, name).name} = ..."
          )
    return operative

  def _must_be_given(self, key: Key, setting: Setting) -> ConfigError:
    value, name = setting.value, key.name
    place = setting.place
    while isinstance(value, Macro) and value.name != _REQUIRED:
      place, name = self._macros[value.name].place, value.name
      value = self._macros[value.name].value
    return place.error(f"{name} is required; set it: --gin.{name}=...")

  def _bound(self, scope: Scope, configurable: Configurable) -> dict[str, tuple[Key, Setting]]:
    """The bindings that hold for a call in a scope: those of longer scopes win."""
    found: dict[str, tuple[Key, Setting]] = {}
    for end in range(len(scope) + 1):
      within = "/".join(scope[:end])
      for key, setting in self._parameters.items():
        if key.scope == within and key.configurable == configurable:
          found[key.parameter] = key, setting
    return found

  def without_effect(self, operative: dict[Key, Operative]) -> list[str]:
    """Returns warnings for unused bindings; raises for those that must be mistakes.

    Files of the gin folder are shared by different models, so their unused bindings are fine.
    """
    mentioned = gin_source.macros_mentioned() | self._mentioned
    unused = []
    for name, setting in self._macros.items():
      if name in self._used_macros:
        continue
      if name not in mentioned:
        raise setting.place.error(f"no binding uses the macro {name}{near(name, mentioned)}")
      unused.append((name, setting))
    configurables = {key.configurable for key in operative}
    for key, setting in self._parameters.items():
      if key not in self._used_keys:
        reason = "" if key.configurable in configurables else f"{key.configurable.name} is not used"
        unused.append((key.name + (f" ({reason})" if reason else ""), setting))
    for name, setting in unused:
      if setting.place.is_argument and not setting.place.shared:
        raise setting.place.error(f"no effect: nothing in this configuration uses {name}")
    return [
      f"{setting.place}: {name} has no effect here"
      for name, setting in unused
      if not setting.place.is_general
    ]


def _file_that_sets(name: str) -> str:
  """Suggests the gin file of this name: `--gin.OPTIMIZER=muon` means gin/optimizer/muon.gin."""
  files = sorted(file for file in GIN_ROOT.rglob("*.gin") if file.stem == name)
  if not files:
    return ""
  shown = " or ".join(f"{GIN_ROOT.name}/{file.relative_to(GIN_ROOT).as_posix()}" for file in files)
  return f"; to use it, add {shown} after the run file"
