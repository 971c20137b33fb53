"""Tells whether gin files describe a run, a comparison, or a part of one."""

from __future__ import annotations

from config.place import ConfigError
from config.source import Source

RUN, COMPARISON = "Experiment", "Comparison"
# For each: its name, an example file, its command, and that command's option for a folder.
_WORDS = {
  RUN: ("run", "gin/runs/griffin_quickstart.gin", "launch.train", "--run_dir=runs/NAME"),
  COMPARISON: (
    "comparison",
    "gin/compare/quick.gin",
    "launch.compare",
    "--output=comparisons/NAME",
  ),
}


def kinds(source: Source) -> set[str]:
  """Returns the roots with bindings in a source: `RUN`, `COMPARISON`, both or neither."""
  bound = {item.selector.rpartition(".")[2] for item in source.statements if item.parameter}
  return bound & _WORDS.keys()


def binds_data(source: Source) -> bool:
  """Whether a source sets an experiment's training data, as every complete run does."""
  return any(
    item.selector.rpartition(".")[2] == RUN and item.parameter == "train_data"
    for item in source.statements
  )


def require(source: Source, wanted: str, name: str) -> None:
  """Checks that a source describes what a command needs.

  Args:
    source: the source.
    wanted: `RUN` or `COMPARISON`.
    name: the source's file.

  Raises:
    ConfigError: it describes the other kind, or neither; the message names the command or file to
      use.
  """
  found = kinds(source)
  if wanted in found:
    if wanted != RUN or binds_data(source):
      return
    found.discard(RUN)
  what, file, _, _ = _WORDS[wanted]
  if found:
    other, _, command, option = _WORDS[found.pop()]
    raise ConfigError(
      f"{name} describes a {other}, not a {what}. Type: python -m {command} {name} {option}"
    )
  is_part = any(item.module == "comparison.comparison" for item in source.imports)
  if wanted == COMPARISON or is_part:
    file = _WORDS[COMPARISON][1]
    raise ConfigError(
      f"{name} is not a complete {what}. Include it in a file that describes a comparison, as "
      f"{file} does."
    )
  raise ConfigError(
    f"{name} is not a complete {what}. Put it after a file that is, such as {file}; "
    "launch.train also starts from another run, with --init_from=RUN."
  )
