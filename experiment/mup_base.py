"""The configuration of the narrow model of muP, from which `models.maximal_update` scales."""

from __future__ import annotations

from collections.abc import Sequence

from config import source as gin_source
from config.config import Config, ConfigError
from config.source import Source

_NAME = "MUP_BASE"


def source(configuration: Config, macros: Sequence[str]) -> Source:
  """Returns the statements of the base: those of a configuration, with other macros.

  Args:
    configuration: of the model that is scaled.
    macros: statements such as 'WIDTH = 256'.

  Raises:
    ConfigError: one is no macro.
  """
  found = gin_source.read_text(configuration.text(), "the run's configuration")
  for macro in macros:
    found += _read(macro)
  # The base is as it is: no size is chosen for it, and it has no base of its own.
  return found + gin_source.read_arguments(
    [f"experiment.experiment.Experiment.{name}=None" for name in ("parameters", "mup_base")]
  )


def require_effect(base: Config, macros: Sequence[str]) -> None:
  """Raises ConfigError if the base's configuration uses none of the macros."""
  names = {item.selector for macro in macros for item in _read(macro).statements}
  unused = [told for told in base.warnings if told.startswith(f"{_NAME}:")]
  if len(unused) == len(names):
    raise ConfigError(
      f"{_NAME} = {list(macros)} has no effect: nothing in this configuration uses these macros. "
      f"Name those that set the model's widths, or set {_NAME} = None."
    )


def _read(macro: str) -> Source:
  found = gin_source.read_text(macro, _NAME)
  if not found.statements or any(item.parameter for item in found.statements):
    raise ConfigError(f"{_NAME}: {macro!r} is no macro such as 'WIDTH = 256'.")
  return found
