"""Losses at equal FLOPs are those of each run's power law, where it is one and was trained."""

import dataclasses

import pytest

from comparison.page import verdict
from comparison.page.figure import FITTED
from comparison.quality.scaling import Scaling
from tests.comparison.test_parts import BASE, KnownRuns, measure


def test_losses_are_compared_at_equal_flops_where_the_models_have_others():
  class Cheaper(KnownRuns):
    def train(self, spec):
      run = super().train(spec)
      return dataclasses.replace(run, flops=run.flops / (4 if spec.model == "Griffin" else 1))

  figure = measure(Scaling(baseline=BASE), Cheaper(gain=0.0))["scaling_equal_flops"]
  (found,) = verdict.verdicts([figure], KnownRuns.models)
  assert found.question.text == "held-out loss at 2.5·10¹⁰ FLOPs"
  griffin, baseline = found.answers
  # The noise moves both alike: the loss is 20 FLOPs^-0.1, and Griffin needs a quarter of the FLOPs.
  assert griffin.value == pytest.approx(20 * 1e11**-0.1, rel=0.003)
  assert baseline.value == pytest.approx(20 * 2.5e10**-0.1, rel=0.003)
  assert griffin.kind == FITTED
  assert f"Griffin is below {BASE} by" in figure.finding
  assert [one.text for one in figure.differences] == [f"Griffin minus {BASE}"]


def with_flops(change, **options):
  """The figures of scaling, with the FLOPs of each run changed by a function of spec and FLOPs."""

  class Changed(KnownRuns):
    def train(self, spec):
      run = super().train(spec)
      return dataclasses.replace(run, flops=change(spec, run.flops))

  return measure(Scaling(baseline=BASE), Changed(**options))


def test_losses_at_equal_flops_are_not_read_outside_of_what_was_trained():
  far = with_flops(lambda spec, flops: flops * (1000 if spec.model == "Griffin" else 1))
  assert "scaling_flops" in far
  assert "scaling_equal_flops" not in far
  # The size with the most need not be the last.
  turned = with_flops(lambda spec, flops: 1e20 / flops, gain=0.0)
  assert turned["scaling_equal_flops"].series[0].x == ("10¹¹ FLOPs",)


def test_losses_at_equal_flops_are_not_told_where_sizes_have_equal_flops():
  same = with_flops(lambda spec, flops: 1e9 * (1.001 if spec.size == "4k" else flops / 1e9))
  assert "scaling_flops" in same
  assert "scaling_equal_flops" not in same


def test_losses_at_equal_flops_follow_each_seed_s_own():
  """A loaded run may have other FLOPs."""

  class Loaded(KnownRuns):
    def train(self, spec):
      run = super().train(spec)
      if spec.model != BASE or spec.seed != 1:
        return run
      # On the same law, further on.
      curve = {
        n: y - 20 * run.flops**-0.1 + 20 * (3 * run.flops) ** -0.1 for n, y in run.curve.items()
      }
      return dataclasses.replace(run, flops=3 * run.flops, curve=curve)

  (plain, loaded) = (
    measure(Scaling(baseline=BASE), runs)["scaling_equal_flops"]
    for runs in (KnownRuns(gain=0.0), Loaded(gain=0.0))
  )
  for one, other in zip(plain.series, loaded.series, strict=True):
    assert one.y == pytest.approx(other.y, rel=1e-3)
