"""Words for tasks, none of which is a part of another: alone, or an adjective and a noun."""

from __future__ import annotations

import functools

import numpy as np

from data.corpora import CorpusError

_ADJECTIVES = """
able amber ancient autumn basic blunt bold brave brief bright broad bronze calm careful cheap chilly
clean clever cloudy coarse cold copper crisp curious daily damp dark dear deep dense distant double
dusty eager early easy empty equal exact faint famous fancy fast fierce flat fluffy foggy formal
fresh frosty gentle giant golden grand grave green happy hasty heavy hidden hollow honest humble
icy idle inner jolly keen kind large late lazy level light little lively local lonely loud lucky
lunar mellow merry mild misty modern narrow native neat noble nimble noisy odd olive open outer pale
patient plain polite prime proud purple quick quiet rapid rare ready rigid ripe robust rough round
royal rusty salty scarlet shallow sharp shiny silent silver simple sleepy slim smooth solar solid
sour spare steady steep stern sticky strange sturdy subtle sunny sweet swift tall tame tender thick
timid tiny total tough urban usual vague vast velvet vivid warm weary wet wide wild windy winter
wise wooden yellow young
"""
_NOUNS = """
acorn anchor apple arrow badge bakery banjo barrel basin basket beacon bench berry bicycle blanket
bottle branch breeze bridge brush bucket button cabin cactus camera candle canoe canvas carpet
castle cedar cellar chapel cherry chimney circus clock cloud comet compass cotton cradle crayon
cricket crystal curtain cushion daisy desert diamond dolphin drawer drum eagle elbow engine envelope
falcon feather fence ferry fiddle field flute forest fossil fountain garden garlic ginger glacier
glove goblet guitar hammer harbor hazel helmet hill honey horizon island ivory jacket jigsaw jungle
kettle kitten ladder lagoon lantern lemon lentil library lizard magnet mango maple marble market
meadow melon mirror mitten monkey mosaic mountain museum napkin nectar needle nickel notebook
nutmeg oasis ocean onion orchard otter oven oyster paddle palace panther parcel pebble pelican
pencil pepper piano pigeon pillow planet plaza pocket pond prairie pulley pumpkin puzzle quarry
quilt rabbit raft ribbon river rocket saddle sailor salmon sandal satchel school seashell shovel
signal spoon squirrel stable statue sunset tablet teapot temple thimble thunder ticket tiger timber
tomato tractor trumpet tulip tunnel turtle umbrella valley vessel village violin volcano walnut
wagon window wolf yarn zebra
"""
_FIRST, _SECOND = _ADJECTIVES.split(), _NOUNS.split()
COUNT = len(_FIRST) * len(_SECOND)


@functools.cache
def _alone() -> list[str]:
  """The words that are no part of another one."""
  all_words = [*_FIRST, *_SECOND]
  return [word for word in all_words if sum(word in other for other in all_words) == 1]


def single_words(rng: np.random.Generator, count: int) -> list[str]:
  """Draws different words, such as 'lantern'; of more than 300, such as 'quiet-lantern'.

  Raises:
    CorpusError: there are not so many.
  """
  known = _alone()
  if count > len(known):
    return words(rng, count)
  return [known[n] for n in rng.permutation(len(known))[:count].tolist()]


def words(rng: np.random.Generator, count: int) -> list[str]:
  """Draws different words, such as 'quiet-lantern'.

  Raises:
    CorpusError: there are not so many.
  """
  if count > COUNT:
    raise CorpusError(f"a task wants {count:,} different words; there are {COUNT:,}.")
  # The first of a longer draw are those of a shorter one.
  numbers = rng.permutation(COUNT)[:count]
  return [f"{_FIRST[n // len(_SECOND)]}-{_SECOND[n % len(_SECOND)]}" for n in numbers.tolist()]
