"""Sizes of mixers with heads that no mesh cuts."""

from __future__ import annotations

from base.wording import plural
from parallel import shards
from parallel.mesh import FLAGS


def check_split(heads: int, kind: str) -> None:
  """Raises ValueError unless the mesh gives every device whole heads of this kind of mixer."""
  if heads % shards.count("heads"):
    raise ValueError(
      f"{plural(heads, 'head')} of {kind} cannot be split over {shards.count('heads')} devices: a "
      f"head stays whole. Set {FLAGS['model']} to a divisor of {heads}, or train with --gin.HEADS "
      f"a multiple of {shards.count('heads')}."
    )


def channels_of(width: int, heads: int) -> int:
  """Channels of a head, width / heads; raises ValueError where they do not divide the width."""
  if width % heads:
    raise ValueError(
      f"heads={heads} does not divide width={width}: choose a number of heads that does."
    )
  return width // heads
