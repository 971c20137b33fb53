"""Rows that begin with the states that other documents left.

State passing (Buitrago Ruiz and Gu 2025, arXiv 2507.02782): a model that has only seen the states
that short rows reach may fail on those of long ones. Trained from the states that earlier rows
left, and the rows before them, it meets such states, at no cost of memory or time: no row gets
longer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from models.language_model import DecodeState, LanguageModel
from training import carried_state

# How messages call the option.
OPTION = "--gin.training.step.StepOptions.initial_state"
# Separates the key of the draw from the models' keys.
_DRAW = 0x504153


def drawn(
  model: LanguageModel, states: DecodeState, key: jax.Array, share: jax.Array | float
) -> DecodeState:
  """Draws the states that the rows of a step begin with.

  Args:
    model: a language model of the zoo.
    states: what the rows of the step before left.
    key: the step's key.
    share: of the rows that begin with such a state, each with another one; the others begin with
      nothing.
  """
  rows = len(states.position)
  order_key, choice_key = jax.random.split(jax.random.fold_in(key, _DRAW))
  order = jax.random.permutation(order_key, rows)
  passed = jax.random.uniform(choice_key, (rows,)) < share
  axes = carried_state.batch_axes(model)
  # What has no axis of rows, such as the place in a ring of keys, is the same in all rows.
  taken = jax.tree.map(
    lambda leaf, axis: leaf if axis < 0 else jnp.take(leaf, order, axis), states, axes
  )
  return carried_state.chosen(model, passed, taken)
