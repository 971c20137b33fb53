"""Loads configurations from gin files, checks them before anything is built, writes them as gin.

Files are resolved to one list of bindings with their places. gin itself parses only the resolved
text, which run directories keep.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gin
from base.wording import one_line
from config import flags as gin_flags
from config import path_values, types
from config import source as gin_source
from config.checks import Checks, Key, Operative, Setting
from config.names import (
  Configurable,
  Names,
  Reference,
  check_parameter,
  leaves,
  raised_at,
  replace,
)
from config.place import ConfigError, Place
from config.source import Macro, Source


@dataclasses.dataclass(frozen=True)
class Config:
  """A checked configuration.

  Attributes:
    root: the class or function that is built from it.
    macros: by name.
    parameters: values by the left side of the binding.
    operative: the parameters in force, defaults included; paths are absolute everywhere.
    warnings: one line for each binding that has no effect.
    modules: all modules that the files import, including those imported for their side effects.
  """

  root: Configurable
  macros: dict[str, Setting]
  parameters: dict[Key, Setting]
  operative: dict[Key, Operative]
  warnings: tuple[str, ...]
  modules: tuple[str, ...]

  def text(self) -> str:
    """The configuration as one gin file, with the place each value came from."""
    return _Writer(self).bindings()

  def operative_text(self) -> str:
    """The values in force as a gin file, macros resolved and defaults included."""
    return _Writer(self).operative()

  def default_names(self) -> set[str]:
    """The left sides in `operative_text` of parameters without a binding."""
    writer = _Writer(self)
    return {writer.left(key) for key, item in self.operative.items() if item.is_default}

  def path_names(self) -> set[str]:
    """The left sides in `operative_text` of values that are paths."""
    writer = _Writer(self)
    return {writer.left(key) for key in self.operative if path_values.holds_paths(key.marked)}

  def immaterial_names(self) -> set[str]:
    """The left sides in `operative_text` of values that cannot change a result."""
    writer = _Writer(self)
    return {writer.left(key) for key in self.operative if path_values.is_immaterial(key.marked)}

  def build(self) -> Any:
    """Calls the root with its parameters, and the functions they refer to with theirs.

    gin keeps the bindings until the next build: functions passed uncalled (`@f`) read theirs when
    they are called.

    Raises:
      ConfigError: a function or class rejects its values.
    """
    gin.clear_config()
    gin.parse_config(self.text())
    gin.finalize()
    global _built
    _built = self
    try:
      return gin.get_configurable(self.root.target)()
    except (Exception, SystemExit) as error:  # Parts may be user code.
      # gin appends the chain of calls to the message.
      message, *calls = str(error).split("\n  In call to configurable ")
      names = [match[1] for call in calls if (match := re.match(r"'(\w+)'", call))]
      message = " ".join(message.split())
      if not isinstance(error, ValueError):
        message = f"{type(error).__name__}: {message} ({raised_at(error)})"
      raise ConfigError(message + self._where(message, names)) from error

  def _where(self, message: str, calls: Sequence[str] = ()) -> str:
    """Names the called function and the arguments to change, as the end of an error message."""
    flags = gin_flags.flags(message, self.parameters, self.macros, self.operative, calls)
    parts = [f"in {calls[0]}" if calls else "", f"to change: {flags}" if flags else ""]
    shown = "; ".join(filter(None, parts))
    return f" ({shown})" if shown else ""


_built: Config | None = None


def explained(message: str, parameters: Sequence[str] = ()) -> str:
  """Adds the arguments to change to a message about the last built configuration.

  Args:
    message: an error; the arguments of the parameters that it names are added.
    parameters: further parameters that the error is about.
  """
  if _built is None:
    return message
  where = _built._where(" ".join([message, *(f"{name}=" for name in parameters)]))
  if gin_source.OVERRIDE_PREFIX in where:
    # The argument says more than the parameter's name.
    message = re.sub(r" \(\w+\.[A-Z]\w+\.\w+\)(?=[.:])", "", message)
  return message + where


def names_argument(message: str) -> bool:
  """Whether a message already says which argument to give."""
  return gin_source.OVERRIDE_PREFIX in message


def load(path: str | os.PathLike, root: Any, arguments: Iterable[str] = ()) -> Config:
  """Reads a gin file and command-line bindings, and checks them without building anything.

  Args:
    path: the file, from the working directory or from the gin folder.
    root: the class or function that the configuration is for.
    arguments: bindings `--gin.name=value`; they replace those of the file.

  Raises:
    ConfigError: a file, macro, module, function or parameter does not exist, a value has the wrong
      type, a required parameter is not set, or a macro is unused.
  """
  source = gin_source.read_file(path) + gin_source.read_arguments(arguments)
  return resolve(source, root, str(path))


def resolve(source: Source, root: Any, name: str, folder: Path | None = None) -> Config:
  """Resolves the names of a source and checks it; see `load`.

  Args:
    source: the statements.
    root: the class or function that the configuration is for.
    name: name of the source in errors.
    folder: base of relative paths; None is the working directory.
  """
  names = Names(source.imports)
  statements = source.statements
  macros: dict[str, Setting] = {}
  defaults: dict[str, Setting] = {}
  parameters: dict[Key, Setting] = {}
  texts: dict[Key, str] = {}
  for item in statements:
    setting = Setting(names.references(item.value, item), item.place)
    if item.is_default:
      defaults[item.selector] = setting
      continue
    if not item.parameter:
      macros["/".join(filter(None, (item.scope, item.selector)))] = setting
      continue
    key = Key(item.scope, names.configurable(item.selector, item), item.parameter)
    check_parameter(key.configurable, key.parameter, item.place)
    parameters[key] = setting
    texts.pop(key, None)
    if item.text is not None:
      texts[key] = item.text
  macros = defaults | macros
  mentioned = {
    leaf.name for item in statements for leaf in leaves(item.value) if isinstance(leaf, Macro)
  }
  checks = Checks(macros, parameters, mentioned)
  checks.macros_exist()
  for key, text in texts.items():
    # 'seed' would be a string and 1 an int; where only a string fits, 1 is one as well.
    annotation = checks.annotation(key)
    if not types.accepts(annotation, checks.shape(parameters[key].value)) and (
      types.accepts(annotation, text)
    ):
      parameters[key] = Setting(text, parameters[key].place)
  checks.types()
  folder = folder or Path.cwd()
  _make_paths_absolute(macros, parameters, folder)
  start = Configurable(root, root.__module__, root.__qualname__)
  operative = checks.reach(start, name)
  if bound_paths := _default_paths(operative, folder):
    # Absolute paths are bound, so that the configuration means the same files wherever it is read.
    parameters |= {key: Setting(path, Place("default")) for key, path in bound_paths.items()}
    operative = checks.reach(start, name)
  warnings = tuple(checks.without_effect(operative))
  _tell_moved(source)
  modules = tuple(sorted({item.module for item in source.imports}))
  return Config(start, macros, parameters, operative, warnings, modules)


_moved_names_told = False


def _tell_moved(source: Source) -> None:
  """Warns once of old names in the user's files; copies in run directories may have them."""
  global _moved_names_told
  written = [(old, new, place) for old, new, place in source.moved if not place.is_general]
  if written and not _moved_names_told:
    _moved_names_told = True
    old, new, place = written[0]
    more = f" (and {len(written) - 1} more)" if len(written) > 1 else ""
    print(
      f"warning: {place}: {old} was renamed to {new}{more}; the old name still works",
      file=sys.stderr,
    )


def _make_paths_absolute(
  macros: dict[str, Setting], parameters: dict[Key, Setting], folder: Path
) -> None:
  """Makes relative paths absolute in bindings, and in the macros that they use."""

  def replace_macro(macro: Macro, annotation: Any) -> None:
    setting = macros.get(macro.name)
    if setting is not None:
      macros[macro.name] = made_absolute(annotation, setting)

  def made_absolute(annotation: Any, setting: Setting) -> Setting:
    try:
      value = path_values.absolute(annotation, setting.value, folder, replace_macro)
    except ValueError as error:
      raise setting.place.error(str(error)) from None
    return Setting(value, setting.place)

  for key, setting in parameters.items():
    parameters[key] = made_absolute(key.marked, setting)


def _default_paths(operative: dict[Key, Operative], folder: Path) -> dict[Key, Any]:
  """Makes default paths absolute and returns them as bindings."""
  found = {}
  for key, item in operative.items():
    if item.is_default:
      value = path_values.absolute(key.marked, item.value, folder, lambda *_: None)
      if value != item.value:
        found[key] = value
  return found


class _Writer:
  """Writes a configuration as gin, with a unique name for each module."""

  def __init__(self, config: Config):
    self._config = config
    configurables = {config.root, *(key.configurable for key in config.parameters)}
    configurables |= {key.configurable for key in config.operative}
    for setting in [*config.macros.values(), *config.parameters.values()]:
      for leaf in leaves(setting.value):
        if isinstance(leaf, Reference):
          configurables.add(leaf.configurable)
    self._names: dict[str, str] = {}
    modules = {configurable.module for configurable in configurables} | set(config.modules)
    for module in sorted(modules):
      package, _, name = module.rpartition(".")
      taken = name in self._names.values() or name == "gin"
      self._names[module] = f"{package.replace('.', '_')}_{name}" if taken else name

  def bindings(self) -> str:
    """Formats all macros and bindings, each with its place."""
    macros = [
      (name, self._text(setting.value), str(setting.place))
      for name, setting in sorted(self._config.macros.items())
    ]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for key, setting in self._config.parameters.items():
      line = self.left(key), self._text(setting.value), str(setting.place)
      groups.setdefault(key.configurable.name, []).append(line)
    return self._file([macros, *(groups[name] for name in sorted(groups))])

  def operative(self) -> str:
    """Writes the values in force; defaults that gin cannot express become comments."""
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for key, item in self._config.operative.items():
      left = self.left(key)
      if item.is_default and not _is_literal(item.value):
        left = f"# {left}"
      text = one_line(self._text(item.value))
      line = left, text, "default" if item.is_default else str(item.place)
      groups.setdefault(key.configurable.name, []).append(line)
    return self._file([sorted(groups[name]) for name in sorted(groups)])

  def _file(self, groups: Sequence[Sequence[tuple[str, str, str]]]) -> str:
    lines = ["from __gin__ import dynamic_registration"]
    for module, name in self._names.items():
      package, _, last = module.rpartition(".")
      line = f"from {package} import {last}" if package else f"import {last}"
      lines.append(line if name == last else f"{line} as {name}")
    for group in filter(None, groups):
      lines.append("")
      lines += [f"{left} = {right}  # {place}" for left, right, place in group]
    return "\n".join(lines) + "\n"

  def left(self, key: Key) -> str:
    """The left side of a binding."""
    scope = f"{key.scope}/" if key.scope else ""
    return f"{scope}{self._name(key.configurable)}.{key.parameter}"

  def _name(self, configurable: Configurable) -> str:
    return f"{self._names[configurable.module]}.{configurable.path}"

  def _text(self, value: Any) -> str:
    def leaf(item: Any) -> Any:
      return (
        _Verbatim(item.text(self._name(item.configurable))) if isinstance(item, Reference) else item
      )

    return repr(replace(value, leaf))


class _Verbatim(str):
  """Text with itself as its `repr`."""

  def __repr__(self) -> str:
    return str(self)


def _is_literal(value: Any) -> bool:
  literals = (bool, int, float, str, bytes, type(None), Macro, Reference)
  return all(type(leaf) in literals for leaf in leaves(value))
