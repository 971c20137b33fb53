"""Needles and chains of variables in long texts, as RULER defines them.

Hsieh et al. 2024 (arXiv 2404.06654, section 3, appendix B, and the authors' generators and task
file). The sentences are not theirs, so figures compare models with each other, not with theirs.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from base.ranges import Count, CountFromZero, Share
from data import word_lists
from data.corpora import CorpusError
from data.haystacks import Haystack, Noise
from data.long_text import Found, LongTextTask, Written

# Needles lie at different ones of so many depths, evenly from 0 to 1.
_DEPTHS = 40
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOISE = Noise()
Kind = Literal["words", "numbers", "uuids"]
_ONE = {"words": "word", "numbers": "number", "uuids": "code"}
_MANY = {"words": "words", "numbers": "numbers", "uuids": "codes"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(LongTextTask):
  """Needles in a haystack: name the secrets of some keys.

  A needle is a sentence with a key and a secret. There are `keys` keys with `values` secrets each,
  and the last question asks for all secrets of `queries` of them. Numbers have 7 digits, words are
  an adjective and a noun, codes are UUIDs of version 4.

  RULER's eight tasks: single 1 (noise, numbers), 2 (text, numbers) and 3 (text, codes); multi-key 1
  (text, 4 keys), 2 (distractors, numbers) and 3 (distractors, codes for codes); multi-value (text,
  4 values); multi-query (text, 4 queries).

  Attributes:
    haystack: what the needles lie in.
    distractors: the haystack consists of needles with other keys.
    key, value: kind of the keys and of the secrets.
    keys, values, queries: number of keys, of secrets of a key, and of keys that are asked.
    depth: share of the haystack before the secret that is asked; None draws it.
  """

  haystack: Haystack = _NOISE
  distractors: bool = False
  key: Kind = "words"
  value: Kind = "numbers"
  keys: Count = 1
  values: Count = 1
  queries: Count = 1
  depth: Share | None = None

  name = "needles"
  room = 128

  def __post_init__(self):
    super().__post_init__()
    needles = max(self.keys, self.queries) * self.values
    if needles > _DEPTHS:
      raise CorpusError(
        f"keys={self.keys}, values={self.values} and queries={self.queries} make {needles} "
        f"needles: there can be {_DEPTHS}, at different depths."
      )
    if self.depth is not None and self.values * self.queries > 1:
      raise CorpusError(
        f"depth={self.depth} with values={self.values} and queries={self.queries}: only one secret "
        "can have a depth of its own."
      )

  def describe(self) -> dict[str, Any]:
    """Returns the name and all fields."""
    return _described(self, super().describe())

  def write(self, rng: np.random.Generator, units: int) -> Written:
    """Writes an example; see `LongTextTask.write`."""
    count = max(self.keys, self.queries)
    keys = _different(self.key, rng, count)
    secrets = _different(self.value, rng, count * self.values)
    asked = rng.choice(count, self.queries, replace=False).tolist()
    depths = rng.permutation(_DEPTHS)[: len(secrets)] / (_DEPTHS - 1)
    if self.depth is not None:
      depths[asked[0]] = self.depth
    needles = [self._needle(keys[n // self.values], secret) for n, secret in enumerate(secrets)]
    if self.distractors:
      others = [key for key in _different(self.key, rng, units + count) if key not in keys]
      hay = [
        self._needle(key, secret)
        for key, secret in zip(others[:units], _secrets(self.value, rng, units), strict=True)
      ]
      between = "\n"
    else:
      hay, between = self.haystack.units(rng, units), self.haystack.between
    begin = (
      f"The text below hides some secret {_MANY[self.value]}. Keep them in mind: a question about "
      "them follows.\n"
    )
    context, places = inserted(hay, needles, depths, between)
    many = self.queries * self.values > 1
    names = _listed([keys[n] for n in asked])
    what = f"secret {_MANY[self.value] if many else _ONE[self.value]} of {names}"
    prompt = (
      f"{begin}{context}\nQuestion: which {'are' if many else 'is'} the {what}?\n"
      f"Answer: the {what} {'are' if many else 'is'}"
    )
    told = [n for key in asked for n in range(key * self.values, (key + 1) * self.values)]
    found = [
      # The blank before a secret belongs to it: most tokenizers join them.
      Found(secrets[n], len(begin) + places[n] + needles[n].rindex(" "))
      for n in told
    ]
    return Written(prompt, " " + ", ".join(secrets[n] for n in told), tuple(found))

  def _needle(self, key: str, secret: str) -> str:
    return f"A secret {_ONE[self.value]} of {key} is {secret}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variables(LongTextTask):
  """Variable tracking: name all variables that have a value, directly or through others.

  A chain gives a variable a value of 5 digits, the next variable that of the first, and so on.
  Statements of a chain come in their order, those of several chains between each other. The
  question is about the first chain. Variables have 5 letters. RULER's task has one chain of 4 hops
  in noise, and one example of 3 letters before.

  Attributes:
    haystack: what the statements lie in.
    chains: number of chains.
    hops: statements of a chain after its first.
    shots: examples before, with three units of noise.
  """

  haystack: Haystack = _NOISE
  chains: Count = 1
  hops: CountFromZero = 4
  shots: CountFromZero = 1

  name = "variables"
  room = 30

  def describe(self) -> dict[str, Any]:
    """Returns the name and all fields."""
    return _described(self, super().describe())

  def write(self, rng: np.random.Generator, units: int) -> Written:
    """Writes an example; see `LongTextTask.write`."""
    before = ""
    for _ in range(self.shots):
      shot = self._written(rng, _NOISE, 3, letters=3)
      before += shot.prompt + shot.answer + "\n\n"
    own = self._written(rng, self.haystack, units, letters=5)
    found = tuple(Found(one.text, one.place + len(before)) for one in own.references)
    return Written(before + own.prompt, own.answer, found)

  def _written(
    self, rng: np.random.Generator, haystack: Haystack, units: int, letters: int
  ) -> Written:
    of_chain = self.hops + 1
    names = _variables(rng, of_chain * self.chains, letters)
    values = rng.choice(90_000, self.chains, replace=False) + 10_000
    # Which chain goes on, statement by statement.
    order = rng.permutation(np.repeat(np.arange(self.chains), of_chain)).tolist()
    depths = np.sort(rng.random(len(order)))
    statements, holds, done = [], [], [0] * self.chains
    for chain in order:
      own = names[chain * of_chain :][:of_chain]
      step = done[chain]
      given = str(values[chain]) if step == 0 else f"VAR {own[step - 1]}"
      statements.append(f"VAR {own[step]} = {given}.")
      holds.append((chain, own[step]))
      done[chain] += 1
    begin = "Some variables in the text below have the same value. Follow who is given what.\n"
    context, places = inserted(haystack.units(rng, units), statements, depths, haystack.between)
    prompt = (
      f"{begin}{context}\nQuestion: which variables have the value {values[0]}?\n"
      f"Answer: {of_chain} variables have the value {values[0]}:"
    )
    found = [
      Found(name, len(begin) + places[n] + len("VAR"))
      for n, (chain, name) in enumerate(holds)
      if chain == 0
    ]
    return Written(prompt, " " + " ".join(one.text for one in found), tuple(found))


def inserted(
  units: Sequence[str], others: Sequence[str], depths: np.ndarray, between: str
) -> tuple[str, list[int]]:
  """Inserts texts between the units of a haystack.

  Args:
    units: the haystack.
    others: the texts.
    depths: the share of the haystack's characters before each; the nearest gap of two units has it.
    between: what stands between two units.

  Returns:
    the text, and the index of the first character of each inserted one.
  """
  ends = np.cumsum([0, *(len(unit) + len(between) for unit in units)])
  wanted = np.asarray(depths) * ends[-1]
  after = np.clip(np.searchsorted(ends, wanted), 0, len(units))
  lower = np.maximum(after - 1, 0)
  gaps = np.where(wanted - ends[lower] < ends[after] - wanted, lower, after)
  pieces: list[str] = []
  places, done, size = [0] * len(others), 0, 0
  stops: list[int] = gaps.tolist()
  order: list[int] = np.lexsort((depths, gaps)).tolist()
  for n in order:
    pieces += units[done : stops[n]]
    size += sum(len(unit) + len(between) for unit in units[done : stops[n]])
    done = stops[n]
    places[n] = size
    pieces.append(others[n])
    size += len(others[n]) + len(between)
  return between.join([*pieces, *units[done:]]), places


def _described(task: Any, fields: dict[str, Any]) -> dict[str, Any]:
  """Replaces the haystack in a description by what determines its text."""
  return fields | {"haystack": task.haystack.describe()}


def _secrets(kind: Kind, rng: np.random.Generator, count: int) -> list[str]:
  """Draws keys or values; two may be equal."""
  if kind == "words":
    return [word for _ in range(count) for word in word_lists.words(rng, 1)]
  if kind == "numbers":
    return [str(number) for number in rng.integers(10**6, 10**7, count)]
  return [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(count)]


def _different(kind: Kind, rng: np.random.Generator, count: int) -> list[str]:
  """Draws different keys or values.

  Raises:
    CorpusError: there are not so many.
  """
  if kind == "words":
    return word_lists.words(rng, count)
  found: dict[str, None] = {}
  while len(found) < count:
    found |= dict.fromkeys(_secrets(kind, rng, count - len(found)))
  return list(found)


def _variables(rng: np.random.Generator, count: int, letters: int) -> list[str]:
  """Draws different names of capital letters."""
  found: dict[str, None] = {}
  while len(found) < count:
    found["".join(_LETTERS[n] for n in rng.integers(0, 26, letters))] = None
  return list(found)


def _listed(names: Sequence[str]) -> str:
  if len(names) == 1:
    return names[0]
  return f"{', '.join(names[:-1])} and {names[-1]}"
