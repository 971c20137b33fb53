"""What the configuration of a run directory may name: code of this project, and of modules that the user trusts.

A gin file can import any module and call anything in it. Files on the command line are the user's own; a run
directory may be somebody else's, and opening it must not run their code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import gin_source
from launch.command import UserError
from launch.gin_names import leaves
from launch.gin_source import GIN_ROOT, Macro, NamedReference, Place, Source, Statement
from launch.trust import ALL, Trust

# Their functions build models and compute: all may be named. Of other modules it is those that files of gin/ use.
_PURE = ("models", "layers")
_STATE_FILE = Path("griffin-jax") / "trusted_runs"


def check(file: Path, trust: Trust, *, makes_rows: bool = False, comparison: bool = False) -> None:
  """Looks at the configuration of a run before anything that it names is imported.

  Args:
    file: the configuration in a run directory.
    trust: the modules that the user named.
    makes_rows: whether text may be tokenized, for which modules of registered tasks are imported.
    comparison: whether it is of a comparison, which reads texts in it as gin.

  Raises:
    UserError: it names code that is neither this project's nor trusted.
    ConfigError: it cannot be read.
  """
  if trust.covers(ALL) or is_recorded(file):
    return
  source = gin_source.read_file(file)
  for problem in _problems(source, trust, makes_rows, comparison):
    raise UserError(problem)


def record(file: Path) -> None:
  """Notes that the user of this machine made the configuration of a run: it is trusted from now on.

  Where the note cannot be written, the run's modules must be named.
  """
  try:
    digest = _digest(file.read_text(encoding="utf-8"))
    records = _records()
    if digest in _recorded(records):
      return
    records.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = json.dumps({"sha256": digest, "run": str(file.absolute().parent)}) + "\n"
    handle = os.open(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as notes:
      notes.write(line.encode())
  except (OSError, UnicodeError, gin_source.ConfigError):
    return


def _records() -> Path:
  state = os.environ.get("XDG_STATE_HOME", "")
  folder = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
  return folder / _STATE_FILE


def _recorded(records: Path) -> set[str]:
  found = set()
  with records.open("rb") if records.is_file() else open(os.devnull, "rb") as lines:
    for line in lines:
      try:
        found.add(json.loads(line)["sha256"])
      except (ValueError, KeyError, TypeError):
        continue
  return found


def is_recorded(file: Path) -> bool:
  """Whether the user made this configuration on this machine."""
  try:
    return _digest(file.read_text(encoding="utf-8")) in _recorded(_records())
  except (OSError, RuntimeError, UnicodeError, gin_source.ConfigError):
    return False


def _digest(text: str) -> str:
  """The sha256 of all that a configuration imports and binds; comments, which hold places, aside."""
  source = gin_source.read_text(text)
  said = [(item.name, item.module) for item in source.imports]
  said += [(i.scope, i.selector, i.parameter, repr(i.value)) for i in source.statements]
  return hashlib.sha256(repr(said).encode()).hexdigest()


def _problems(source: Source, trust: Trust, makes_rows: bool, comparison: bool) -> Iterator[str]:
  """What is wrong with a configuration."""
  for item in source.imports:
    if not (_is_ours(item.module) or trust.covers(item.module)):
      yield _refusal(item.place, item.module, item.module)
  for statement in source.statements:
    names = [leaf.name for leaf in leaves(statement.value) if isinstance(leaf, NamedReference)]
    if statement.parameter:
      names.append(statement.selector)
    for name in names:
      yield from _problem_of(name, statement, trust)
    if makes_rows and statement.parameter == "module":
      for module in _strings(statement.value, source):
        if not trust.covers(module):
          yield _refusal(statement.place, module, f"a task that {module} registers")
    for text in leaves(statement.value) if comparison else ():
      if isinstance(text, str):
        yield from _problems_of_choice(text, statement.place, trust)


def _problem_of(name: str, statement: Statement, trust: Trust) -> Iterator[str]:
  """What is wrong with one name; what does not exist is found later."""
  first, _, rest = name.partition(".")
  bound = (statement.imports or {}).get(first)
  if bound is None:
    return
  module, parts = bound.module, rest.split(".") if rest else []
  while len(parts) > 1 and _is_ours(f"{module}.{parts[0]}"):
    module, parts = f"{module}.{parts[0]}", parts[1:]
  if not (_is_ours(module) or trust.covers(module)):
    yield _refusal(statement.place, module, name)
  elif any(part.startswith("_") for part in parts):
    yield _refusal(statement.place, module, name, "is private")
  elif not trust.covers(module) and (len(parts) != 1 or not _may_be_named(module, parts[0])):
    yield _refusal(statement.place, module, name, "is not for configurations")
  elif trust.covers(module) and not _is_defined_by_trusted(module, parts, trust):
    yield _refusal(statement.place, module, name, f"is not defined in {module}")


def _refusal(place: Place, module: str, name: str, why: str = "") -> str:
  why = why or "is not part of this project"
  return (
    f"{place} names {name[:120]!r}, which {why}: opening this run would run code that may be anybody's. "
    f"If you know it, give --trust={module[:80]} (or --trust={ALL})."
  )


def _may_be_named(module: str, name: str) -> bool:
  """Whether a name of one of our modules is a class, or a function that is for configurations.

  A name that does not exist is no danger: what resolves it says so.
  """
  try:
    target = vars(importlib.import_module(module)).get(name)
  except ImportError:
    return True
  if target is None:
    return True
  if getattr(target, "__module__", None) != module:
    return False
  if inspect.isclass(target):
    return True
  pure = module.partition(".")[0] in _PURE
  return callable(target) and (pure or f"{module.rpartition('.')[2]}.{name}" in _shipped()[1])


def _is_defined_by_trusted(module: str, parts: list[str], trust: Trust) -> bool:
  """Whether what a trusted module has under a name is its own, or of another trusted one or ours."""
  holder: Any = importlib.import_module(module)
  for part in parts:
    holder = getattr(holder, part, None)
    if holder is None:
      return True
    home = holder.__name__ if inspect.ismodule(holder) else getattr(holder, "__module__", None)
    if not isinstance(home, str) or not (trust.covers(home) or _is_ours(home)):
      return False
  return True


def _is_ours(module: str) -> bool:
  """Whether a module, or the package that it is, is for configurations."""
  first, _, rest = module.partition(".")
  return (
    (first in _PURE and _is_file(module) and "_" not in {part[:1] for part in rest.split(".")})
    or module in _shipped()[0]
    or any(known.startswith(f"{module}.") for known in _shipped()[0])
  )


def _is_file(module: str) -> bool:
  """Whether there is a file of this project for a module, or a folder for a package."""
  path = GIN_ROOT.parent.joinpath(*module.split("."))
  return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def _shipped() -> tuple[frozenset[str], frozenset[str]]:
  """The modules that files of gin/ import, and the names that they refer to."""
  modules: set[str] = set()
  names: set[str] = set()
  for file in GIN_ROOT.rglob("*.gin"):
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"^from ([\w.]+) import (\w+)", text, re.MULTILINE)
    modules |= {f"{package}.{name}" for package, name in found if package != "__gin__"}
    names |= set(re.findall(r"@(?:\w+/)*(\w+\.\w+)", text))
  return frozenset(modules), frozenset(names)


def _strings(value: Any, source: Source, depth: int = 0) -> Iterator[str]:
  """The texts that a value can be, those of macros included."""
  for leaf in leaves(value):
    if isinstance(leaf, str):
      yield leaf
    elif isinstance(leaf, Macro) and depth < 10:
      for statement in source.statements:
        if not statement.parameter and statement.selector == leaf.name.rpartition("/")[2]:
          yield from _strings(statement.value, source, depth + 1)


def _problems_of_choice(text: str, place: Place, trust: Trust) -> Iterator[str]:
  """What is wrong with a text if a comparison reads it: as a gin file, or as gin."""
  if text.endswith(".gin"):
    folders = (Path(), GIN_ROOT.parent, GIN_ROOT)
    found = next((folder / text for folder in folders if (folder / text).is_file()), None)
    if found is not None and not found.resolve().is_relative_to(GIN_ROOT):
      yield (
        f"{place} reads {text[:120]!r}, a gin file that is not of this project: it may run code that is "
        f"anybody's. If you know it, give --trust={ALL}, or the gin files of the comparison."
      )
  elif re.search(r"@|\b(import|include)\b", text):
    try:
      inner = gin_source.read_text(text, str(place))
    except (gin_source.ConfigError, OSError, ValueError):
      return
    yield from _problems(inner, trust, makes_rows=True, comparison=False)
