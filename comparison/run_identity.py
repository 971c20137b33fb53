"""What of a run's configuration can change the results of a comparison."""

from __future__ import annotations

from typing import Any

from comparison import results
from config import path_values
from config.config import Config
from config.moved_names import first_form


def identity(config: Config, folder: str) -> str:
  """Returns an id of the bindings of a configuration that can change a result.

  Defaults and places do not count.

  Args:
    config: configuration of a run of the comparison.
    folder: the comparison's folder, which may be moved with all paths in it.
  """
  return results.digest(bound(config, folder))


# Earlier gin files did not bind these defaults: the run is the same.
_BOUND_LATER = {"optimizer.AdamW.weight_decay": "0.1"}


def bound(config: Config, folder: str) -> dict[str, str]:
  """Returns the bindings of a configuration that can change a result, as text; see `identity`."""
  found = {
    first_form(key.name): first_form(
      repr(_relative(item.value, folder) if path_values.holds_paths(key.marked) else item.value)
    )
    for key, item in config.operative.items()
    if not item.is_default and not path_values.is_immaterial(key.marked)
  }
  return {name: text for name, text in found.items() if _BOUND_LATER.get(name) != text}


def _relative(value: Any, folder: str) -> Any:
  """Makes a path, or several, relative to a folder that contains them."""
  if isinstance(value, list | tuple):
    return type(value)(_relative(item, folder) for item in value)
  return value.removeprefix(f"{folder}/") if isinstance(value, str) else value
