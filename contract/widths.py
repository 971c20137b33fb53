"""The coordinate check of muP: steps move what a model computes as far at every width.

Yang et al. 2022 (arXiv 2203.03466), appendix D.1. See `models.maximal_update`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from contract.finding import Finding
from contract.subject import Subject
from data.loader import batch_of_rows
from models import maximal_update
from models.accounting import ModelError
from models.language_model import LanguageModel
from training.losses import Batch, token_losses
from training.optimizer import AdamW

RATE, STEPS = 1e-2, 4
ROWS, LENGTH = 8, 32
# Of the ratio of two changes, minus 1: models of 32 channels are far from the limit of many. The
# ratio is about that of the widths without muP.
ALLOWED = 0.5


def check(subject: Subject) -> Iterator[Finding]:
  """Compares how far a few steps of AdamW move the last hidden states, by width."""
  if subject.wider is None:
    says = "no models of other widths are given: run python -m launch.check"
    yield Finding(case="coordinate check", outcome="not run", says=says)
    return
  base = shallow(subject.wider(1))
  near = change(base, ())
  for factor in subject.width_factors:
    wide = shallow(subject.wider(factor))
    case = f"steps at width {wide.width:,} move hidden states as far as at {base.width:,}, with muP"
    if wide.width == base.width:
      yield Finding(case=case, outcome="not run", says="the model's width does not follow WIDTH")
      continue
    try:
      scaled, rates = maximal_update.scaled(wide, base), maximal_update.rate_factors(wide, base)
    except ModelError as error:
      yield Finding(case=case, outcome="refused", says=" ".join(str(error).split()))
      continue
    ratio = change(scaled, rates) / near
    off = max(ratio, 1 / ratio) - 1 if ratio > 0 and np.isfinite(ratio) else float("inf")
    yield Finding(
      case=case,
      outcome="passed" if off <= ALLOWED else "failed",
      difference=off,
      allowed=ALLOWED,
      says=f"{ratio:.3g} times as far",
    )


def shallow(model: LanguageModel) -> LanguageModel:
  """Returns the model with each kind of mixer once: depth is no width."""
  pattern = tuple(dict.fromkeys(model.pattern))
  return model.clone(pattern=pattern, depth=len(pattern))


def change(model: LanguageModel, rates: tuple[tuple[str, float], ...]) -> float:
  """Returns the root mean square by which steps change the last hidden states of a batch."""
  rule = AdamW(learning_rate=optax.constant_schedule(RATE), rate_factors=rates).transformation()
  # Walks, so that there is something to learn.
  walks = np.cumsum(np.random.default_rng(0).integers(0, 3, (ROWS, LENGTH + 1)), axis=1) % 17
  batch = batch_of_rows(walks[:, 1:], np.ones((ROWS, LENGTH), np.int32), bos_id=0)
  init = jax.jit(lambda key: nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]))

  def loss(params: Any) -> jax.Array:
    return jnp.mean(token_losses(model, params, cast(Batch, batch))[0])

  def hidden(params: Any) -> jax.Array:
    given = batch["inputs"], None, None, None, None
    return model.apply({"params": params}, *given, method="_blocks")[0]

  def moved(params: Any) -> jax.Array:
    def step(carry: Any, _: None) -> tuple[Any, None]:
      updates, state = rule.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
      return (optax.apply_updates(carry[0], updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, rule.init(params)), length=STEPS)
    return jnp.sqrt(jnp.mean(jnp.square(hidden(after) - hidden(params))))

  return float(jax.jit(moved)(init(jax.random.key(0))))
