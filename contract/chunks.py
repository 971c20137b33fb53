"""Checks that rows run in chunks of time have the losses and the gradient of whole rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax

from contract.finding import Finding, compare_trees, largest
from contract.subject import Subject
from models.language_model import LanguageModel


def check(subject: Subject) -> Iterator[Finding]:
  """Compares the loss and the gradient of packed rows in chunks with those of whole rows.

  The chunks are shorter than the window and do not divide the row. A model that keeps all tokens,
  or whose state has no gradient, must refuse them.
  """
  model, params = subject.without_remainder()
  size = subject.window // 2
  chunked = model.clone(time_chunk=size)
  loss = functools.partial(subject.loss, chunked)
  if not allowed(model):
    yield _refusal(loss, params)
    return
  found, gradient = jax.jit(jax.value_and_grad(loss))(params)
  whole, expected = subject.loss_and_gradient
  case, rounding = f"in chunks of {size} tokens", subject.gradient_rounding
  yield largest(f"loss {case}", [("loss", abs(float(found / whole) - 1))], rounding)
  yield compare_trees(f"gradient {case}", gradient, expected, rounding)


def allowed(model: LanguageModel) -> bool:
  """Whether all of a model's mixers declare a state that chunks can start from."""
  return all(
    getattr(mixer, "constant_state", False) and getattr(mixer, "differentiable_state", True)
    for mixer in model.mixers()
  )


def _refusal(loss, params) -> Finding:
  """Checks that chunks are refused before anything runs."""
  case = "refuses chunks of time"
  try:
    jax.eval_shape(loss, params)
  except ValueError as error:
    return Finding(case=case, outcome="refused", says=str(error))
  return Finding(case=case, outcome="failed", says="a mixer declares it, but it is not made")
