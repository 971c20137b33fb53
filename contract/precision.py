"""Compares numbers with better ones: bfloat16 with float32, gradients with float64 differences."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from contract import float64
from contract.finding import Finding, largest, norm, path_of
from contract.subject import Subject

# Half of the distance between neighbours in bfloat16, relative.
BFLOAT16_ROUNDING = 2.0**-9
# The error of a central difference falls with the step's square. At a kink, such as that of mLSTM's
# max(|n^T q|, 1), it is as large as the change of the slope, whatever the step: a short step
# crosses few kinks. The rounding of a loss of ten in float64, 1e-15, over the step is below 1e-9,
# and thus far below float32's rounding of a gradient.
STEP = 3e-6


def bfloat16(subject: Subject) -> Iterator[Finding]:
  """Compares logits of bfloat16 activations with those of float32, by the root mean square.

  Each of 2 depth + 2 sub-blocks rounds a chain of about four values with independent errors:
  two roundings of 2^-9. Errors of the sub-blocks add linearly in the worst case.
  """
  tokens = subject.tokens(12)
  expected = subject.logits(tokens)
  model = subject.model.with_types(jnp.bfloat16, jnp.float32)
  found, _ = jax.jit(lambda params: model.apply({"params": params}, tokens))(subject.params)
  kind = found.dtype
  allowed = (2 * model.depth + 2) * 2 * BFLOAT16_ROUNDING
  difference = norm(np.asarray(found, np.float64) - expected) / norm(expected)
  yield largest("logits with bfloat16 activations", [("root mean square", difference)], allowed)
  rounds = kind == jnp.float32 and difference > BFLOAT16_ROUNDING / 4
  says = f"logits are {kind}, and differ from float32's by {difference:.1e}"
  yield Finding(
    case="activations are bfloat16, logits float32",
    outcome="passed" if rounds else "failed",
    says=says,
  )


def gradients(subject: Subject) -> Iterator[Finding]:
  """Compares the float32 gradient with central differences of the same loss in float64.

  For every parameter array it uses two directions: the gradient, to detect a wrong size, and a
  random one, to detect missing parts.
  """
  model, params = subject.without_remainder()
  leaves = jax.tree_util.tree_leaves_with_path(params)
  gradient = [np.asarray(g, np.float64) for g in jax.tree.leaves(subject.gradient)]
  structure = jax.tree.structure(params)
  random = np.random.default_rng(5)
  typical = np.sqrt(sum(norm(g) ** 2 for g in gradient) / sum(g.size for g in gradient))
  differences = []
  with jax.enable_x64(True):
    loss = float64.evaluate(functools.partial(subject.loss, model), params)
    values = [np.asarray(leaf, np.float64) for _, leaf in leaves]

    def at(index, offset):
      moved = [*values[:index], values[index] + offset, *values[index + 1 :]]
      return float(loss(jax.tree.unflatten(structure, moved)))

    for index, (path, leaf) in enumerate(leaves):
      g = gradient[index]
      # For an array with almost no gradient, the whole tree's size decides.
      scale = max(norm(g), 0.01 * typical * np.sqrt(g.size))
      for direction in (g, random.standard_normal(leaf.shape)):
        if not (length := norm(direction)):
          continue
        direction = direction / length
        slope = (at(index, STEP * direction) - at(index, -STEP * direction)) / (2 * STEP)
        differences.append((path_of(path), abs(slope - float(np.sum(g * direction))) / scale))
  yield largest("gradient against differences in float64", differences, subject.gradient_rounding)
