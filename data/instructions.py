"""Prompts and responses from JSON lines, formatted by a template; the loss is on the responses."""

from __future__ import annotations

import dataclasses
import itertools
import json
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from base.file_paths import FilePath
from base.ranges import Share
from base.wording import type_in_words
from data import heldout
from data.file_corpora import LOOKED_AT, files_of
from data.files import CorpusError, describe_files, shortened
from data.heldout import check_fraction, in_split
from data.json_lines import json_lines, keys_of


class Piece(NamedTuple):
  """Part of an example: text, and whether the loss is on it."""

  text: str
  scored: bool


class Template(Protocol):
  """Formats an object of a JSON line as text."""

  def pieces(self, values: dict[str, Any], place: str) -> list[Piece]:
    """Returns the example's parts in order; `place` is the file and line, for errors."""
    ...

  def describe(self) -> dict[str, Any]:
    """Returns what determines the text, as JSON values."""
    ...


@dataclasses.dataclass(frozen=True)
class PromptResponse:
  """Two templates with fields of the JSON object in braces: `{question}`; write `{{` for a brace.

  Attributes:
    prompt: text without loss.
    response: text with loss; the end of the document follows it.
  """

  prompt: str = "{prompt}\n"
  response: str = "{response}"

  def __post_init__(self):
    for template in (self.prompt, self.response):
      try:
        parts = list(string.Formatter().parse(template))
      except ValueError as error:
        raise CorpusError(f"template {template!r}: {error}. Write {{{{ for a brace.") from None
      for _, name, kind, conversion in parts:
        if name is not None and (not name.isidentifier() or kind or conversion):
          raise CorpusError(
            f"template {template!r}: {{{name}}} must be the plain name of a field, such as "
            f"{{prompt}}."
          )

  def pieces(self, values: dict[str, Any], place: str) -> list[Piece]:
    """Returns prompt and response.

    Raises:
      CorpusError: the object lacks a field of the template, or the field is not a string.
    """
    return [
      Piece(_filled(self.prompt, values, place), False),
      Piece(_filled(self.response, values, place), True),
    ]

  def describe(self) -> dict[str, Any]:
    """Returns the two texts."""
    return {"prompt": self.prompt, "response": self.response}


def _filled(template: str, values: dict[str, Any], place: str) -> str:
  for _, name, _, _ in string.Formatter().parse(template):
    if name is None:
      continue
    if name not in values:
      raise CorpusError(
        f"{place}: no {name!r}, which the template {template!r} names; the line has "
        f"{keys_of(values) or 'nothing'}. Correct the template, or the line."
      )
    _check_string(values[name], repr(name), place)
  return template.format_map(values)


# What Gemma's instruction-tuned models were trained with; see its model card.
_START, _END = "<start_of_turn>", "<end_of_turn>\n"
_ROLES = {"user": "user", "assistant": "model", "model": "model"}


@dataclasses.dataclass(frozen=True)
class GemmaTurns:
  """A conversation in Gemma's turn format.

  The loss is on the model's turns, to their ends.

  The object has a list of messages, each with a role ('user', 'assistant' or 'model'; 'system'
  before the first user's) and a content.

  Attributes:
    messages: the object's key of the list.
  """

  messages: str = "messages"

  def pieces(self, values: dict[str, Any], place: str) -> list[Piece]:
    """Returns the turns, with the loss on the model's.

    Raises:
      CorpusError: there is no such list, a role is unknown, or the roles do not alternate.
    """
    if self.messages not in values:
      raise CorpusError(
        f"{place}: no {self.messages!r}, only {keys_of(values) or 'nothing'}. "
        "Set GemmaTurns.messages, or use PromptResponse."
      )
    turns = self._turns(values[self.messages], place)
    result = []
    for number, (role, content) in enumerate(turns):
      expected = ("user", "model")[number % 2]
      if role != expected:
        raise CorpusError(f"{place}: message {number + 1} is from {role}, not from {expected}.")
      result.append(Piece(f"{_START}{role}\n", False))
      result.append(Piece(f"{content}{_END}", role == "model"))
    if len(turns) < 2:
      raise CorpusError(f"{place}: {self.messages!r} has no message of the model.")
    return result

  def _turns(self, messages: Any, place: str) -> list[tuple[str, str]]:
    if not isinstance(messages, list):
      raise CorpusError(f"{place}: {self.messages!r} is {type_in_words(messages)}, not a list.")
    system, turns = "", []
    for number, message in enumerate(messages, start=1):
      named = f"message {number} of {self.messages!r}"
      if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise CorpusError(f"{place}: {named} is not an object with 'role' and 'content'.")
      role, content = message["role"], message["content"]
      _check_string(content, f"the content of {named}", place)
      if role == "system" and number == 1:
        system = content.strip() + "\n\n"
        continue
      if not isinstance(role, str) or role not in _ROLES:
        raise CorpusError(
          f"{place}: {named} has the unknown role {shortened(role)}. Roles are "
          f"{', '.join(_ROLES)}, and 'system' in the first message."
        )
      turns.append((_ROLES[role], system + content.strip()))
      system = ""
    return turns

  def describe(self) -> dict[str, Any]:
    """Returns the format and the key."""
    return {"turns": "gemma", "messages": self.messages}


def _check_string(value: Any, named: str, place: str) -> None:
  if not isinstance(value, str):
    found = type_in_words(value)
    raise CorpusError(f"{place}: {named} is {found}, not a string. Correct the line.")


def _key(pieces: list[Piece]) -> bytes:
  return json.dumps(pieces).encode()


def _holds_text(pieces: list[Piece]) -> bool:
  return any(piece.text.strip() for piece in pieces)


@dataclasses.dataclass(frozen=True)
class Instructions:
  """Files with one JSON object per line, an example each, formatted by a template.

  Attributes:
    files: a path or glob pattern (`**` crosses folders), or several.
    template: converts an object to text, and marks the text in the loss.
    heldout_fraction: expected share of the examples that is held out, decided by a hash of the
      text; where that leaves a split empty, the last examples.
  """

  files: FilePath | Sequence[FilePath]
  template: Template = dataclasses.field(default_factory=PromptResponse)
  heldout_fraction: Share = 0.05

  name = "instructions"
  has_loss_mask = True

  def __post_init__(self):
    check_fraction(self.heldout_fraction)

  def options(self) -> dict[str, Any]:
    """Returns the part of `describe` that does not depend on the files."""
    return {
      "corpus": self.name,
      "patterns": self.files if isinstance(self.files, str) else list(self.files),
      "template": self.template.describe(),
      "heldout_fraction": self.heldout_fraction,
    }

  def describe(self) -> dict[str, Any]:
    """Returns the patterns, the template and a digest of the files' names, sizes and times."""
    # Names rows apart from those of a version without an empty answer's end in the loss.
    made = {
      "files": describe_files(files_of(self)),
      "empty_answers": "their end is scored",
    }
    return self.options() | made | ({"heldout": "tail"} if self._holds_out_tail() else {})

  def examples(self, split: str) -> Iterator[list[Piece]]:
    """Yields the examples of 'train', 'heldout' or 'all' in the order of files and lines.

    Raises:
      CorpusError: a line is not a JSON object, or does not fit the template.
    """
    heldout.check_split(split)
    if split == "all" or not self._holds_out_tail():
      for pieces in self._undivided():
        if in_split(_key(pieces), split, self.heldout_fraction):
          yield pieces
      return
    sizes = [len(_key(pieces)) if _holds_text(pieces) else 0 for pieces in self._undivided()]
    if sizes:
      first = heldout.tail_of(sizes, self.heldout_fraction, cut=False, corpus=self).document
      for index, pieces in enumerate(self._undivided()):
        if (index >= first) == (split == "heldout"):
          yield pieces

  def check(self) -> None:
    """Checks the first lines, before a process is started that reads all.

    Raises:
      CorpusError: a line is not a JSON object, or does not fit the template.
    """
    for values, place in itertools.islice(json_lines(files_of(self)), LOOKED_AT):
      self.template.pieces(values, place)

  def _undivided(self) -> Iterator[list[Piece]]:
    for values, place in json_lines(files_of(self)):
      yield self.template.pieces(values, place)

  def _holds_out_tail(self) -> bool:
    identity = repr(self) + describe_files(files_of(self))
    return heldout.needs_tail(
      identity,
      self.heldout_fraction,
      lambda: (_key(pieces) for pieces in self._undivided() if _holds_text(pieces)),
    )

  def total_bytes(self) -> int:
    """Returns the size of the files."""
    return sum(path.stat().st_size for path in files_of(self))
