"""Rates as an argument of the step: one program for all schedules, the losses of separate ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.loader import batch_of_rows
from tests.small_models import VOCAB_SIZE, build
from training import rates, step
from training.adafactor import Adafactor
from training.lion import Lion
from training.muon import Muon
from training.optimizer import AdamW, warmup_cosine, warmup_stable_decay

SCHEDULES = (
  warmup_cosine(peak=3e-2, steps=9, warmup_steps=3),
  warmup_cosine(peak=7e-3, steps=14, warmup_steps=2),
)


def batches(count):
  random = np.random.default_rng(0)
  for _ in range(count):
    tokens = random.integers(0, VOCAB_SIZE, (2, 12))
    yield batch_of_rows(tokens, np.ones((2, 12), np.int32), bos_id=0)


def losses(run, transformation, model, schedule):
  options = step.StepOptions()
  state = jax.jit(lambda: step.initial_state(model, transformation, options, seed=0))()
  window, found = rates.RateWindow(schedule), []
  for place, batch in enumerate(batches(8)):
    given = window.at(place, state.spike_detector.taken)
    batch = {name: jnp.asarray(array) for name, array in batch.items() if name != "row_bytes"}
    state, metrics = run(state, batch, given)
    found.append(float(metrics["loss"]))
  return found, state


@pytest.fixture
def short_window(monkeypatch):
  """Windows of three steps: a training has several."""
  rates._values.cache_clear()
  monkeypatch.setattr(rates, "STEPS", 3)
  yield
  rates._values.cache_clear()


def test_two_schedules_share_a_program_and_have_the_losses_of_two(short_window):
  model, options = build("griffin", depth=2), step.StepOptions()
  shared = {rates.transformation(AdamW(learning_rate=one)) for one in SCHEDULES}
  assert len(shared) == 1
  transformation = shared.pop()
  run = step.jit_train_step(model, transformation, options)
  programs = set()
  for schedule in SCHEDULES:
    own = AdamW(learning_rate=schedule).transformation()
    alone = step.jit_train_step(model, own, options)
    expected, old = losses(alone, own, model, schedule)
    found, new = losses(run, transformation, model, schedule)
    assert found == expected
    # Today's checkpoints hold the same arrays.
    assert jax.tree.structure(new) == jax.tree.structure(old)
    jax.tree.map(np.testing.assert_array_equal, new, old)
    programs.add(run._cache_size())
  # The second schedule compiled nothing.
  assert len(programs) == 1


@pytest.mark.parametrize("optimizer", [AdamW, Lion, Adafactor, Muon])
@pytest.mark.parametrize("options", [{}, {"master_copy": True}])
def test_updates_are_those_of_the_schedule_itself(optimizer, options):
  params = {"a": {"kernel": jnp.linspace(-1.0, 1.0, 32).reshape(4, 8)}, "b": {"scale": jnp.ones(8)}}
  if optimizer in (AdamW, Lion):
    options = {**options, "rate_factors": (("a/kernel", 0.25),)}
  shared = rates.transformation(optimizer(learning_rate=SCHEDULES[0], **options))

  @jax.jit
  def given(gradient, state, coming):
    with rates.given(coming):
      return shared.update(gradient, state, params)

  for schedule in SCHEDULES:
    own = optimizer(learning_rate=schedule, **options).transformation()
    state, expected_state = shared.init(params), own.init(params)
    window, alone = rates.RateWindow(schedule), jax.jit(own.update)
    for count in range(4):
      gradient = jax.tree.map(lambda x, c=count: jnp.sin((c + 1) * x), params)
      found, state = given(gradient, state, window.at(count, count))
      expected, expected_state = alone(gradient, expected_state, params)
      # Fused with other operations than in a step, a schedule differs in its last bits. Updates of
      # a master copy are differences of parameters near 1, which are rounded to 6e-8.
      close = functools.partial(
        np.testing.assert_allclose, rtol=2e-6, atol=2e-7 if "master_copy" in options else 0
      )
      jax.tree.map(close, found, expected)
  assert given._cache_size() == 1


@pytest.mark.parametrize(
  "schedule",
  [
    warmup_cosine(peak=3e-3, steps=2500, warmup_steps=100),
    warmup_cosine(peak=3e-3, steps=2500, warmup_steps=0),
    warmup_stable_decay(peak=1e-2, steps=2500, warmup_steps=100),
    optax.constant_schedule(1e-3),
    lambda taken: 1e-3,
  ],
)
def test_rates_are_those_of_the_schedule_in_a_program(schedule):
  @jax.jit
  def alone(taken):
    return jnp.asarray(schedule(taken), jnp.float32)

  @jax.jit
  def given(taken, coming):
    with rates.given(coming):
      return rates.from_argument(taken)

  window, skipped = rates.RateWindow(schedule), 0
  for place in range(2500):
    skipped += place in (3, 1500, 1501)
    taken = np.int32(place - skipped)
    if place % 50 < 3 or 1020 < place < 1030:
      found, expected = given(taken, window.at(place, taken)), alone(taken)
      # On its own, a schedule is compiled otherwise than in a step.
      assert float(found) == pytest.approx(float(expected), rel=2e-6, abs=2e-9), place


def test_a_step_outside_of_the_window_has_no_rate():
  coming = rates.RateWindow(SCHEDULES[0]).at(5, 5)
  with rates.given(coming):
    assert np.isfinite(rates.from_argument(jnp.int32(5 + rates.STEPS - 1)))
    assert np.isnan(rates.from_argument(jnp.int32(5 + rates.STEPS)))
    assert np.isnan(rates.from_argument(jnp.int32(4)))


@dataclasses.dataclass(frozen=True)
class EverySecond:
  """An optimizer of a user's, which calls its schedule with another count than the steps'."""

  learning_rate: optax.Schedule
  master_copy: bool = False

  def transformation(self):
    return optax.MultiSteps(optax.sgd(self.learning_rate), 2).gradient_transformation()

  def factor_of(self, path):
    return None


def test_an_optimizer_that_does_not_read_rates_keeps_its_schedule():
  own = EverySecond(lambda taken: 1.0 + taken)
  shared, params = rates.transformation(own), {"scale": jnp.ones(3)}
  state, window, found = shared.init(params), rates.RateWindow(own.learning_rate), []
  for count in range(8):
    with rates.given(window.at(count, count)):
      updates, state = shared.update({"scale": jnp.ones(3)}, state, params)
    found.append(float(updates["scale"][0]))
  assert found == [0, -1, 0, -2, 0, -3, 0, -4]


def test_an_optimizer_without_rates_says_so():
  shared = rates.transformation(AdamW(learning_rate=SCHEDULES[0]))
  params = {"scale": jnp.ones(3)}
  with pytest.raises(ValueError, match="argument of the step"):
    shared.update(params, shared.init(params), params)
