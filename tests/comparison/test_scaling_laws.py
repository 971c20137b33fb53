"""Scaling laws: a known law is found again, and what the runs cannot tell is said."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy.optimize import check_grad

from base.errors import UserError
from comparison import scaling_laws
from comparison.page import scaling_laws as figures
from launch import scaling_laws as command

TRUE = scaling_laws.ScalingLaw(1.69, math.log(406.4), 0.34, math.log(410.7), 0.28)
BUDGETS = (1e18, 1e19, 1e20, 1e21)


def trained(noise, budgets=BUDGETS, sizes=7, span=30.0):
  """Runs of TRUE at equal FLOPs, around its best sizes."""
  random = np.random.default_rng(0)
  best = np.array([TRUE.optimum(flops)[0] for flops in budgets])
  n = (best[:, None] * np.geomspace(1 / math.sqrt(span), math.sqrt(span), sizes)).ravel()
  flops = np.repeat(budgets, sizes)
  losses = TRUE.loss(n, flops / 6 / n) * np.exp(noise * random.standard_normal(len(n)))
  return scaling_laws.Trained(n, flops / 6 / n, losses, flops)


def test_an_exact_law_is_found_again():
  found = scaling_laws.fit(trained(0), resamples=20).law
  for name in ("e", "log_a", "alpha", "log_b", "beta"):
    assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)


def test_a_noisy_law_lies_in_its_intervals():
  fitted = scaling_laws.fit(trained(0.003), resamples=40)
  for name, value in figures.VALUES.items():
    found = fitted.interval(value)
    assert found.low < value(TRUE) < found.high, name
    assert found.high - found.low > 0
  assert fitted.tells_constant


def test_the_optimum_is_the_lowest_loss_at_equal_flops():
  n, d = TRUE.optimum(3e20, 7.0)
  assert 7 * n * d == pytest.approx(3e20)
  others = n * np.geomspace(0.5, 2, 101)
  assert np.argmin(TRUE.loss(others, 3e20 / 7 / others)) == 50


def test_profiles_find_the_best_sizes_and_their_exponent():
  found = scaling_laws.profiles(trained(0, span=9.0))
  assert [profile.flops for profile in found] == pytest.approx(BUDGETS)
  for profile in found:
    assert profile.optimum == pytest.approx(TRUE.optimum(profile.flops)[0], rel=0.05)
  assert scaling_laws.profile_exponent(found) == pytest.approx(TRUE.optimal_exponent, abs=0.01)
  # All sizes are too small: the lowest loss is at an edge.
  runs = trained(0)
  small = runs.of(np.flatnonzero(runs.parameters < 0.5 * np.repeat([p.optimum for p in found], 7)))
  assert all(profile.optimum is None for profile in scaling_laws.profiles(small))
  # Three sizes are no profile.
  assert not scaling_laws.profiles(trained(0, sizes=3))


def test_the_gradient_is_that_of_the_objective():
  runs = trained(0.01)
  x = np.array([5.0, 0.3, 5.5, 0.25, 0.3])
  off = check_grad(
    lambda at: float(scaling_laws._objective(at, runs)[0]),
    lambda at: scaling_laws._objective(at, runs)[1],
    x,
  )
  assert off < 1e-4


def test_runs_of_one_narrow_range_do_not_tell_the_constant():
  fitted = scaling_laws.fit(trained(0.01, budgets=(1e18, 2e18), span=4.0), resamples=20)
  assert not fitted.tells_constant
  assert "do not tell E" in figures.says_constant("Hawk", fitted)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda n, d: (n[:5], d[:5]), "5 runs cannot determine"),
    (lambda n, d: (n, 0 * d + 1e9), "the same tokens"),
    (lambda n, d: (n, 20 * n), "proportional to parameters"),
  ],
)
def test_runs_that_determine_nothing_are_told(change, told):
  runs = trained(0)
  n, d = change(runs.parameters, runs.tokens)
  with pytest.raises(scaling_laws.TooFewRuns, match=told):
    scaling_laws.fit(scaling_laws.Trained(n, d, TRUE.loss(n, d), 6 * n * d))


def write(path, rows, names=("parameters", "tokens", "loss", "model")):
  with path.open("w") as file:
    csv.writer(file).writerows([names, *rows])
  return path


def test_the_command_prints_laws_by_model_and_writes_a_page(tmp_path, capsys):
  runs = trained(0.002)
  rows = list(zip(runs.parameters, runs.tokens, runs.losses, strict=True))
  both = [[*row, model] for model in ("Griffin", "Hawk & <co>") for row in rows]
  file = write(tmp_path / "runs.csv", both, ("N", "tokens", "loss", "model"))
  page = tmp_path / "new" / "laws.html"
  arguments = [str(file), "--columns=parameters=N", "--resamples=20", "--budgets=1e22"]
  assert command.main([*arguments, f"--page={page}"]) == 0
  shown = capsys.readouterr().out
  assert shown.count("1e+22") == 2
  assert "Griffin: 4 budgets of equal FLOPs" in shown
  assert "Hawk &amp; &lt;co&gt;" in page.read_text()


@pytest.mark.parametrize(
  ("rows", "options", "told"),
  [
    ([], [], "has no runs"),
    ([[1e6, 1e7, "nan"]], [], r"runs.csv:2: loss is 'nan', not a positive number"),
    ([[1e6]], [], "runs.csv:2 ends before the column of tokens"),
    ([[1e6, 1e7, 3]], ["--columns=parameters=params"], "no column 'params'"),
    ([[1e6, 1e7, 3]], ["--columns=parameter=N"], "did you mean parameters"),
    ([[1e6, 1e7, 3]], ["--columns=loss=tokens"], "tokens and loss cannot both be column 'tokens'"),
    ([[1e6, 1e7, 3]], ["--columns=loss=loss,loss=tokens"], "names loss twice"),
    ([[0.07, 1e9, 3]], [], "parameters is '0.07', not a number from 1 to 1e.30, in ones"),
    ([[1e300, 1e300, 3]], [], "parameters is '1e.300', not a number from 1"),
    ([[1e7, 1e9, 1e-320]], [], "loss is '1e-320', not a number from"),
    ([[1e6, 1e7, 3, 5]], [], "runs.csv:2 has 4 values for 3 columns"),
    ([[1e6, 1e7, 3]], [], "runs: 1 run cannot determine"),
  ],
)
def test_a_table_without_laws_is_told(tmp_path, rows, options, told):
  file = write(tmp_path / "runs.csv", rows, ("parameters", "tokens", "loss"))
  with pytest.raises(UserError, match=told):
    command.main([str(file), *options])


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("parameters,tokens,loss,loss\n1e6,1e7,3,4\n", "has 2 columns 'loss'"),
    ("parameters;tokens;loss\n1e6;1e7;3\n", "columns are separated by ';'"),
    ("", "has no column 'parameters'. Name it"),
  ],
)
def test_a_file_that_is_read_wrongly_by_guessing_is_told(tmp_path, text, told):
  file = tmp_path / "runs.csv"
  file.write_text(text)
  with pytest.raises(UserError, match=told):
    command.main([str(file)])


def test_a_model_with_few_runs_leaves_the_others_their_laws(tmp_path, capsys):
  runs = trained(0.002)
  rows = [[*row, " a"] for row in zip(runs.parameters, runs.tokens, runs.losses, strict=True)]
  text = "".join(",".join(map(str, row)) + "\n" for row in [*rows, [1e7, 1e9, 3, "b\x1b[1m"]])
  file = tmp_path / "runs.csv"
  file.write_text(f"\ufeffparameters, tokens, loss, model\n{text}")
  assert command.main([str(file), "--resamples=20", "--budgets=1e22"]) == 0
  printed = capsys.readouterr()
  assert "b\\x1b[1m is left out: 1 run cannot" in printed.err
  assert printed.out.count("1e+22") == 1


def test_a_law_without_an_optimum_has_numbers():
  flat = scaling_laws.ScalingLaw(3.0, 700.0, 1e-3, -5.0, 1e-3)
  assert flat.optimum(6e18) == (pytest.approx(1e18), pytest.approx(1))
  assert flat.optimum(6e-3) == (pytest.approx(1), pytest.approx(1e-3))
