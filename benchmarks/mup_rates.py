"""Best learning rates of models of several widths, with muP and without.

Trains on a text of bytes: `python -m benchmarks.mup_rates`. From the best rate of the width before,
rates are doubled and halved until the loss rises on both sides, so that a width costs three to five
trainings. All trainings of a model of one width are one program: a schedule of peak 1, whose
updates are multiplied by the rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from data import loader
from experiment import experiment
from training.losses import token_losses

MODELS = ("griffin", "hawk", "transformer")
BASE = 64
HEAD_DIM = 32


@dataclasses.dataclass(frozen=True)
class Training:
  """Trainings of a model of one width, from the same seeds at every rate.

  Attributes:
    model: name of a file of `gin/models/`.
    width: channels of the residual stream, and of the recurrence.
    mup: whether rates and scales follow those of the width `BASE`.
    steps, rows, length: optimizer steps, rows of a step, and tokens of a row.
    seeds: trainings of a rate, which differ in parameters and batches.
  """

  model: str
  width: int
  mup: bool
  steps: int
  rows: int
  length: int
  seeds: int

  def built(self) -> experiment.Experiment:
    """Builds model and optimizer, whose schedule has the peak 1."""
    sizes = {"DEPTH": 3, "WINDOW": 32, "STEPS": self.steps, "WARMUP_STEPS": self.steps // 5}
    sizes |= {"BATCH_SIZE": self.rows, "SEQUENCE_LENGTH": self.length, "LEARNING_RATE": 1.0}
    given = [f"--gin.{name}={value}" for name, value in (sizes | _widths(self.width)).items()]
    if self.mup:
      base = [f"{name} = {value}" for name, value in _widths(BASE).items()]
      given.append(f"--gin.MUP_BASE={base}")
    # As in gin/compare/mup_quick.gin.
    files = ["experiment.gin", "mesh/single.gin", "kernels/auto.gin", "data/python_bytes.gin"]
    files += ["train/quick_comparison.gin", f"models/{self.model}.gin"]
    files += ["train/mup.gin"] if self.mup else []
    return experiment.build(experiment.load(files, given, shared=True))

  def losses(self) -> Callable[[float], float]:
    """Compiles the step; returns the function from a rate to the mean loss of the last steps."""
    built = self.built()
    model, transformation = built.model, built.optimizer.transformation()
    rows, _ = built.rows()
    init = jax.jit(lambda key: nn.unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]))
    begin = jax.jit(transformation.init)

    def loss_of(params: Any, batch: Any) -> jax.Array:
      nll, _ = token_losses(model, params, batch)
      return jnp.sum(nll) / jnp.sum(batch["loss_weights"])

    @jax.jit
    def step(params: Any, state: Any, batch: Any, rate: jax.Array) -> tuple[Any, Any, jax.Array]:
      loss, gradient = jax.value_and_grad(loss_of)(params, batch)
      updates, state = transformation.update(gradient, state, params)
      # AdamW's updates are in proportion to the rate, those of its weight decay too.
      updates = jax.tree.map(lambda update: rate * update, updates)
      return optax.apply_updates(params, updates), state, loss

    def loss_at(rate: float) -> float:
      found = []
      for seed in range(self.seeds):
        params, losses = init(jax.random.key(seed)), []
        state = begin(params)
        batches = loader.batches(rows, self.rows, seed=seed)
        for batch in itertools.islice(batches, self.steps):
          params, state, loss = step(params, state, batch, np.float32(rate))
          losses.append(loss)
        batches.close()
        found.append(np.mean(losses[-self.steps // 5 :]))
      mean = float(np.mean(found))
      return mean if math.isfinite(mean) else math.inf

    return loss_at


def _widths(width: int) -> dict[str, int]:
  return {"WIDTH": width, "RNN_WIDTH": width, "HEADS": width // HEAD_DIM}


def search(loss_at: Callable[[float], float], start: float) -> dict[float, float]:
  """Returns losses by rate: of the best rate on a grid of factors 2, and of both beside it."""
  found = {start: loss_at(start)}
  while True:
    best = min(found, key=lambda rate: found[rate])
    missing = [rate for rate in (2 * best, best / 2) if rate not in found]
    if not missing:
      return dict(sorted(found.items()))
    found[missing[0]] = loss_at(missing[0])


def main(arguments: Sequence[str] | None = None) -> None:
  """Prints a line for each model and width."""
  options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
  options.add_argument("--models", default=",".join(MODELS), help="comma-separated")
  options.add_argument("--widths", default="64,128,256,512", help="comma-separated, ascending")
  options.add_argument("--steps", type=int, default=50)
  options.add_argument("--rows", type=int, default=8)
  options.add_argument("--length", type=int, default=64)
  options.add_argument("--seeds", type=int, default=2)
  options.add_argument("--start", type=float, default=2**-6, help="the first rate that is tried")
  options.add_argument("--only", choices=("mup", "without"))
  args = options.parse_args(arguments)
  ways = [way == "mup" for way in ([args.only] if args.only else ["mup", "without"])]
  models: list[str] = args.models.split(",")
  for mup, model in [(mup, model) for mup in ways for model in models]:
    way, first, best, steps = "with muP" if mup else "without", None, args.start, []
    for width in map(int, args.widths.split(",")):
      began = time.process_time()
      training = Training(model, width, mup, args.steps, args.rows, args.length, args.seeds)
      loss_at = training.losses()
      found = search(loss_at, best)
      best = min(found, key=lambda rate: found[rate])
      first = first or best
      # What it costs to keep the rate of the narrowest model.
      cost = (found[first] if first in found else loss_at(first)) - found[best]
      steps.append(math.log2(best / first))
      told = "  ".join(f"{rate:.4g}: {loss:.3f}" for rate, loss in found.items())
      seconds = time.process_time() - began
      print(
        f"{model} {way}, {width}: best {best:.4g}  ({told})  at {first:.4g} the loss is higher by "
        f"{cost:.3f}; {seconds:.0f} s",
        flush=True,
      )
    low, high = min(steps), max(steps)
    print(
      f"{model} {way}: the best rate moves by {low:.0f} to {high:+.0f} factors of 2", flush=True
    )


if __name__ == "__main__":
  main()
