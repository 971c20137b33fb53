"""The checked model, at a depth that is quick to compile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contract.finding import ROUNDING
from data.loader import batch_of_rows
from layers.stack import DEPTH_TABLE
from models.accounting import abstract_parameters
from models.language_model import LanguageModel
from training.losses import Batch, token_losses

ROWS = 2
MIN_WINDOW = 8
# Standard deviation of the noise that is added to every initial parameter.
NOISE = 0.1


class Subject:
  """A model with parameters and tokens; results for several checks are cached.

  Attributes:
    model: two repeats of the pattern, with each kind of mixer once, and one remainder block.
    window: the largest window of its mixers, at least 8 tokens.
    length: tokens of a row: more than four windows.
    params: initial parameters with noise, because parameters of zero would hide errors.
    wider: makes the model at a multiple of its widths and heads; None if only the model is known.
    width_factors: the multiples that the check 'widths' compares with the model.
  """

  def __init__(
    self,
    model: LanguageModel,
    wider: Callable[[int], LanguageModel] | None = None,
    width_factors: Sequence[int] = (4,),
  ):
    """Sets the model, of any depth; compiles nothing yet."""
    self.wider, self.width_factors = wider, tuple(width_factors)
    pattern = tuple(dict.fromkeys(model.pattern))
    self.model = model.clone(pattern=pattern, depth=2 * len(pattern) + 1)
    windows = [getattr(mixer, "window", None) for mixer in self.model.mixers()]
    self.window = max(MIN_WINDOW, *(w for w in windows if isinstance(w, int)), 0)
    self.length = 4 * self.window + 3

  @functools.cached_property
  def params(self) -> Any:
    init = jax.jit(lambda key: nn.unbox(self.model.init(key, jnp.zeros((1, 1), jnp.int32))))
    random = np.random.default_rng(0)
    # Added by NumPy: JAX would compile an addition for every shape.
    return jax.tree.map(
      lambda x: jax.device_put(
        np.asarray(x) + np.asarray(NOISE * random.standard_normal(x.shape), x.dtype)
      ),
      init(jax.random.key(0))["params"],
    )

  def without_remainder(self) -> tuple[LanguageModel, Any]:
    """The model without the remainder block, and its parameters: quicker to compile."""
    whole = self.model.depth - self.model.depth % len(self.model.pattern)
    stack = {name: group for name, group in self.params["stack"].items() if name != "remainder"}
    shorter = self.model.clone(depth=whole)
    for name in stack:
      if name.startswith(DEPTH_TABLE):
        # Only what has a row per block is cut: a table may also be made of other parameters.
        wanted = nn.unbox(abstract_parameters(shorter))["stack"][name]
        stack[name] = jax.tree.map(
          lambda x, like: x[tuple(map(slice, like.shape))], stack[name], wanted
        )
    return shorter, {**self.params, "stack": stack}

  def tokens(self, seed: int) -> np.ndarray:
    """Random rows [2, length] int32, of NumPy: JAX would compile every slice of them."""
    random = np.random.default_rng(seed)
    return random.integers(0, self.model.vocab_size, (ROWS, self.length), np.int32)

  @functools.cached_property
  def apply(self):
    """The compiled `apply(params, tokens, **options)` of the model."""

    @functools.partial(jax.jit, static_argnames=("capacity", "last_only"))
    def apply(params, tokens, **options):
      return self.model.apply({"params": params}, tokens, **options)

    return apply

  def logits(self, tokens: np.ndarray, segment_ids: np.ndarray | None = None) -> np.ndarray:
    """Returns logits of whole rows [2, length, V]; without ids, a row is one segment."""
    ids = np.ones(tokens.shape, np.int32) if segment_ids is None else segment_ids
    return np.asarray(self.apply(self.params, tokens, segment_ids=ids)[0])

  def batch(self, rows: int, length: int) -> dict[str, np.ndarray]:
    """Makes a training batch of packed documents of random lengths; some rows end in padding."""
    random = np.random.default_rng(3)
    tokens = random.integers(0, self.model.vocab_size, (rows, length))
    ids = np.cumsum(random.uniform(size=(rows, length)) < 0.1, axis=1) + 1
    ids[np.arange(length) >= length - 2 * np.arange(rows)[:, None]] = 0
    return batch_of_rows(tokens, ids, bos_id=0)

  def loss(self, model: LanguageModel, params: Any) -> jax.Array:
    """Computes the mean loss of a batch as in training, for the model or a variant."""
    batch = self.batch(ROWS, self.length)
    nll, _ = token_losses(model, params, cast(Batch, batch))
    return jnp.sum(nll) / jnp.sum(batch["loss_weights"])

  def gradient_of(self, model: LanguageModel, params: Any) -> Any:
    """Computes the gradient of `loss`."""
    return jax.jit(jax.grad(functools.partial(self.loss, model)))(params)

  @functools.cached_property
  def loss_and_gradient(self) -> tuple[jax.Array, Any]:
    """The loss of the model without remainder, and its gradient."""
    model, params = self.without_remainder()
    return jax.jit(jax.value_and_grad(functools.partial(self.loss, model)))(params)

  @property
  def gradient(self) -> Any:
    """The gradient of the model without remainder."""
    return self.loss_and_gradient[1]

  @property
  def roundings(self) -> float:
    """Number of rounding errors of 2^-24 that add up in a float32 evaluation.

    A logit passes through 2 depth + 2 sub-blocks, including embedding and output. Each rounds sums
    of up to `width` terms, with errors that add like a random walk, and a short chain of
    elementwise steps: sqrt(width) roundings or 16, whichever is more.
    """
    return (2 * self.model.depth + 2) * max(16, math.sqrt(self.model.width))

  def rounding(self, expected: Any) -> float:
    """Largest absolute difference between two float32 orders of evaluation."""
    return ROUNDING * self.roundings * float(np.abs(np.asarray(expected)).max())

  @property
  def gradient_rounding(self) -> float:
    """Largest relative difference between two float32 gradients, by both passes."""
    return 2 * ROUNDING * self.roundings
