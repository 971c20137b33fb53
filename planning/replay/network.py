"""The time of a collective, by the algorithm that the compiler chose for it."""

from __future__ import annotations

import re

from planning.hardware.chip import Hardware
from planning.hlo.collectives import Collective

# Rings of a TPU's collective: `UniDirectionNDRingStrategy{colors:4 phases:2 cores:{4 4},{4 4}...`.
_STRATEGY = re.compile(r"([A-Z]\w*)\{colors:(\d+) phases:\d+ cores:\{([\d ]+)\}")


def seconds(collective: Collective, attributes: str, hardware: Hardware) -> float:
  """Estimates the time of one run of a collective.

  The bytes go through rings. XLA's text names them for sums on TPUs: each colour is a part of the
  array that takes its own ring, in one direction (`UniDirection...`) or in both. Gathers have no
  such text and take one ring in both directions, as does a GPU's collective.

  Args:
    collective: the collective, run once.
    attributes: text of its attributes.
    hardware: what it runs on.
  """
  pace = hardware.pace
  group = collective.group
  if collective.members == 1:
    return 0.0
  rate = hardware.link(group) * pace.link_share
  rounds = collective.members - 1
  if collective.kind == "collective-permute":
    # A TPU's `link` is the rate of both directions; a permutation uses one.
    rate, rounds = rate / (2 if hardware.platform == "tpu" else 1), 1
  elif collective.kind == "all-to-all" and hardware.platform == "tpu":
    # Around a ring of n in both directions, a byte takes n / 4 links on average.
    rate /= max(1.0, collective.members / 4)
  elif found := _STRATEGY.search(attributes):
    directions = int(found[2]) * (1 if found[1].startswith("UniDirection") else 2)
    rate *= directions / 2
    rounds = sum(int(size) - 1 for size in found[3].split())
  if collective.kind == "all-reduce":
    rounds *= 2
  return collective.sent / collective.times / rate + rounds * pace.hop
