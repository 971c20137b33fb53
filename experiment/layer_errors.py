"""Explains errors of layers and kernels by the arguments that a user can type."""

from __future__ import annotations

import re

from config import config

# By the operation that a kernel's message begins with: the models' parameters that choose kernels.
_PARAMETERS = {
  "rg_lru": ("recurrence",),
  "linear_scan": ("recurrence",),
  "attention": ("attention",),
  "gated_linear_attention": ("gated_linear_attention", "ssd"),
  "delta_rule": ("delta_rule",),
}


def explained(error: ValueError) -> str:
  """Returns the message of an error while a program is traced, with the arguments to change."""
  message = str(error).partition("\n----")[0]  # JAX adds a note about its own traceback.
  operation = message.partition(":")[0]
  chosen = _PARAMETERS.get(operation, ()) if re.search(r"\bimplementation\b", message) else ()
  return config.explained(message, chosen)
