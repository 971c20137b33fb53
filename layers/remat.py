"""What the backward pass keeps of a block's forward pass, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from kernels import checkpoint_names

PRODUCT = "product"
_COSTLY = (PRODUCT, checkpoint_names.RECURRENCE, checkpoint_names.ATTENTION)
_policies = jax.checkpoint_policies

POLICIES: dict[str, Callable[..., Any] | None] = {
  # All that automatic differentiation asks for.
  "none": None,
  # Each block's input, the products with weights, and what recurrence and attention give: norms,
  # gates and the convolution are computed again.
  "products": _policies.save_only_these_names(*_COSTLY),
  # Each block's input and what recurrence and attention give.
  "mixers": _policies.save_only_these_names(
    checkpoint_names.RECURRENCE, checkpoint_names.ATTENTION
  ),
  # Each block's input.
  "full": _policies.nothing_saveable,
  # As "products", but kept in the host's memory.
  "offload": _policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=list(_COSTLY),
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


def product(y: jax.Array) -> jax.Array:
  """Names the product with a weight matrix, after its sum over shards."""
  return checkpoint_name(y, PRODUCT)


def policy(name: str) -> Callable[..., Any] | None:
  """A policy for `jax.checkpoint`; None asks for no checkpoint at all.

  Raises:
    ValueError: there is no such policy.
  """
  if name not in POLICIES:
    raise ValueError(f"remat policy {name!r} is unknown: use one of {list(POLICIES)}.")
  return POLICIES[name]
