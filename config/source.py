"""Parses gin files and command-line bindings into statements with their places.

Nothing is imported or looked up here: `config.names` resolves the names.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import math
import os
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from base import paths, small_files
from config import moved_names, near_files
from config.place import GIN_ROOT, ConfigError, Includes, Place
from gin import config_parser

OVERRIDE_PREFIX = "--gin."
# Scope of a macro that a file offers to other files: a later choice of a model must not overturn
# what the run file sets.
DEFAULT = "default"
# No hand-written configuration is deeper, and Python's stack is limited.
_MOST_INCLUDES, _DEEPEST_VALUE = 100, 50


@dataclasses.dataclass(frozen=True)
class Macro:
  """`%NAME` in a value."""

  name: str

  def __repr__(self) -> str:
    return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class NamedReference:
  """`@scope/name` or `@scope/name()` in a value, with an unresolved name."""

  scope: str
  name: str
  called: bool

  def __repr__(self) -> str:
    return f"@{self.scope}{'/' if self.scope else ''}{self.name}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Import:
  """An import such as `from a import b as c`, with name `c` and module `a.b`."""

  name: str
  module: str
  place: Place


@dataclasses.dataclass(frozen=True)
class Statement:
  """One binding: `scope/selector.parameter = value`; a macro has no parameter.

  Attributes:
    scope, selector, parameter: the parts of the left side.
    value: literals, `Macro` and `NamedReference`, possibly nested.
    place: the statement's place.
    imports: the imports of its file by name; None on the command line.
    text: the right side as typed, on the command line.
  """

  scope: str
  selector: str
  parameter: str
  value: Any
  place: Place
  imports: dict[str, Import] | None = None
  text: str | None = None

  @property
  def is_default(self) -> bool:
    """Whether it is `default/MACRO = value`, which holds if no file or argument sets the macro."""
    return self.scope == DEFAULT and not self.parameter and not self.place.is_argument


@dataclasses.dataclass
class Source:
  """The statements of files and arguments.

  Attributes:
    statements: all bindings in order; a later one replaces an earlier one with the same left side.
    imports: every import of every file.
    moved: old names in use, with the new names and their places.
  """

  statements: list[Statement] = dataclasses.field(default_factory=list)
  imports: list[Import] = dataclasses.field(default_factory=list)
  moved: list[tuple[str, str, Place]] = dataclasses.field(default_factory=list)

  def __add__(self, other: Source) -> Source:
    return Source(
      self.statements + other.statements, self.imports + other.imports, self.moved + other.moved
    )


class _Delegate(config_parser.ParserDelegate):
  """Keeps references as names; gin's own delegate imports their modules at once."""

  def __init__(self, translation: moved_names.Translation):
    self._translation = translation

  def configurable_reference(self, scoped_configurable_name, evaluate):
    scope, _, name = scoped_configurable_name.rpartition("/")
    return NamedReference(scope, self._translation.name(name), evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def read_file(path: str | os.PathLike) -> Source:
  """Reads a gin file and its includes.

  Args:
    path: a path from the working directory or from the `gin/` folder.

  Raises:
    ConfigError: a file is missing, includes itself, or does not parse.
  """
  return _read(find(str(path), None, None), ())


def read_text(text: str, name: str = "text") -> Source:
  """Reads gin text; errors call it `name`."""
  return _statements(text, paths.of(name), ())


def read_alone(text: str, name: str = "text", *, as_written: bool = False) -> Source:
  """Reads gin text that must not include files.

  Args:
    text: the text.
    name: its name in errors.
    as_written: keep old names instead of replacing them by the present ones.

  Raises:
    Includes: it includes a file.
    ConfigError: it does not parse.
  """
  for item in _parse(text, paths.of(name), moved_names.Translation(), {}):
    if isinstance(item, config_parser.IncludeStatement):
      raise Includes(f"{Place(name, item.location.line_num)} includes {item.filename[:120]!r}")
  return _statements(text, paths.of(name), (), moved_names.AsWritten() if as_written else None)


def read_arguments(arguments: Iterable[str], *, shared: bool = False) -> Source:
  """Reads command-line bindings such as `--gin.griffin.griffin.window=512` or `--gin.STEPS=100`.

  The right side is a gin value; anything else is a string without quotes.

  Args:
    arguments: the bindings.
    shared: whether they are for several configurations; see `Place`.

  Raises:
    ConfigError: an argument has another form.
  """
  source = Source()
  for argument in arguments:
    place, translation = Place(argument, shared=shared), moved_names.of_arguments()
    source.statements.append(_read_argument(place, translation))
    source.moved += [(old, new, place) for old, new in translation.found.items()]
  return source


def macros_mentioned(root: Path = GIN_ROOT) -> set[str]:
  """Lists the macros that files of the gin folder use."""
  return {
    name
    for path in root.rglob("*.gin")
    for name in re.findall(r"%([A-Za-z_][\w/.]*)", path.read_text(encoding="utf-8"))
  }


def _read_argument(place: Place, translation: moved_names.Translation) -> Statement:
  left, equals, right = place.source.removeprefix(OVERRIDE_PREFIX).partition("=")
  form = re.fullmatch(r"(?:(?P<scope>[\w/]+)/)?(?:(?P<selector>[\w.]+)\.)?(?P<last>\w+)", left)
  if not equals or not form:
    raise place.error(
      f"a binding has the form {OVERRIDE_PREFIX}MACRO=value or "
      f"{OVERRIDE_PREFIX}module.function.parameter=value"
    )
  if not _is_utf8(place.source):
    raise place.error("the argument is not UTF-8")
  scope, selector, last = form["scope"] or "", form["selector"], form["last"]
  if not right.strip():
    raise place.error(f"no value: write {OVERRIDE_PREFIX}{left}=..., or leave it out")
  value = _parse_value(right, place, translation)
  if selector is None:
    return Statement(scope, last, "", value, place, text=right)
  selector, last, new = translation.binding(selector, last, value)
  text = right if new == value else new
  return Statement(scope, selector, last, new, place, text=text)


def _parse_value(text: str, place: Place, translation: moved_names.Translation) -> Any:
  try:
    parser = config_parser.ConfigParser(text, _Delegate(translation))
    value = parser.parse_value()
    token = cast(tokenize.TokenInfo, parser.current_token)  # There is one after any value.
    if token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
      raise SyntaxError("more than one value")
  except _UNREADABLE as error:
    # A bare word is a string, but text with gin's syntax that does not parse is a mistake.
    if not text or text[0] in "@%([{\"'":
      raise place.error(f"not a gin value: {text!r} ({_reason(error)})") from None
    return text
  check_value(value, place)
  return value


def check_value(value: Any, place: Place) -> None:
  """Raises ConfigError for a value that gin cannot write: not finite, too long, nested too deep."""
  level = [value]
  for _ in range(_DEEPEST_VALUE):
    for item in level:
      if isinstance(item, float) and not math.isfinite(item):
        raise place.error(f"the number {item} is not finite")
      if isinstance(item, int) and not -(2**63) <= item < 2**64:
        raise place.error(f"a number has {item.bit_length()} bits; at most 64 are allowed")
    nested = [item for item in level if isinstance(item, list | tuple | dict)]
    level = [x for item in nested for x in (item.values() if isinstance(item, dict) else item)]
    if not level:
      return
  raise place.error(f"a value is nested more than {_DEEPEST_VALUE} deep")


def text_of(path: Path) -> str:
  """Reads the text of a gin file.

  Raises:
    ConfigError: it cannot be read, or is not UTF-8.
  """
  try:
    contents = small_files.read(path)
    if contents is None:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return io.TextIOWrapper(io.BytesIO(contents), encoding="utf-8-sig").read()
  except small_files.NotReadable as error:
    raise ConfigError(f"cannot read {error}") from None
  except UnicodeDecodeError as error:
    line = error.object.count(b"\n", 0, error.start) + 1
    raise Place(str(path), line).error(
      f"the file is not UTF-8 ({error.reason}); save it as UTF-8"
    ) from None
  except OSError as error:
    raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _read(path: Path, including: tuple[Path, ...]) -> Source:
  """Reads one file's statements, including those of its includes."""
  try:
    return _statements(text_of(path), path, including)
  except ConfigError as error:
    shown = paths.shown(path)
    if path.suffix == ".gin" or including or not str(error).startswith(f"{shown}:"):
      raise
    line, _, fault = str(error).removeprefix(f"{shown}:").partition(": ")
    advice = near_files.to_train_on(path, shown, "is not UTF-8" not in fault)
    raise ConfigError(
      f"{shown} is no gin file: line {line}: {fault.rstrip('.')}. Gin files end in .gin{advice}."
    ) from None


def _statements(
  text: str,
  path: Path,
  including: tuple[Path, ...],
  translation: moved_names.Translation | None = None,
) -> Source:
  source = Source()
  imports: dict[str, Import] = {}
  including = (*including, path)
  translation = translation or moved_names.Translation()
  lines: dict[str, int] = {}
  for item in _parse(text, path, translation, lines):
    place = Place(str(path), item.location.line_num)
    if isinstance(item, config_parser.IncludeStatement):
      found = find(item.filename, path, place)
      if found in including:
        chain = " -> ".join(str(Place(str(file), 1))[:-2] for file in (*including, found))
        raise place.error(f"the file includes itself: {chain}")
      if len(including) >= _MOST_INCLUDES:
        raise place.error(f"a chain of more than {_MOST_INCLUDES} includes")
      source += _read(found, including)
    elif isinstance(item, config_parser.ImportStatement):
      # The switch for dynamic registration, which is always on here.
      if not item.module.startswith("__gin__."):
        name = item.bound_name()
        module = item.module if item.is_from or item.alias else item.module.partition(".")[0]
        imports[name] = Import(name, module, place)
        if module != item.module:
          # `import a.b` binds a, but b must be imported as well.
          imports[item.module] = Import(item.module, item.module, place)
    elif isinstance(item, config_parser.BindingStatement):
      check_value(item.value, place)
      source.statements.append(
        Statement(item.scope, item.selector, item.arg_name, item.value, place, imports)
      )
  source.imports += imports.values()
  source.moved += [
    (old, new, Place(str(path), lines[old])) for old, new in translation.found.items()
  ]
  return source


def _parse(
  text: str, path: Path, translation: moved_names.Translation, lines: dict[str, int]
) -> list[Any]:
  """Parses one file into statements in order, with the present names of what has moved.

  Args:
    text, path: the file.
    translation: translates old names.
    lines: gets the line of the first statement with each old name.
  """
  found = []
  try:
    for item in config_parser.ConfigParser(text, _Delegate(translation)):
      if isinstance(item, config_parser.ImportStatement):
        item = item._replace(module=translation.module(item.module, item.bound_name()))
      elif isinstance(item, config_parser.BindingStatement):
        left = item.selector, item.arg_name
        selector, parameter, value = translation.binding(*left, item.value)
        item = item._replace(selector=selector, arg_name=parameter, value=value)
      found.append(item)
      for old in translation.found:
        lines.setdefault(old, item.location.line_num)
    return found
  except SyntaxError as error:
    line = error.lineno or 1
    shown = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
    raise Place(str(path), line).error(f"cannot read {shown!r}: {_reason(error)}") from None
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise Place(str(path), line).error(f"cannot read: {message}") from None
  except _UNREADABLE as error:
    line = found[-1].location.line_num if found else 1
    where = "after this line" if found else "from here"
    raise Place(str(path), line).error(
      f"cannot read what comes {where}: {_reason(error)}"
    ) from None


# Errors of gin's parser and Python's tokenizer for invalid text.
_UNREADABLE = (SyntaxError, tokenize.TokenError, ValueError, TypeError, RecursionError, MemoryError)


def _is_utf8(text: str) -> bool:
  try:
    text.encode("utf-8")
  except (
    UnicodeEncodeError
  ):  # a byte of the command line that is not UTF-8 is decoded as a lone surrogate
    return False
  return True


def _reason(error: Exception) -> str:
  """Formats the parser's message as one line."""
  if isinstance(error, RecursionError | MemoryError):
    return f"a value is nested more than {_DEEPEST_VALUE} deep"
  message = error.msg if isinstance(error, SyntaxError) else str(error.args[0])
  if word := re.search(r"Failed to parse token '(.*)'", message):
    return f"{word[1]} is not a valid value: quote strings, and write % before macros"
  return " ".join(message.split())


def find(name: str, including: Path | None, place: Place | None) -> Path:
  """Finds the file that an include or an argument names."""
  folders = [GIN_ROOT, including.parent] if including else [Path(), GIN_ROOT.parent, GIN_ROOT]
  message = f"there is no gin file {name!r}"
  try:
    for folder in folders:
      if name.strip() and (folder / name).is_file():
        return (folder / name).resolve()
    if name.strip() and any((folder / name).is_dir() for folder in folders):
      message = f"{name!r} is a folder, not a gin file"
    elif including is None and re.match(r"[A-Z][A-Z0-9_]*=", name):
      message += f"; did you mean {OVERRIDE_PREFIX}{name}?"
    elif name.strip():
      message += near_files.suggestion(name, folders)
  except (OSError, ValueError) as error:  # A name too long, or with a NUL.
    message += f" ({getattr(error, 'strerror', None) or error})"
  raise place.error(message) if place else ConfigError(message)
