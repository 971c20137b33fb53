"""Checks declared constant state sizes, and that no decode state changes its shapes."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from contract.finding import Finding, stated
from contract.subject import Subject
from models.accounting import abstract_parameters, tree_bytes

# Both beyond any window; nothing is allocated.
CAPACITIES = (2**22, 2**24)


def check(subject: Subject) -> Iterator[Finding]:
  """Compares initial states of two capacities, and states before and after a step, by shapes."""
  for mixer in dict.fromkeys(subject.model.mixers()):
    name = type(mixer).__name__
    small, large = (
      tree_bytes(jax.eval_shape(lambda c=c, m=mixer: m.initial_state(1, c))) for c in CAPACITIES
    )
    claims = getattr(mixer, "constant_state", False)
    sizes = f"{small:,} bytes at capacity {CAPACITIES[0]:,}, {large:,} at {CAPACITIES[1]:,}"
    verb = "claims constant size" if claims else "claims no constant size"
    yield stated(f"{name} {verb}", small == large or not claims, sizes)
  yield _steps(subject)


def _steps(subject: Subject) -> Finding:
  def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

  length, model = subject.length, subject.model
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  params = nn.unbox(abstract_parameters(model))

  def step(params, tokens, state):
    return model.apply({"params": params}, tokens, state=state)[1]

  before = jax.eval_shape(lambda: model.initial_state(1, length))
  after = jax.eval_shape(step, params, tokens, before)
  return stated(
    "a step keeps the state's structure and shapes",
    kinds(before) == kinds(after),
    f"{tree_bytes(before):,} bytes before, {tree_bytes(after):,} after",
  )
