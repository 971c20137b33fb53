"""The measurements of speed: what they measure and count, and their findings."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comparison.page.figure import ESTIMATED, MEASURED, Figure
from comparison.speed import bandwidth, memory, timing
from comparison.speed.decoding import DecodeSpeed
from comparison.speed.kernels import RecurrenceSpeed
from comparison.speed.memory import CacheSize
from comparison.speed.throughput import Throughput
from comparison.speed.timing import MedianInterval
from comparison.speed.training import EstimatedTrainingSpeed, TrainingSpeed
from models.accounting import list_parameters, state_bytes
from tests import small_models

NAMES = ("griffin", "hawk", "transformer")
BASELINE = "transformer"


@pytest.fixture(scope="module")
def models():
  # One block each: what is timed here need not be large.
  return {name: small_models.build(name, depth=1) for name in NAMES}


class Store:
  """Keeps results as a comparison does: through JSON."""

  def __init__(self, results=None):
    self.results, self.measured = dict(results or {}), []

  def __call__(self, key, measure):
    if key not in self.results:
      self.measured.append(key)
      self.results[key] = json.dumps(measure())
    return json.loads(self.results[key])


def test_runs_take_turns():
  order = []
  runs = {name: lambda name=name: order.append(name) for name in "abc"}
  seconds = timing.interleaved(runs, 3)
  assert order == list("abc") * 4
  assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 3)


@pytest.mark.parametrize("count", [6, 7, 9, 20])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count):
  draws = np.random.default_rng(0).exponential(size=(4000, count))
  found = [timing.interval(list(row)) for row in draws]
  held = np.mean([one.low <= math.log(2) <= one.high for one in found])
  # Two standard errors of a share of 0.95 among 4000.
  assert held > timing.CONFIDENCE - 2 * math.sqrt(0.95 * 0.05 / 4000)
  assert "95%" in timing.spread(count)


def test_too_few_rounds_give_their_extremes_and_say_so():
  assert timing.interval([3.0, 1.0, 2.0]) == MedianInterval(2.0, 1.0, 3.0)
  assert timing.spread(3) == "median, smallest and largest of 3 interleaved rounds"


def test_a_ratio_is_taken_within_rounds():
  # A machine that is slower by the round changes neither side's share of the other.
  slow = [1.0, 5.0, 2.0, 9.0, 1.0, 3.0]
  assert timing.ratio([2 * s for s in slow], slow) == MedianInterval(2.0, 2.0, 2.0)


@pytest.mark.parametrize("length", [3, small_models.WINDOW, 100])
def test_cache_bytes_are_those_of_the_paper_and_of_the_bookkeeping(length):
  models = {name: small_models.build(name, depth=3) for name in NAMES}
  rnn_width, head_dim, item = 48, 16, 4
  # Section 5.1: keys and values of T tokens per layer; at most a window of them; and R + 3 R.
  recurrent = (rnn_width + 3 * rnn_width) * item
  kept = min(length, small_models.WINDOW)
  expected = {
    "griffin": 2 * recurrent + 2 * kept * head_dim * item,
    "hawk": 3 * recurrent,
    "transformer": 3 * 2 * length * head_dim * item,
  }
  # Beside them: a segment id per slot and a counter per attention layer; the next token's position
  # and segment.
  bookkeeping = {"griffin": 4 * (kept + 1), "hawk": 0, "transformer": 3 * 4 * (length + 1)}
  for name, model in models.items():
    assert state_bytes(model, length) == expected[name] + bookkeeping[name] + 8
    state = model.initial_state(1, length)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == state_bytes(model, length)


def test_the_memory_bound_model_on_numbers_worked_out_by_hand():
  model = small_models.build("hawk", depth=1)
  # Embedding 61 x 32; the block's three maps 32 x 48, four taps and a bias, two gates of 4 blocks
  # of 12 x 12 with biases, the decay; the MLP's three maps 32 x 96; three norms. In float32.
  parameters = 61 * 32 + 3 * 32 * 48 + 5 * 48 + 2 * (4 * 144 + 48) + 48 + 3 * 32 * 96 + 3 * 32
  assert sum(parameter.count for parameter in list_parameters(model)) == parameters
  cache = 4 * 48 * 4 + 8
  seconds = memory.decode_seconds(model, batch_size=5, tokens=1000, bandwidth=2e6)
  assert seconds == (4 * parameters + 5 * cache) / 2e6


def test_bandwidth_is_bytes_read_and_written_per_second():
  rate = bandwidth.measured(3, 2**22)
  # No memory moves a petabyte per second, and no copy of 4 MiB takes a second.
  assert 2 * 2**22 < rate < 1e15


def test_the_array_that_bandwidth_is_measured_on_takes_its_own_place(monkeypatch):
  """In place: no page of memory is touched for the first time during the timing."""
  places = set()

  def interleaved(runs, rounds):
    for _ in range(rounds):
      places.add(runs["negate"]().unsafe_buffer_pointer())
    return {"negate": [1.0]}

  monkeypatch.setattr(timing, "interleaved", interleaved)
  assert bandwidth.measured(5) == 2 * 2**28
  assert len(places) == 1


def test_a_share_of_the_floor_that_cannot_be_is_none():
  assert bandwidth.share(50.0, rate=100.0, seconds=1.0) == 0.5
  assert bandwidth.share(103.0, rate=100.0, seconds=1.0) == pytest.approx(1.03)
  assert bandwidth.share(518.0, rate=100.0, seconds=1.0) is None


PARTS = {
  "training": TrainingSpeed(lengths=(8, 16), tokens=32, baseline=BASELINE, rounds=2),
  "kernels": RecurrenceSpeed(shape=(2, 8, 16), batch_size=2, length=8, rounds=2),
  "decoding": DecodeSpeed(
    lengths=(2, 4),
    prefills=(0, 9),
    after=(3, 70),
    steps=2,
    batch_size=2,
    rounds=2,
    baseline=BASELINE,
  ),
  "throughput": Throughput(lengths=(2, 4), batch_sizes=(1, 3), rounds=2, baseline=BASELINE),
  "cache": CacheSize(lengths=(8, 64), baseline=BASELINE),
}
# Two are enough to be timed: a program takes seconds to compile.
TIMED = ("hawk", BASELINE)
FIGURES = {
  "training": {"training-speed": TIMED},
  "kernels": {
    "recurrence-alone": (
      "rg_lru, forward",
      "rg_lru, forward and backward",
      "linear_scan, forward",
      "linear_scan, forward and backward",
    ),
    "recurrence-in-step": ("hawk",),
  },
  "decoding": {
    "sample-latency-0": TIMED,
    "sample-latency-9": TIMED,
    "token-latency": (*TIMED, *(f"{name}, memory-bound model" for name in TIMED)),
  },
  "throughput": {"largest-throughput": TIMED, "throughput-by-batch": TIMED},
  "cache": {"cache-bytes": TIMED},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_draws_its_figures_and_continues_without_measuring_again(name, models):
  part, store, models = PARTS[name], Store(), {name: models[name] for name in TIMED}
  figures = part(models, store)
  assert {f.name: tuple(line.name for line in f.series) for f in figures} == FIGURES[name]
  assert store.measured == list(part.results(models))
  for figure in figures:
    assert Figure.of_record(json.loads(json.dumps(figure.record()))) == figure
    assert figure.finding.endswith(".")
    assert ". " not in figure.finding
    for line in figure.series:
      assert min(line.y) > 0
      if line.low is not None:
        ends = zip(line.low, line.y, line.high, strict=True)
        assert all(low <= y <= high for low, y, high in ends)
      assert (line.low is None) == (line.kind == ESTIMATED or name == "cache")

  again = Store(store.results)
  assert part(models, again) == figures
  assert not again.measured


def test_the_step_time_is_relative_to_the_baseline_at_the_shortest_length(models):
  def result(**seconds):
    return json.dumps({"reference": [2.0] * 6, "models": seconds})

  store = Store(
    {
      "8 tokens": result(griffin=[1.8] * 6, hawk=[1.5, 1.7, 1.6] * 2, transformer=[2.0] * 6),
      "16 tokens": result(griffin=[1.9] * 6, hawk=[1.7, 1.5, 1.6] * 2, transformer=[3.0] * 6),
    }
  )
  (figure,) = PARTS["training"](models, store)
  assert {line.name: line.y for line in figure.series} == {
    "griffin": (0.9, 0.95),
    "hawk": (0.8, 0.8),
    "transformer": (1.0, 1.5),
  }
  assert figure.finding == (
    "With 32 tokens per step, from rows of 8 to 16 tokens, step times relative to "
    "transformer's at 8 change as follows: griffin's from 0.90 to 0.95, hawk's from 0.80 to 0.80 "
    "(no difference seen) and transformer's from 1.00 to 1.50."
  )
  assert not store.measured


def test_a_token_is_held_against_the_memory_bound_model(models):
  bound = memory.decode_seconds(models["hawk"], batch_size=2, tokens=70, bandwidth=1e9)
  part = DecodeSpeed(
    lengths=(2,),
    prefills=(0,),
    after=(3, 70),
    steps=2,
    batch_size=2,
    rounds=6,
    bandwidth=1e9,
    baseline=BASELINE,
  )
  seconds = [2 * 3 * bound] * 6
  results = dict.fromkeys(
    ("samples of 2 tokens after 0", "tokens after 3", "tokens after 70"),
    json.dumps(dict.fromkeys(NAMES, seconds)),
  )
  store = Store(results)
  samples, tokens = part(models, store)
  assert not store.measured
  assert "no difference seen from transformer" in samples.finding
  lines = {line.name: line for line in tokens.series}
  assert lines["hawk, memory-bound model"].y[1] == pytest.approx(1e3 * bound)
  assert lines["hawk, memory-bound model"].kind == ESTIMATED
  assert lines["hawk"].kind == MEASURED
  assert lines["hawk"].y[1] == pytest.approx(3e3 * bound)
  first, last = lines["hawk"].y
  assert f"hawk's from {first:.2f} to {last:.2f} ms (no difference seen)" in tokens.finding
  assert tokens.finding.startswith("From 3 to 70 tokens of context, ")
  assert " times the memory-bound model's." in tokens.finding


class TimedGeneration:
  """Generates until a batch is so large that a real allocation fails."""

  def __init__(self, largest):
    self.largest = largest

  def samples(self, batch_size, prefill, length):
    elements = 1 if batch_size <= self.largest else 2**50
    return lambda: jax.block_until_ready(jnp.zeros(elements))


def test_the_fastest_recurrence_is_compared_with_the_others_alone(models):
  def seconds(reference, associative, cpu):
    return {"reference": reference, "associative": associative, "cpu": cpu}

  slow, fast = [2.0] * 6, [1.0] * 6
  scan = {"forward": seconds(slow, fast, slow), "forward and backward": seconds(fast, slow, slow)}
  lru = {"forward": seconds(fast, fast, slow), "forward and backward": seconds(slow, fast, fast)}
  store = Store(
    {
      "rg_lru": json.dumps(lru),
      "linear_scan": json.dumps(scan),
      "hawk": json.dumps(seconds(slow, fast, slow)),
    }
  )
  alone, in_step = PARTS["kernels"]({"hawk": models["hawk"]}, store)
  assert not store.measured
  assert alone.finding == (
    "On 2 rows of 8 tokens and 16 channels, the fastest is "
    "reference for rg_lru, forward (no difference seen from associative), "
    "associative for rg_lru, forward and backward (0.5 times the time of reference; "
    "no difference seen from cpu), "
    "associative for linear_scan, forward (0.5 times the time of reference) and "
    "reference for linear_scan, forward and backward."
  )
  assert in_step.finding.endswith("associative for hawk (0.5 times the time of reference).")


def test_tokens_per_second_are_told_in_digits(models):
  part = Throughput(lengths=(1000,), batch_sizes=(1,), rounds=6, baseline=BASELINE)
  store = Store({"1 samples of 1000 tokens": json.dumps(dict.fromkeys(models, [0.05] * 6))})
  largest, _ = part(models, store)
  assert f"20,000 for {BASELINE} (batch 1)" in largest.finding


def test_a_batch_that_does_not_fit_in_memory_ends_a_models_line(models):
  part = Throughput(lengths=(8,), batch_sizes=(1, 2, 4), rounds=2, baseline=BASELINE)
  sizes = {"griffin": 4, "hawk": 4, "transformer": 2}
  generations = {name: TimedGeneration(largest) for name, largest in sizes.items()}
  store = Store(
    {
      f"{batch} samples of 8 tokens": json.dumps(part._measure(generations, 8, batch))
      for batch in part.batch_sizes
    }
  )
  _, by_batch = part(models, store)
  assert {line.name: line.x for line in by_batch.series} == {
    "griffin": (1, 2, 4),
    "hawk": (1, 2, 4),
    "transformer": (1, 2),
  }
  with pytest.raises(
    ValueError, match="transformer: not even 4 samples of 8 tokens fit into memory"
  ):
    Throughput(lengths=(8,), batch_sizes=(4,), baseline=BASELINE)(models, store)


class Estimate:
  hardware = "v9-8"

  def __call__(self, model, *, batch_size, length):
    return length * batch_size * (1 + length / 32 * (model.pattern == self.slow))


def test_estimated_steps_are_marked_as_such(models):
  estimate = Estimate()
  estimate.slow = models["transformer"].pattern
  part = EstimatedTrainingSpeed(estimate=estimate, lengths=(8, 16), tokens=32, baseline=BASELINE)
  store = Store()
  (figure,) = part(models, store)
  assert store.measured == list(part.results(models))
  assert {line.kind for line in figure.series} == {ESTIMATED}
  assert {line.name: line.y for line in figure.series} == {
    "griffin": (0.8, 0.8),
    "hawk": (0.8, 0.8),
    "transformer": (1.0, 1.2),
  }
  assert figure.finding.endswith(
    "hawk's from 0.80 to 0.80 (no difference seen) and transformer's from 1.00 to 1.20, as "
    "estimated "
    "for v9-8."
  )


def test_options_that_do_not_fit_are_told(models):
  with pytest.raises(ValueError, match="tokens=32 per step are not a multiple of length 12"):
    TrainingSpeed(lengths=(8, 12), tokens=32)
  with pytest.raises(ValueError, match=r"unknown baseline='MQA Transformer'\. Name one of"):
    TrainingSpeed(lengths=(8,), tokens=8)(models, Store())


def test_a_cache_that_is_thousands_of_times_smaller_is_told_in_digits(models):
  sizes = {name: [1_000] for name in models} | {BASELINE: [2_852_123]}
  (figure,) = CacheSize(lengths=(8,), baseline=BASELINE)(models, lambda key, measure: sizes)
  assert f"(1/2,852 of {BASELINE}'s)" in figure.finding
