"""Learning rates as an argument of a step's program.

A schedule inside of a program is a constant of it: runs that differ in their rate, or in the number
of their steps, would each be compiled. So the programs of a training read the rate from an array,
which holds those of the steps to come. Values are those that the schedule has inside of a compiled
program, bit for bit: written with its peak and steps as arguments, it would differ from them in the
last bits, because the compiler folds constants.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parallel.sharding_plan import ShardingPlan
from training.optimizer import Optimizer

# Rates of an array: 4 KiB, of which a step reads one.
STEPS = 1024


class Rates(NamedTuple):
  """The learning rates of steps to come.

  Attributes:
    first: [] int32, steps taken before the first of them.
    values: [STEPS] float32.
  """

  first: jax.Array
  values: jax.Array


_rates: contextvars.ContextVar[Rates | None] = contextvars.ContextVar("rates", default=None)


@contextlib.contextmanager
def given(rates: Rates | None) -> Iterator[None]:
  """Makes `from_argument` read these rates."""
  token = _rates.set(rates)
  try:
    yield
  finally:
    _rates.reset(token)


def from_argument(taken: Any) -> jax.Array:
  """The schedule that reads the rates of `given`.

  Args:
    taken: [] int32, steps taken; from `first` on, and within `STEPS` of it. The rate of others is
      NaN.

  Raises:
    ValueError: no rates are given.
  """
  rates = _rates.get()
  if rates is None:
    raise ValueError("this optimizer's learning rates are an argument of the step: give them.")
  place = taken - rates.first
  rate = jax.lax.dynamic_index_in_dim(rates.values, place, keepdims=False)
  return jnp.where((place >= 0) & (place < STEPS), rate, jnp.nan)


def transformation(optimizer: Optimizer) -> optax.GradientTransformation:
  """Returns an optimizer's transformation, which reads its rates from `given`.

  It is the same object for optimizers that differ only in the schedule. An optimizer whose class
  does not say `reads_rates` keeps its schedule in its program: it may call it with another count
  than that of the steps taken.
  """
  if not getattr(type(optimizer), "reads_rates", False):
    return optimizer.transformation()
  return cast(
    Optimizer, dataclasses.replace(cast(Any, optimizer), learning_rate=from_argument)
  ).transformation()


def abstract(sharding_plan: ShardingPlan) -> Rates:
  """Returns shapes, dtypes and shardings of a step's rates."""
  where: Any = sharding_plan.everywhere
  first: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
  values: Any = jax.ShapeDtypeStruct((STEPS,), jnp.float32, sharding=where)
  return Rates(first, values)


class RateWindow:
  """The rates of a run's next steps."""

  def __init__(self, schedule: optax.Schedule, sharding_plan: ShardingPlan | None = None):
    """Sets the run's schedule, and the plan of its devices; None is one device."""
    self._schedule, self._sharding_plan = schedule, sharding_plan
    self._rates: Rates | None = None
    self._end = 0

  def at(self, step: int, taken: Any) -> Rates:
    """Returns rates that hold that of a step.

    Args:
      step: the step, ascending from call to call.
      taken: [] integer, steps taken before it. It is read once in `STEPS` steps: an array of a
        device is waited for.
    """
    if self._rates is None or step >= self._end:
      first: Any = np.asarray(taken, np.int32)
      values: Any = np.asarray(_values(self._schedule)(first))
      rates = Rates(first, values)
      # A step that is skipped takes none: the rates last at least as long.
      self._rates, self._end = self._placed(rates), step + STEPS
    return self._rates

  def _placed(self, rates: Any) -> Rates:
    if self._sharding_plan is None:
      return jax.tree.map(jnp.asarray, rates)
    where = self._sharding_plan.everywhere
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(x.shape, where, lambda index: x[index]), rates
    )


@functools.lru_cache(maxsize=16)
def _values(schedule: optax.Schedule) -> jax.stages.Wrapped:
  """Returns the compiled function from steps taken to the next `STEPS` rates, float32."""

  def rate(taken):
    return jnp.asarray(schedule(taken), jnp.float32)

  # One by one, as a step has them: of many at once, some differ in the last bit.
  return jax.jit(lambda first: jax.lax.map(rate, first + jnp.arange(STEPS, dtype=jnp.int32)))
