"""Finds the models of `gin/models/`, and builds small ones for the contract."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

from config import config
from config import source as gin_source
from config.place import GIN_ROOT, ConfigError
from config.source import Source
from models.language_model import LanguageModel

FOLDER = GIN_ROOT / "models"
# Before the model's own files, and after them.
_DEFAULTS, _SIZE = "kernels/auto.gin", "contract.gin"
_WIDTHS = "WIDTH", "RNN_WIDTH", "HEADS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
  """The model of an experiment, without data or training."""

  model: LanguageModel


def names() -> list[str]:
  """Lists the models of the zoo: the files of `gin/models/` that set MODEL."""
  return sorted(
    file.stem for file in FOLDER.glob("*.gin") if sets_model(gin_source.read_file(file))
  )


def file_of(name: str) -> str:
  """Returns the gin file of a model: a path as it is, or the file of a model of the zoo."""
  return name if name.endswith(".gin") else f"models/{name}.gin"


def build(
  paths: Sequence[str | os.PathLike], arguments: Iterable[str] = (), widened: int = 1
) -> tuple[LanguageModel, dict[str, str]]:
  """Builds the model of gin files at the size of `gin/contract.gin`.

  Args:
    paths: a model's file, or all files of a run; later ones win.
    arguments: bindings from the command line, which replace those of the small size.
    widened: factor of the widths and of the number of heads, which stay as wide.

  Returns:
    the model, and the macros in force that set its size.

  Raises:
    ConfigError: see `config.config.load`; or the files do not set MODEL.
  """
  own = sum(map(gin_source.read_file, paths), Source())
  given = gin_source.read_arguments(arguments)
  if not sets_model(own + given):
    shown = ", ".join(map(str, paths))
    raise ConfigError(
      f"{shown} does not set MODEL. Add MODEL = @your_module.your_function(), as in "
      "gin/models/hawk.gin."
    )
  size = gin_source.read_file(_SIZE)
  source = gin_source.read_file(_DEFAULTS) + own + size + given
  configuration = config.resolve(source, Listing, str(paths[0]))
  if widened != 1:
    scaled = (f"{name} = {_value(configuration, name) * widened}" for name in _WIDTHS)
    source += gin_source.read_text("\n".join(scaled), f"{widened} times as wide")
    configuration = config.resolve(source, Listing, str(paths[0]))
  sizes = {item.selector for item in size.statements if not item.parameter}
  macros = {name: repr(_value(configuration, name)) for name in sorted(sizes)}
  return configuration.build().model, macros


def _value(configuration: config.Config, name: str) -> Any:
  """Returns the value of a macro, which may be that of another: `RNN_WIDTH = %WIDTH`."""
  value = configuration.macros[name].value
  while isinstance(value, gin_source.Macro):
    value = configuration.macros[value.name].value
  return value


def sets_model(source: Source) -> bool:
  """Whether a source sets MODEL itself."""
  return any(item.selector == "MODEL" and not item.parameter for item in source.statements)
