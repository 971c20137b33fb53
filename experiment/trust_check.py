"""Refuses run directories with code outside this project, unless the user trusts its modules.

A gin file can import any module and call any function in it. Files on the command line are the
user's own; a run directory may come from someone else, and opening it must not run their code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base import paths, small_files
from base.errors import UserError
from config import file_choices
from config import source as gin_source
from config.names import leaves
from config.place import GIN_ROOT, Place
from config.source import Macro, NamedReference, Source, Statement
from experiment.trust import ALL, Trust

# All functions of these modules are safe: they build models and compute. Of other modules only the
# functions that files of gin/ use are allowed.
_PURE = ("models", "layers")
# A TFDS name may also have a namespace, with code that is downloaded, and builder arguments.
_TFDS_NAME = re.compile(r"[A-Za-z_]\w*(/[\w+\-.]+)?(:[\d*]+(\.[\d*]+){2})?", re.ASCII)
# Classes of training/trackers.py, and their parameters that name a server, an account or a file.
_TRACKERS = ("WandB", "MLflow", "Trackio")
_DESTINATIONS = ("entity", "uri", "space_id")
_STATE_FILE = Path("griffin-jax") / "trusted_runs"


def check(
  file: Path,
  trust: Trust,
  *,
  text: str | None = None,
  makes_rows: bool = False,
  trains: bool = False,
  comparison: bool = False,
) -> None:
  """Checks the configuration of a run before anything in it is imported.

  Args:
    file: the configuration in a run directory.
    trust: the trusted modules.
    text: the text that is loaded; None reads the file.
    makes_rows: whether text may be tokenized, which imports modules of registered tasks.
    trains: whether a run is trained, which sends its metrics and samples to trackers.
    comparison: whether it is a comparison, which parses some strings as gin.

  Raises:
    UserError: it uses code that is neither this project's nor trusted, or includes a file.
    ConfigError: it cannot be read.
  """
  if trust.covers(ALL) or is_recorded(file, text):
    return
  try:
    source = _read(file, text)
  except gin_source.Includes as error:
    raise UserError(
      f"{error}: a run's configuration must be one file, since other files may run unknown code. "
      f"If you trust this run, give --trust={ALL}, or its configuration as a gin file."
    ) from None
  for problem in _problems(source, trust, makes_rows):
    raise UserError(problem)
  for problem in _problems_of_trackers(source) if trains else ():
    raise UserError(problem)
  for problem in _problems_of_choices(source, trust) if comparison else ():
    raise UserError(problem)


def record(file: Path, text: str | None = None) -> None:
  """Records that the user made a run's configuration, so that it is trusted from now on.

  A record that cannot be written is a warning.

  Args:
    file: the configuration in a run directory.
    text: the text that was written there; None reads the file.
  """
  try:
    digest = _digest(file, text)
    records = _records()
    if digest in _recorded(records):
      return
    records.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = json.dumps({"sha256": digest, "run": str(file.absolute().parent)}) + "\n"
    handle = os.open(records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as notes:
      notes.write(line.encode())
  except gin_source.ConfigError:
    return
  except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home directory.
    reason = getattr(error, "strerror", None) or error
    print(
      f"warning: cannot record that you made {paths.shown(file.parent)} ({reason}); if it uses "
      "modules outside this project, opening it will need --trust. Set HOME or XDG_STATE_HOME to a "
      "writable folder.",
      file=sys.stderr,
      flush=True,
    )


def _records() -> Path:
  state = os.environ.get("XDG_STATE_HOME", "")
  folder = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
  return folder / _STATE_FILE


def _recorded(records: Path) -> set[str]:
  found = set()
  for line in (small_files.read(records) or b"").split(b"\n"):
    try:
      found.add(json.loads(line)["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
      continue
  return found


def is_recorded(file: Path, text: str | None = None) -> bool:
  """Whether the user made this configuration (the file's, or a text) on this machine."""
  try:
    return _digest(file, text) in _recorded(_records())
  except (OSError, RuntimeError, ValueError):
    return False


def _read(file: Path, text: str | None = None, *, as_written: bool = False) -> Source:
  """Parses a configuration as the loader does, without includes."""
  text = gin_source.text_of(file) if text is None else text
  return gin_source.read_alone(text, str(file), as_written=as_written)


def _digest(file: Path, text: str | None = None) -> str:
  """Returns the sha256 of a configuration's imports and bindings, without comments.

  As they are written: a version that renames something still knows what the user made before.
  """
  source = _read(file, text, as_written=True)
  said = [(item.name, item.module) for item in source.imports]
  said += [(i.scope, i.selector, i.parameter, repr(i.value)) for i in source.statements]
  return hashlib.sha256(repr(said).encode()).hexdigest()


def _problems(source: Source, trust: Trust, makes_rows: bool) -> Iterator[str]:
  """Yields the problems of a configuration."""
  for item in source.imports:
    if not (_is_ours(item.module) or trust.covers(item.module)):
      yield _refusal(item.place, item.module, item.module)
  for statement in source.statements:
    names = [leaf.name for leaf in leaves(statement.value) if isinstance(leaf, NamedReference)]
    if statement.parameter:
      names.append(statement.selector)
    for name in names:
      yield from _problem_of(name, statement, trust)
    if makes_rows:
      yield from _problems_of_rows(statement, source, trust)


def _problems_of_rows(statement: Statement, source: Source, trust: Trust) -> Iterator[str]:
  """Yields problems of a binding if rows are made: seqio and TFDS may import modules in it."""
  if statement.parameter not in ("module", "data_dir", "dataset"):
    return
  for value in _values(statement.value, source):
    shown = f"{statement.parameter} = {str(value)[:120]!r}"
    if statement.parameter == "module":
      if isinstance(value, str) and not trust.covers(value):
        yield _refusal(statement.place, value, f"a task that {value} registers")
      elif not isinstance(value, str | None):
        yield (
          f"{statement.place}: {shown} must be a string. If you trust this run, give --trust={ALL}."
        )
    elif statement.parameter == "data_dir":
      if value is not None:
        yield (
          f"{statement.place} reads a TFDS folder, {shown}: its features.json may import unknown "
          f"code. If you trust it, give --trust={ALL}."
        )
    elif not (isinstance(value, str) and _TFDS_NAME.fullmatch(value)):
      yield (
        f"{statement.place} names a TFDS data set, {shown}, with more than name, configuration "
        f"and version: it may load unknown code. If you trust it, give --trust={ALL}."
      )


def _problems_of_trackers(source: Source) -> Iterator[str]:
  """Yields bindings by which a run is sent to a place that its maker chose."""
  for statement in source.statements:
    tracker = statement.selector.rpartition(".")[2]
    if tracker in _TRACKERS and statement.parameter in _DESTINATIONS:
      for value in _values(statement.value, source):
        if value is not None:
          yield (
            f"{statement.place} sends metrics, samples and configuration to a place that this run "
            f"names, {tracker}.{statement.parameter} = {str(value)[:120]!r}. If you trust it, give "
            f"--trust={ALL}."
          )


def _problem_of(name: str, statement: Statement, trust: Trust) -> Iterator[str]:
  """Yields problems of a name; names that do not exist are found later."""
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
    f"{place} uses {name[:120]!r}, which {why}: opening this run would run unknown code. "
    f"If you trust it, give --trust={module[:80]} (or --trust={ALL})."
  )


def _may_be_named(module: str, name: str) -> bool:
  """Whether a name of our module is a class, or a function for configurations.

  A name that does not exist is allowed: resolving it raises the error.
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
  """Whether a trusted module's name is defined there, in another trusted module, or in ours."""
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
  """Whether a module or package of ours is for configurations."""
  first, _, rest = module.partition(".")
  return (
    (first in _PURE and _is_file(module) and "_" not in {part[:1] for part in rest.split(".")})
    or module in _shipped()[0]
    or any(known.startswith(f"{module}.") for known in _shipped()[0])
  )


def _is_file(module: str) -> bool:
  """Whether this project has a file for a module, or a folder for a package."""
  path = GIN_ROOT.parent.joinpath(*module.split("."))
  return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def _shipped() -> tuple[frozenset[str], frozenset[str]]:
  """Returns the modules that files of gin/ import, and the names that they use."""
  modules: set[str] = set()
  names: set[str] = set()
  for file in GIN_ROOT.rglob("*.gin"):
    text = file.read_text(encoding="utf-8")
    found = re.findall(r"^from ([\w.]+) import (\w+)", text, re.MULTILINE)
    modules |= {f"{package}.{name}" for package, name in found if package != "__gin__"}
    names |= set(re.findall(r"@(?:\w+/)*(\w+\.\w+)", text))
  return frozenset(modules), frozenset(names)


def _values(value: Any, source: Source) -> Iterator[Any]:
  """Lists the possible literals and references of a value, including those of macros."""
  waiting, seen = [value], set()
  while waiting:
    for leaf in leaves(waiting.pop()):
      if not isinstance(leaf, Macro):
        yield leaf
      elif (name := leaf.name.rpartition("/")[2]) not in seen:
        seen.add(name)
        waiting += [s.value for s in source.statements if not s.parameter and s.selector == name]


def _problems_of_choices(source: Source, trust: Trust) -> Iterator[str]:
  """Yields problems of a comparison's strings, which it may parse as gin files or as gin.

  Every string is checked: which ones are choices is known only after building.
  """
  folders = [Path()]
  for statement in source.statements:
    if statement.parameter == "folder":
      for value in _values(statement.value, source):
        if not isinstance(value, str):
          yield (
            f"{statement.place}: folder must be a string. If you trust this comparison, give "
            f"--trust={ALL}."
          )
          return
        folders.append(Path(os.path.expanduser(value)).absolute())
  chosen = Source()
  for statement in source.statements:
    for text in leaves(statement.value):
      if not isinstance(text, str):
        continue
      for folder in folders if text.endswith(".gin") else ():
        try:
          file = file_choices.file_of(text, folder)
        except gin_source.ConfigError:
          continue  # The comparison cannot find it either.
        if not file.is_relative_to(GIN_ROOT):
          yield (
            f"{statement.place} reads {text[:120]!r}, a gin file outside this project: it may run "
            f"unknown code. If you trust it, give --trust={ALL}, or the comparison's gin files."
          )
          return
        chosen += gin_source.read_file(file)
      if not text.endswith(".gin"):
        yield from _problems_of_text(text, statement.place)
        with contextlib.suppress(gin_source.ConfigError):
          chosen += gin_source.read_alone(text, str(statement.place))
  yield from _problems(chosen, trust, makes_rows=True)


def _problems_of_text(text: str, place: Place) -> Iterator[str]:
  """Yields problems of a string that a comparison may parse as gin: it may only bind macros."""
  if not re.search(r"@|\b(import|include)\b", text):
    return
  try:
    found = gin_source.read_alone(text, str(place)).imports
  except gin_source.ConfigError:
    found = True
  if found:
    yield (
      f"{place} has the string {text[:120]!r}, which a comparison may parse as gin: it may run "
      f"unknown code. If you trust it, give --trust={ALL}, or the comparison's gin files."
    )
