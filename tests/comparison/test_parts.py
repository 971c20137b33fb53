"""The measurements of trained models state the right findings for known losses."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from comparison.page.figure import FITTED, Figure
from comparison.quality.held_out_loss import HeldOutLoss
from comparison.quality.long_context import LongContext
from comparison.quality.recall_of_runs import RecallOfRuns
from comparison.quality.scaling import Scaling
from comparison.quality.state_carry import StateCarry
from comparison.quality.window_size import WindowSize
from data.recall import InductionHeads
from data.recall_text import Needle
from evaluation.perplexity import Score
from evaluation.recall import Recalled

BASE = "MQA Transformer"
NOISE = {0: 0.0, 1: 0.004, 2: -0.005}


@dataclasses.dataclass(frozen=True)
class KnownRun:
  """A run whose losses follow a formula."""

  parameters: int
  flops: float
  tokens: int
  length: int
  curve: dict[int, float]
  slope: float

  def score(self, *, length, tokens):
    """Loss changes by the slope with every doubling of the position."""
    positions = np.arange(1, length + 1)
    losses = 3 + self.slope * np.log2(positions)
    return Score(losses * 7, np.full(length, 7), 7 * length)

  def recall(self, task, questions):
    """Answers are right in the last third of the context; in the last sixth if the loss rises."""
    depth = (np.arange(questions) + 0.5) / questions
    return Recalled(
      correct=depth > (2 / 3 if self.slope < 0 else 5 / 6),
      example=np.arange(questions),
      position=np.zeros(questions, np.int64),
      distance=np.ones(questions, np.int64),
      depth=depth,
      length=np.full(questions, task.length),
    )


@dataclasses.dataclass
class KnownRuns:
  """Griffin is better than the baseline by `gain`, with the same noise for equal seeds."""

  gain: float = 0.05
  own_noise: float = 0.001
  models: tuple[str, ...] = ("Griffin", BASE)
  sizes: tuple[str, ...] = ("1k", "4k", "16k")
  seeds: tuple[int, ...] = (0, 1, 2)
  slopes: tuple[float, ...] = (-0.02, 0.1)
  trained: list = dataclasses.field(default_factory=list)

  def train(self, spec):
    self.trained.append(spec)
    flops = 10.0 ** (9 + self.sizes.index(spec.size))
    tokens = 1000 * 4 ** self.sizes.index(spec.size)
    own = self.own_noise * (-1) ** spec.seed * (spec.model == "Griffin")
    loss = 20 * flops**-0.1 - self.gain * (spec.model == "Griffin") + NOISE[spec.seed] + own
    loss -= 0.001 * (spec.window or 0)
    curve = {tokens // 4: loss + 1, tokens // 2: loss + 0.5, tokens: loss}
    slope = self.slopes[self.models.index(spec.model)] - 0.01 * len(spec.choices)
    return KnownRun(100, flops, tokens, spec.length or 64, curve, slope + own)

  def require_recall(self, spec, task, questions):
    """Every task can be asked."""


def measure(part, runs):
  """Calls the measurement as a comparison does; it measures exactly the results that it planned."""
  asked = []

  def cached(key, measure):
    asked.append(key)
    return measure()

  figures = part(runs, cached)
  assert asked == list(part.results(runs))
  for figure in figures:
    assert Figure.of_record(figure.record()) == figure
  return {figure.name: figure for figure in figures}


def test_unequal_parameters_of_loaded_runs_are_told():
  class Opened(KnownRuns):
    def train(self, spec):
      run = super().train(spec)
      opened = spec.model == "Griffin" and spec.size == "4k" and spec.seed == 1
      return dataclasses.replace(run, parameters=4_800_000) if opened else run

  figure = measure(Scaling(baseline=BASE), Opened())["scaling_difference"]
  told = f"At 4k the parameters differ: Griffin 100 or 4,800,000, {BASE} 100."
  assert told in figure.finding
  conditions = dict(figure.conditions)
  assert conditions["1k:"].startswith("100 parameters (Griffin +0.0%)")
  assert conditions["4k:"].startswith("100 parameters (Griffin +0.0% or +4799900.0%)")


def test_unequal_tokens_are_told_and_never_called_equal():
  class Opened(KnownRuns):
    def train(self, spec):
      run = super().train(spec)
      opened = spec.model == "Griffin" and spec.size == "4k" and spec.seed == 1
      return dataclasses.replace(run, tokens=4 * run.tokens) if opened else run

  figure = measure(Scaling(baseline=BASE), Opened())["scaling_difference"]
  assert "at unequal tokens" in figure.title
  assert f"At 4k the tokens differ: Griffin 4,000 or 16,000, {BASE} 4,000." in figure.finding
  conditions = dict(figure.conditions)
  assert f"Griffin 4,000 or 16,000, {BASE} 4,000 tokens" in conditions["4k:"]
  assert conditions["1k:"].endswith(", 1,000 tokens")
  equal = measure(Scaling(baseline=BASE), KnownRuns())["scaling_difference"]
  assert "parameters differ" not in figure.finding
  assert equal.title.endswith("at equal tokens")
  assert "differ:" not in equal.finding


def test_scaling_finds_the_gain_and_the_exponents():
  runs = KnownRuns(gain=0.0)
  figures = measure(Scaling(baseline=BASE), runs)
  assert set(figures) == {
    "scaling_difference",
    "scaling_flops",
    "scaling_equal_flops",
    "scaling_tokens",
    "training_curves",
  }
  fit = figures["scaling_flops"]
  assert [series.kind for series in fit.series].count(FITTED) == 2
  measured, fitted = fit.series[2:]
  np.testing.assert_allclose(fitted.y[0], measured.y[0], rtol=2e-3)
  assert "MQA Transformer \N{MINUS SIGN}0.100 (" in fit.finding
  assert "no difference seen" in figures["scaling_difference"].finding


def test_differences_of_all_parts_are_noted():
  figures = measure(Scaling(baseline=BASE), KnownRuns(gain=0.05))
  noted = {name: len(figure.differences) for name, figure in figures.items()}
  # Three sizes; the exponents; the last size.
  assert noted == {
    "scaling_difference": 3,
    "scaling_flops": 1,
    "scaling_equal_flops": 1,
    "scaling_tokens": 1,
    "training_curves": 1,
  }
  few = measure(Scaling(baseline=BASE), KnownRuns(seeds=(0, 1)))
  assert not any(figure.differences for figure in few.values())


def test_a_gain_is_claimed_only_where_the_seeds_show_it():
  clear = measure(Scaling(baseline=BASE), KnownRuns(gain=0.05))["scaling_difference"]
  assert "Griffin against MQA Transformer: lower at 1k (\N{MINUS SIGN}0.050), 4k (" in clear.finding
  # The differences of the seeds are -0.004, -0.006, -0.004 from their noise.
  blurred = measure(Scaling(baseline=BASE), KnownRuns(gain=0.0, own_noise=0.01))
  assert "no difference seen at 1k, 4k, 16k." in blurred["scaling_difference"].finding
  few = measure(Scaling(baseline=BASE), KnownRuns(gain=0.5, seeds=(0, 1)))
  assert "too few seeds" in few["scaling_difference"].finding


def test_every_figure_names_seeds_sizes_tokens_and_spread():
  for figure in measure(Scaling(baseline=BASE), KnownRuns()).values():
    conditions = " ".join(f"{name} {value}" for name, value in figure.conditions)
    assert "16,000 tokens" in conditions
    assert "0, 1, 2" in conditions
    assert "over 3 seeds" in figure.spread


def test_long_context_tells_who_falls_beyond_the_training_length():
  runs = KnownRuns()
  figures = measure(LongContext(size="4k", lengths=(64, 256), factor=4), runs)
  assert {spec.length for spec in runs.trained} == {64, 256}
  assert set(figures) == {"long_context_64", "long_context_256"}
  figure = figures["long_context_64"]
  # From positions 32-63 to 512-1023: four doublings.
  # Griffin's slopes are -0.019, -0.021 and -0.019; within a bucket the loss is not quite straight.
  assert re.search(r"Griffin falls by 0\.07[89]", figure.finding)
  assert re.search(r"MQA Transformer rises by 0\.(399|400)", figure.finding)
  assert figure.x.marks == ((64, "training length"),)
  assert max(figure.series[0].x) == (512 + 1024) / 2
  level = measure(LongContext(size="4k", lengths=(64,), factor=4), KnownRuns(slopes=(0.0, 0.0)))
  assert "Griffin shows no difference" in level["long_context_64"].finding


def test_ways_to_begin_rows_are_compared_at_the_last_positions():
  ways = {"alone": [], "carried": ["carried.gin"], "passed": ["passed.gin", "AFTER = 9"]}
  part = StateCarry(size="4k", ways=ways, scored_length=1024)
  runs = KnownRuns()
  figures = measure(part, runs)
  assert set(figures) == {"state_carry_griffin", "state_carry_mqa_transformer"}
  assert len({str(spec) for spec in runs.trained}) == len(runs.trained) == 18
  figure = figures["state_carry_griffin"]
  assert [series.name for series in figure.series] == list(ways)
  # Ten doublings of the position, a hundredth less each.
  assert re.search(r"carried has a lower loss than alone by 0\.09[56]", figure.finding)
  assert re.search(r"passed has a lower loss than alone by 0\.19[12]", figure.finding)
  # From positions 32-63 to 512-1023.
  assert re.search(r"alone falls by 0\.07[89]", figure.finding)
  assert figure.x.marks == ((64, "training row"),)
  with pytest.raises(ValueError, match="scored_length=64 must be above the 64 tokens"):
    measure(dataclasses.replace(part, scored_length=64), runs)


def test_windows_are_compared_with_each_other_and_with_the_baseline():
  part = WindowSize(size="4k", model="Griffin", windows=(8, 16, 32), baseline=BASE)
  figure = measure(part, KnownRuns())["window_size"]
  assert "a window of 32 has a lower loss than one of 8 by 0.024" in figure.finding
  assert "Griffin with its best window (32) has a lower loss than MQA Transformer" in figure.finding
  assert figure.series[0].x == (8, 16, 32)
  assert len(set(figure.series[1].y)) == 1


def test_recall_of_trained_models_tells_who_recalls_and_at_which_depth_they_fail():
  part = RecallOfRuns(
    task=Needle(), size="4k", lengths=(64, 128), baseline=BASE, questions=120, kind="depth"
  )
  runs = KnownRuns()
  figures = measure(part, runs)
  assert {(spec.size, spec.length) for spec in runs.trained} == {("4k", None)}
  by_length = figures["needle_by_length"]
  assert by_length.series[0].y == pytest.approx((1 / 3, 1 / 3))
  assert "Griffin is above MQA Transformer by 0.17" in by_length.finding
  assert ("size", "4k (4,000 training tokens of text)") in by_length.conditions
  by_depth = figures["needle_by_depth"]
  assert by_depth.series[0].y[-3:] == (1, 1, 1)
  assert by_depth.series[1].y[-3:] == (0, pytest.approx(2 / 3), 1)
  assert "Griffin is worst (0%) at 0" in by_depth.finding


def test_curves_of_models_are_compared_where_all_were_evaluated():
  """Whatever the batch sizes: the first model's evaluation is at other tokens than the second's."""

  class Unequal(KnownRuns):
    places = ((100, 200, 300, 600), (150, 300, 450, 600, 750))

    def train(self, spec):
      places = self.places[self.models.index(spec.model)]
      # A loss of the tokens alone: at equal tokens there is no difference.
      curve = {tokens: 5 - tokens / 1000 + NOISE[spec.seed] for tokens in places}
      return dataclasses.replace(super().train(spec), tokens=places[-1], curve=curve)

  figure = measure(Scaling(baseline=BASE), Unequal(sizes=("1k",)))["training_curves"]
  assert "After 600 tokens" in figure.finding
  assert "no difference seen between Griffin and MQA Transformer (+0.000" in figure.finding
  apart = Unequal(sizes=("1k",))
  apart.places = ((100, 200, 300), (101, 201, 301))
  figure = measure(Scaling(baseline=BASE), apart)["training_curves"]
  assert figure.finding.endswith("no loss compares.")


@dataclasses.dataclass(frozen=True)
class RecordedRun(KnownRun):
  """A run with the losses that it recorded."""

  recorded: dict[int, float] = dataclasses.field(default_factory=dict)

  def scores(self, *, length, tokens, batch_tokens):
    return [self.score(length=length, tokens=tokens)]


@dataclasses.dataclass
class RecordedRuns(KnownRuns):
  """Runs with given records, by model and seed."""

  records: dict = dataclasses.field(default_factory=dict)

  def train(self, spec):
    record = self.records[spec.model]
    record = record[spec.seed] if isinstance(record, list) else record
    tokens = max(record or (), default=0) if record is not None else 0
    known = super().train(spec)
    fields = dataclasses.asdict(known) | {"tokens": tokens, "flops": 10.0 * tokens}
    return RecordedRun(**fields, recorded=record or {})


@pytest.mark.parametrize(
  ("records", "finding"),
  [
    # At the ends B is lower, after three times the tokens.
    (
      {"A": {100: 3.0, 200: 2.5}, "B": {100: 3.5, 200: 3.25, 600: 2.0}},
      "After 200 tokens, from the lowest: A 2.5000, B 3.2500. "
      "The last were recorded at unequal tokens: A after 200, B after 600.",
    ),
    (
      {"A": {100: 3.0, 200: 2.5}, "B": {200: 2.0}},
      "After 200 tokens, from the lowest: B 2.0000, A 2.5000.",
    ),
    (
      {"A": {100: 3.0, 200: 2.5}, "B": {150: 2.0}},
      "The last recorded: A 2.5000 after 200 tokens, B 2.0000 after 150 tokens. "
      "They recorded none after the same number of tokens, so none is lowest.",
    ),
    (
      {"A": {100: 3.0, 200: 2.5}, "B": None},
      "The last recorded: A 2.5000 after 200 tokens. "
      "Left out: B (imported weights: there is no record of their training).",
    ),
    (
      {"A": {100: 3.0}, "B": {100: float("nan")}},
      "The last recorded: A 3.0000 after 100 tokens. "
      "Left out: B (a run recorded no finite held-out loss).",
    ),
    (
      {"A": [{100: 3.0}, {100: 4.0}], "B": [{100: 3.0}, {200: 2.0}]},
      "The last recorded: A 3.5000 after 100 tokens. "
      "Left out: B (its seeds recorded none after the same number of tokens).",
    ),
  ],
)
def test_recorded_losses_are_compared_at_equal_tokens_and_who_is_left_out_is_told(records, finding):
  seeds = (0, 1) if isinstance(records["A"], list) else (0,)
  runs = RecordedRuns(models=("A", "B"), sizes=("1k",), seeds=seeds, records=records)
  figures = measure(HeldOutLoss(baseline="A", length=16), runs)
  assert figures["recorded_loss"].finding == finding
  # The text is too short for two parts.
  few = "seeds" if len(seeds) > 1 else "parts of text"
  told = figures["held_out_difference"].finding
  assert told.startswith(f"In bits per byte: too few {few} to claim a difference between B and A")
  is_imported = records["B"] is None
  by_flops = figures["held_out_by_flops"].finding
  assert by_flops.endswith("the FLOPs of imported weights are unknown: B.") == is_imported


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (
      lambda: RecallOfRuns(task=InductionHeads(), size="4k", lengths=(64,), baseline=BASE),
      "induction-heads is not a task with generated answers",
    ),
    (
      lambda: RecallOfRuns(task=Needle(), size="4k", lengths=(64,), baseline="Mamba").results(
        KnownRuns()
      ),
      "unknown model: 'Mamba'",
    ),
    (lambda: LongContext(size="4k", lengths=(64, 32)), "must be ascending"),
    (lambda: LongContext(size="4k", lengths=(64,), factor=1), "must be at least 2"),
    (
      lambda: WindowSize(size="4k", model="Griffin", windows=(8,), baseline=BASE),
      "at least two",
    ),
    (lambda: Scaling(baseline="Mamba").results(KnownRuns()), "unknown model: 'Mamba'"),
    (lambda: Scaling(baseline=BASE).results(KnownRuns(models=(BASE,))), "no model but"),
    (lambda: StateCarry(size="4k", ways={"alone": []}), "at least two, to compare"),
    (lambda: LongContext(size="9k", lengths=(64,)).results(KnownRuns()), "unknown size: '9k'"),
  ],
)
def test_options_that_make_no_sense_are_refused(make, told):
  with pytest.raises(ValueError, match=told):
    make()
