"""Checks that remat policies and the layer scan do not change results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from contract.finding import Finding, compare_rows, compare_trees
from contract.subject import Subject
from layers.remat import POLICIES
from layers.stack import unstack


def remat(subject: Subject) -> Iterator[Finding]:
  """Compares gradients under every remat policy with those without recomputation."""
  model, params = subject.without_remainder()
  for policy in POLICIES:
    if policy == model.remat:
      continue
    if policy == "offload" and not _has_host_memory():
      says = "this backend has no separate host memory"
      yield Finding(case=f"remat={policy!r}", outcome="not run", says=says)
      continue
    found = subject.gradient_of(model.clone(remat=policy), params)
    yield compare_trees(
      f"gradient with remat={policy!r}", found, subject.gradient, subject.gradient_rounding
    )


def _has_host_memory() -> bool:
  kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
  return "pinned_host" in kinds


def scan(subject: Subject) -> Iterator[Finding]:
  """Compares logits of scanned blocks with those of unrolled blocks."""
  tokens = subject.tokens(11)
  expected = subject.logits(tokens)
  allowed = subject.rounding(expected)
  cut = {**subject.params, "stack": unstack(subject.params["stack"])}
  cases: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("unrolled blocks with separate parameters", cut, {"scan": False}),
    ("two repeats of the pattern per step of the scan", subject.params, {"unroll": 2}),
  )
  for case, params, options in cases:
    model = subject.model.clone(**options)
    found, _ = jax.jit(lambda params, m=model: m.apply({"params": params}, tokens))(params)
    yield compare_rows(case, found, expected, allowed)
