"""Tells what gin files describe: a run, a comparison, or no whole of either."""

from __future__ import annotations

from config.place import ConfigError
from config.source import Source

RUN, COMPARISON = "Experiment", "Comparison"
# What each is called, a file of it, its command, and the option of that for a folder.
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
  """What a source binds parameters of: `RUN`, `COMPARISON`, both or neither."""
  bound = {item.selector.rpartition(".")[2] for item in source.statements if item.parameter}
  return bound & _WORDS.keys()


def require(source: Source, wanted: str, name: str) -> None:
  """Compares what was read with what a command is for.

  Args:
    source: what was read.
    wanted: `RUN` or `COMPARISON`.
    name: of the file that it was read from.

  Raises:
    ConfigError: it describes the other kind, or neither; the message has the command or the file to
      take.
  """
  found = kinds(source)
  if wanted in found:
    return
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
      f"{name} describes no whole {what}. Include it in a file that describes a comparison, as "
      f"{file} does."
    )
  raise ConfigError(
    f"{name} describes no whole {what}. Give it after a file that does, such as {file}."
  )
