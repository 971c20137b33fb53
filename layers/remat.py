"""What the backward pass keeps of a block's forward pass, and what it computes again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from kernels import checkpoint_names

PRODUCT = "product"
_MIXERS = (checkpoint_names.RECURRENCE, checkpoint_names.ATTENTION)
_COSTLY = (PRODUCT, *_MIXERS)
_policies = jax.checkpoint_policies


class Policy(NamedTuple):
  """A remat policy.

  Attributes:
    saves: what `jax.checkpoint` keeps; None asks for no checkpoint at all.
    operations: products of a training step, with those that the backward pass computes again, in
      multiples of the step without; an estimate.
    offloads: whether what is kept goes to the host's memory.
  """

  saves: Callable[..., Any] | None
  operations: float
  offloads: bool = False


def _in_host_memory(*names: str) -> Callable[..., Any]:
  return _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=list(names),
    offload_src="device",
    offload_dst="pinned_host",
  )


POLICIES: dict[str, Policy] = {
  # All that automatic differentiation asks for.
  "none": Policy(None, 1.0),
  # Each block's input, the products with weights, and what recurrence and attention give: norms,
  # gates and the convolution are computed again.
  "save_dots": Policy(_policies.save_only_these_names(*_COSTLY), 1.03),
  # Each block's input and what recurrence and attention give.
  "save_mixer_outputs": Policy(_policies.save_only_these_names(*_MIXERS), 1.25),
  # Each block's input.
  "full": Policy(_policies.nothing_saveable, 1.33),
  # As "save_dots", but kept in the host's memory.
  "offload": Policy(_in_host_memory(*_COSTLY), 1.03, offloads=True),
  # As "save_mixer_outputs", but kept in the host's memory.
  "offload_mixer_outputs": Policy(_in_host_memory(*_MIXERS), 1.25, offloads=True),
}
# What earlier versions called them.
OLD_NAMES = {"products": "save_dots", "mixers": "save_mixer_outputs"}


def product(y: jax.Array) -> jax.Array:
  """Names the product with a weight matrix, after its sum over shards."""
  return checkpoint_name(y, PRODUCT)


def policy(name: str) -> Callable[..., Any] | None:
  """A policy for `jax.checkpoint`; None asks for no checkpoint at all.

  Raises:
    ValueError: there is no such policy.
  """
  if name in OLD_NAMES:
    warnings.warn(
      f"remat policy {name!r} is called {OLD_NAMES[name]!r} now; the old name still works",
      FutureWarning,
      stacklevel=2,
    )
    name = OLD_NAMES[name]
  if name not in POLICIES:
    raise ValueError(f"remat policy {name!r} is unknown: use one of {list(POLICIES)}.")
  return POLICIES[name].saves
