"""Finds the arguments that change the parameters in an error message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from config import path_values
from config.checks import Key, Operative, Setting
from config.names import Reference, leaves
from config.source import OVERRIDE_PREFIX, Macro

_MOST = 3


def flags(
  message: str,
  parameters: Mapping[Key, Setting],
  macros: Mapping[str, Setting],
  operative: Mapping[Key, Operative],
  refusing: Sequence[str] = (),
) -> str:
  """Lists the arguments that set the parameters in a message, with present values; '' for none.

  Args:
    message: an error of a part of the configuration.
    parameters, macros, operative: the configuration.
    refusing: names of the functions and classes being called, innermost first. Any word of the
      message can be one of their parameters; parameters of others are recognised only as
      `name=value`, `module.name` or a name with `_`.
  """
  found: dict[str, str] = {}
  bound = {(key.configurable, key.parameter) for key in parameters}
  for holder, name in dict.fromkeys(
    re.findall(r"(?<![\w.-])(?:(?:\w+\.)*(\w+)\.)?([a-z]\w*)", message)
  ):
    is_named = "_" in name or f"{name}=" in message
    for key in [*parameters, *operative]:
      path, module = key.configurable.path, key.configurable.module.rpartition(".")[2]
      is_own = holder in (path, module) if holder else path in refusing
      if key.parameter != name or not (is_own or (is_named and key in parameters)):
        continue
      if key in parameters:
        setting = parameters[key]
      elif (key.configurable, name) not in bound and operative[key].is_default:
        setting = operative[key]
      else:
        continue
      flag, value, shown = _flag(key, setting, macros)
      # References to functions are not typed as arguments.
      if flag not in message and not any(isinstance(leaf, Reference) for leaf in leaves(value)):
        found.setdefault(flag, shown)
  if not found and OVERRIDE_PREFIX not in message:
    found = _of_named_paths(message, parameters, macros)
  return "; ".join(list(found.values())[:_MOST])


def _of_named_paths(
  message: str, parameters: Mapping[Key, Setting], macros: Mapping[str, Setting]
) -> dict[str, str]:
  """Returns the macros of paths that a message names, such as that of a missing tokenizer."""
  found: dict[str, str] = {}
  for key, setting in parameters.items():
    if isinstance(setting.value, Macro) and path_values.holds_paths(key.marked):
      flag, value, shown = _flag(key, setting, macros)
      if isinstance(value, str) and re.search(
        rf"(?<![\w/.-]){re.escape(value)}(?![\w/-])", message
      ):
        found.setdefault(flag, shown)
  return found


def _flag(
  key: Key, setting: Setting | Operative, macros: Mapping[str, Setting]
) -> tuple[str, Any, str]:
  """Returns the argument that replaces a binding, the present value, and a text with both."""
  scope = f"{key.scope}/" if key.scope else ""
  name = f"{scope}{key.configurable.module}.{key.configurable.path}.{key.parameter}"
  value: Any = setting.value
  place = setting.place
  while isinstance(value, Macro) and value.name in macros:
    name = value.name
    value, place = macros[name].value, macros[name].place
  flag = f"{OVERRIDE_PREFIX}{name}"
  if place is None:
    where = " by default"
  elif place.is_argument and ("." in name or place.source.startswith(f"{flag}=")):
    where = ""
  else:
    where = f", {place}"
  return flag, value, f"{flag}=... (now {value!r}{where})"
