"""Intervals, differences and power laws, against other programs, textbooks and simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats

from comparison import shares
from comparison.statistics import (
  Interval,
  interval,
  paired_difference,
  power_law,
  says_difference,
)

# Student (1908), The probable error of a mean: additional hours of sleep under two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def says(difference):
  return says_difference("A", "B", difference, lower="is below", higher="is above")


def test_students_own_data_give_his_interval():
  found = paired_difference(SECOND, FIRST)
  assert (found.mean, found.count) == (pytest.approx(1.58), 10)
  # As every textbook that uses the data prints it.
  assert (round(found.low, 4), round(found.high, 4)) == (0.7001, 2.4599)


def test_intervals_are_those_of_scipy():
  expected = scipy.stats.ttest_rel(SECOND, FIRST).confidence_interval(0.9)
  found = paired_difference(SECOND, FIRST, confidence=0.9)
  np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)


def test_intervals_of_three_seeds_cover_the_truth_as_often_as_they_say():
  source = np.random.default_rng(0)
  samples = source.normal(2.0, 0.3, (4000, 3))
  found = [interval(sample) for sample in samples]
  covered = np.mean([one.low <= 2.0 <= one.high for one in found])
  # Four standard errors of a share of 0.95 in 4000.
  assert covered == pytest.approx(0.95, abs=0.014)
  # Why it is not a percentile bootstrap: that covers far less.
  means = np.sort(samples[:, source.integers(0, 3, (400, 3))].mean(axis=2), axis=1)
  bootstrap = np.mean((means[:, 9] <= 2.0) & (means[:, 389] >= 2.0))
  assert bootstrap < 0.85


def test_a_difference_is_claimed_falsely_in_one_case_of_twenty():
  source = np.random.default_rng(1)
  common = source.normal(size=(4000, 3))
  first, second = common + 0.01 * source.normal(size=(2, 4000, 3))
  claimed = [paired_difference(*pair).excludes_zero for pair in zip(first, second, strict=True)]
  assert np.mean(claimed) == pytest.approx(0.05, abs=0.014)


def test_pairing_removes_what_seeds_have_in_common():
  source = np.random.default_rng(2)
  common = source.normal(size=3)
  first, second = common + 0.1, common + source.normal(0, 1e-3, 3)
  assert paired_difference(first, second).excludes_zero
  width = interval(first).high - interval(first).low
  paired = paired_difference(first, second)
  assert paired.high - paired.low < width / 50


def test_one_value_has_no_interval_and_supports_no_claim():
  found = interval([3.0])
  assert (found.low, found.high) == (3.0, 3.0)
  assert not found.supports_claim
  assert not interval([1.0, 1.1]).excludes_zero


@pytest.mark.parametrize(
  ("difference", "told"),
  [
    (
      Interval(-0.031, -0.05, -0.012, 3),
      "A is below B by 0.031 (\N{MINUS SIGN}0.050 to \N{MINUS SIGN}0.012)",
    ),
    (Interval(0.031, 0.012, 0.05, 3), "A is above B by 0.031 (+0.012 to +0.050)"),
    (
      Interval(-0.01, -0.03, 0.01, 3),
      "no difference seen between A and B (\N{MINUS SIGN}0.030 to +0.010)",
    ),
    (Interval(0.5, 0.4, 0.6, 2), "too few seeds to claim a difference between A and B (+0.500)"),
  ],
)
def test_sentences_say_what_the_interval_allows(difference, told):
  assert says(difference) == told


def test_a_power_law_is_found_exactly_where_there_is_one():
  x = [1e9, 4e9, 3e10]
  y = [[5.0 * value**-0.07 for value in x], [6.0 * value**-0.05 for value in x]]
  found = power_law(x, y)
  np.testing.assert_allclose(found.exponents, [-0.07, -0.05], rtol=1e-9)
  np.testing.assert_allclose(np.exp(found.log_coefficients), [5.0, 6.0], rtol=1e-8)
  assert found.at(4e9).mean == pytest.approx((y[0][1] * y[1][1]) ** 0.5, rel=1e-9)


def test_a_power_law_is_scipys_regression_of_logarithms():
  source = np.random.default_rng(3)
  x = np.asarray([1.0, 3.0, 10.0, 50.0])
  y = 2 * x**-0.3 * np.exp(source.normal(0, 0.05, (1, 4)))
  expected = scipy.stats.linregress(np.log(x), np.log(y[0]))
  found = power_law(x, y)
  assert found.exponents[0] == pytest.approx(expected.slope, rel=1e-12)
  assert found.log_coefficients[0] == pytest.approx(expected.intercept, rel=1e-12)


def test_exponents_cover_the_truth_as_often_as_they_say():
  source = np.random.default_rng(4)
  x = np.asarray([1.0, 4.0, 16.0])
  y = 3 * x**-0.1 * np.exp(source.normal(0, 0.01, (2000, 3, 3)))
  found = [power_law(x, values).exponent for values in y]
  covered = np.mean([one.low <= -0.1 <= one.high for one in found])
  assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
  ("call", "told"),
  [
    (lambda: interval([]), "at least one finite value"),
    (lambda: interval([1.0, float("nan")]), "at least one finite value"),
    (lambda: paired_difference([1.0], [1.0, 2.0]), "1 and 2 values cannot be paired"),
    (lambda: power_law([2.0, 2.0], [[1.0, 1.0]]), "two different x"),
    (lambda: power_law([1.0, 2.0], [[1.0, -1.0]]), "positive"),
  ],
)
def test_what_cannot_be_computed_is_refused(call, told):
  with pytest.raises(ValueError, match=told):
    call()


def test_intervals_of_shares_are_wilson_s_and_hold_those_of_seeds():
  # Newcombe 1998, table I: 81 of 263, and 0 of 20.
  found = shares.wilson(81 / 263, 263)
  assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
  none = shares.wilson(0.0, 20)
  assert (none.low, none.high) == pytest.approx((0, 0.1611), abs=5e-5)
  assert shares.wilson(1.0, 3).high == 1
  # Three seeds that are wrong everywhere: the questions alone say how sure that is.
  assert shares.of_seeds([0.0] * 3, 20) == dataclasses.replace(none, count=3)
  seeds = shares.of_seeds([0.2, 0.5, 0.8], 10_000)
  assert (seeds.low, seeds.high) == pytest.approx((0, 1), abs=1e-9)
  with pytest.raises(ValueError, match=r"a share of 1\.5"):
    shares.wilson(1.5, 3)
