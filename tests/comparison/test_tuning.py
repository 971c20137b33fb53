"""Each model's settings are searched on other text than the figures are of."""

import dataclasses
import json
import math

import pytest

from base.errors import UserError
from comparison import scaling_law_runs
from comparison.comparison import Comparison, load
from comparison.page import verdict
from comparison.page.figure import Figure
from comparison.progress import ComparisonProgress
from comparison.quality.tuning import Tuning
from comparison.runs import TrainedRuns
from experiment import experiment
from experiment.trust import NOBODY
from launch import compare
from tests.comparison.test_parts import BASE, KnownRuns
from training.record import TrainingError

RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TEXTS = {"validation": ("validation.gin",), "test": ("test.gin",)}


@dataclasses.dataclass
class TrialRuns(KnownRuns):
  """The loss grows with the distance to a rate that is each model's best."""

  sizes: tuple[str, ...] = ("1k",)
  best: tuple[float, ...] = (2e-3, 4e-3)
  too_high: float = math.inf

  def train(self, spec):
    setting = dict(choice.split(" = ") for choice in spec.choices if " = " in choice)
    rate = float(setting["LEARNING_RATE"])
    if rate > self.too_high:
      raise TrainingError("not finite")
    run = super().train(dataclasses.replace(spec, seed=0, choices=()))
    self.trained[-1] = spec
    off = math.log2(rate / self.best[self.models.index(spec.model)]) ** 2
    off += 0.1 * float(setting.get("WEIGHT_DECAY", 0))
    return dataclasses.replace(run, curve={10: 4 - spec.trial + 0.1 * off}, flops=spec.trial * 1e9)

  def flops(self, spec):
    return spec.trial * 1e9


def search(part, runs):
  """The chosen settings, the figures, and the keys that were asked for."""
  keys = []

  def cached(key, measure):
    if key not in keys:
      keys.append(key)
    return json.loads(json.dumps(measure()))

  figures = part(runs, cached)
  chosen = {model: part.tuned(model, "1k", runs, cached) for model in runs.models}
  assert set(keys) <= part.possible(runs).keys()
  assert set(part.results(runs)) <= set(keys)
  for figure in figures:
    assert Figure.of_record(figure.record()) == figure
  return chosen, figures, keys


def test_each_model_gets_its_best_rate_by_halving():
  runs = TrialRuns()
  chosen, (figure, *_), keys = search(Tuning(**TEXTS, rates=RATES), runs)
  assert [dict(chosen[model].best)["LEARNING_RATE"] for model in runs.models] == [2e-3, 4e-3]
  # Four rates for a quarter of the steps, two for half of them.
  assert [len(found) for found in chosen[BASE].rounds] == [4, 2]
  assert chosen[BASE].flops == pytest.approx(4 * 0.25e9 + 2 * 0.5e9)
  assert len(keys) == 2 * 6
  assert {spec.seed for spec in runs.trained} == {100}
  assert all("validation.gin" in spec.choices for spec in runs.trained)
  assert "Griffin 0.002; MQA Transformer 0.004." in figure.finding
  assert figure.series[1].x == RATES
  assert dict(figure.conditions)["search FLOPs"] == "2e+09 to 2e+09 for each model"


def test_a_rate_at_the_edge_is_looked_behind_once_and_told():
  chosen, (figure, *_), keys = search(Tuning(**TEXTS, rates=RATES), TrialRuns(best=(5e-4, 1.0)))
  assert [len(found) for found in chosen["Griffin"].rounds] == [5, 2]
  assert dict(chosen["Griffin"].best)["LEARNING_RATE"] == 5e-4
  assert dict(chosen[BASE].best)["LEARNING_RATE"] == 16e-3
  assert sum("0.016" in key for key in keys) == 2
  assert figure.finding.count("the edge of the grid") == 2


@pytest.mark.parametrize("best", [2e-3, 5e-4], ids=["inside", "behind the edge"])
def test_the_better_half_of_three_rates_is_two_wherever_the_best_is(best):
  chosen, *_ = search(Tuning(**TEXTS, rates=RATES[:3]), TrialRuns(best=(best, 2e-3)))
  assert [len(found) for found in chosen["Griffin"].rounds] == [3 + (best < RATES[0]), 2]
  assert dict(chosen["Griffin"].best)["LEARNING_RATE"] == best


def test_rates_that_diverge_are_not_chosen_and_not_drawn():
  runs = TrialRuns(best=(8e-3, 2e-3), too_high=3e-3)
  chosen, (figure, *_), _ = search(Tuning(**TEXTS, rates=RATES), runs)
  assert dict(chosen["Griffin"].best)["LEARNING_RATE"] == 2e-3
  assert figure.series[0].x == (1e-3, 2e-3)
  # Four trials of a quarter of the steps, of which two diverged, and two of half of them.
  assert chosen["Griffin"].flops == pytest.approx(4 * 0.25e9 + 2 * 0.5e9)
  with pytest.raises(UserError, match=r"Griffin, 1k: every learning rate of 0.001, .* smaller"):
    search(Tuning(**TEXTS, rates=RATES), TrialRuns(too_high=1e-4))


def test_how_much_the_next_rate_costs_is_a_row_of_the_table():
  models = TrialRuns.models
  _, (*_, figure), _ = search(Tuning(**TEXTS, rates=RATES), TrialRuns())
  # The loss grows by 0.1 for the square of factors of two.
  assert [series.y for series in figure.series] == [pytest.approx((0.1,))] * 2
  (found,) = verdict.verdicts([figure], models)
  assert [answer.value for answer in found.answers] == pytest.approx([0.1, 0.1])
  assert found.best is None
  assert "At 1k the loss rises by, in nats per token: Griffin 0.100, " in figure.finding
  runs = TrialRuns(best=(2e-3, 1e-3), too_high=3e-3)
  _, (*_, figure), _ = search(Tuning(**TEXTS, rates=RATES), runs)
  assert [series.name for series in figure.series] == [BASE]
  assert figure.finding.endswith("A rate beside the best one diverged, or was not tried: Griffin.")


def test_a_best_rate_at_the_edge_has_no_sensitivity_of_one_side():
  # Behind the grid's last rate one more is tried, 16e-3, which is the best: nothing lies beyond.
  runs = TrialRuns(best=(16e-3, 4e-3))
  _, (*_, figure), _ = search(Tuning(**TEXTS, rates=RATES), runs)
  assert [series.name for series in figure.series] == [BASE]
  assert figure.finding.endswith("was not tried: Griffin.")


def test_shares_of_almost_the_same_percent_are_two_rounds():
  chosen, _, keys = search(Tuning(**TEXTS, rates=RATES, shares=(0.251, 0.254)), TrialRuns())
  assert [len(found) for found in chosen[BASE].rounds] == [4, 2]
  assert chosen[BASE].flops == pytest.approx(4 * 0.251e9 + 2 * 0.254e9)
  assert "Griffin, 1k, learning rate 0.001, 25.1% of the steps" in keys


def test_other_macros_are_combined_with_the_rates():
  part = Tuning(**TEXTS, rates=RATES, others={"WEIGHT_DECAY": (0.1, 0.0)})
  chosen, (figure, *_), _ = search(part, TrialRuns())
  assert dict(chosen[BASE].best) == {"LEARNING_RATE": 4e-3, "WEIGHT_DECAY": 0.0}
  assert [len(found) for found in chosen[BASE].rounds] == [8, 4]
  assert "MQA Transformer 0.004, WEIGHT_DECAY 0.0" in figure.finding


@pytest.mark.parametrize(
  ("options", "told"),
  [
    ({"rates": (1e-3,)}, "at least two"),
    ({"rates": (2e-3, 1e-3)}, "ascending"),
    ({"shares": ()}, "shares"),
    ({"shares": (0.5, 0.25)}, "ascending"),
    ({"others": {"LEARNING_RATE": (1e-3,)}}, "another macro"),
    ({"others": {"WEIGHT_DECAY": ()}}, "with values"),
    ({"test": TEXTS["validation"]}, "the same text"),
  ],
)
def test_searches_that_cannot_be_made_are_refused(options, told):
  with pytest.raises(ValueError, match=told):
    Tuning(**{"rates": RATES} | TEXTS | options)


@pytest.fixture(scope="module")
def tuned(folder):
  """A comparison that searches the rate of one model."""
  text = (folder / "tiny.gin").read_text()
  text += "include 'compare/parts/tuning.gin'\nRATES = (1e-3, 4e-3)\nSEEDS = (0,)\n"
  text += f"MODELS = {{'Griffin': ['models/griffin.gin', '{folder}/pattern.gin', 'STEPS = 8', "
  text += "'LEARNING_RATE = 1.0']}\nPARTS = {'long_context': %LONG_CONTEXT}\n"
  file = folder / "tuned.gin"
  file.write_text(text)
  return file


def test_seeds_are_trained_at_the_chosen_rate_and_scored_on_the_other_half(folder, tuned, capsys):
  output = folder / "tuned"
  assert compare.main([str(tuned), f"--output={output}", "--only=long_context"]) == 0
  shown = capsys.readouterr().out
  data = json.loads((output / "report" / "data.json").read_text())
  assert list(data["parts"]) == ["tuning", "long_context"]
  configs = {run.name: (run / "config.gin").read_text() for run in (output / "runs").iterdir()}
  trials = [text for name, text in configs.items() if "seed-100" in name]
  (final,) = [text for name, text in configs.items() if "seed-100" not in name]
  assert len(trials) == 3  # One behind the edge; of one setting there is no better half.
  for text in trials:
    assert "half = 'validation'" in text
    assert "\nSTEPS = 2" in text
    assert "\nWARMUP_STEPS = 0" in text
  assert "half = 'test'" in final
  assert "STEPS = 8" in final
  (figure,) = [one for one in data["figures"] if one["name"].startswith("learning_rates")]
  rates = dict(zip(figure["series"][0]["x"], figure["series"][0]["y"], strict=True))
  best = min(rates, key=rates.__getitem__)
  assert f"LEARNING_RATE = {best!r}" in final
  assert f"Griffin {best:g}" in shown
  # A scaling law is fitted to the runs of the figures.
  (law,) = scaling_law_runs.read_runs(output / "runs", NOBODY).values()
  assert len(law.losses) == 1
  assert capsys.readouterr().err.count("is left out: it is a trial") == len(trials)
  # Nothing is trained again.
  before = {file: file.stat().st_mtime_ns for file in output.glob("cells/*/*")}
  assert compare.main([f"--output={output}"]) == 0
  assert {file: file.stat().st_mtime_ns for file in output.glob("cells/*/*")} == before


def test_a_rate_that_no_macro_sets_is_refused(folder, tuned):
  comparison = load(tuned).build()
  assert isinstance(comparison, Comparison)
  fixed = "from __gin__ import dynamic_registration\nfrom training import optimizer\n"
  fixed += "optimizer.AdamW.learning_rate = @optimizer.warmup_cosine()\n"
  fixed += "optimizer.warmup_cosine.peak = 1e-3\n"
  (folder / "fixed.gin").write_text(fixed)
  shared = [*comparison.shared, str(folder / "fixed.gin")]
  changed = dataclasses.replace(comparison, shared=shared)
  runs = TrainedRuns(changed, folder / "none", ComparisonProgress(), "")
  (spec, *_) = changed.tuning.results(runs).values()
  with pytest.raises(UserError, match="LEARNING_RATE has no effect, so that no rate can be chosen"):
    runs.identity(spec)


def changed_by(folder, tuned, choice, text):
  """The runs of the comparison with another shared file, and their first trial."""
  comparison = load(tuned).build()
  (folder / choice).write_text("from __gin__ import dynamic_registration\n" + text)
  changed = dataclasses.replace(comparison, shared=[*comparison.shared, str(folder / choice)])
  runs = TrainedRuns(changed, folder / "none", ComparisonProgress(), "")
  return runs, next(iter(changed.tuning.results(runs).values()))


def test_steps_that_no_macro_sets_are_refused(folder, tuned):
  text = "from training import loop\nloop.LoopOptions.steps = 8\n"
  runs, spec = changed_by(folder, tuned, "steps.gin", text)
  with pytest.raises(UserError, match="STEPS does not set the steps of the training"):
    runs.identity(spec)


def test_a_search_on_the_rows_of_the_figures_is_refused(folder, tuned):
  text = "from data import dataset\nEVAL_DATA = @mixed/dataset.Mixture()\n"
  text += "mixed/dataset.Mixture.components = [@own/dataset.TextDataset()]\n"
  text += "own/dataset.TextDataset.split = 'heldout'\n"
  runs, spec = changed_by(folder, tuned, "mixed.gin", text)
  with pytest.raises(UserError, match="would be chosen on the held-out rows of the figures"):
    runs.identity(spec)


def test_a_registered_mixture_is_searched_on_half_of_its_rows(folder, tuned):
  text = "from data import dataset\nEVAL_DATA = @heldout/dataset.RegisteredMixture()\n"
  text += "heldout/dataset.RegisteredMixture.mixture = 'short_and_long'\n"
  text += "dataset.RegisteredMixture:\n  vocabulary = %VOCABULARY\n"
  text += "  sequence_length = %SEQUENCE_LENGTH\n"
  runs, spec = changed_by(folder, tuned, "registered.gin", text)
  runs.identity(spec)
  assert experiment.build(runs._run_config(spec)).eval_data.half == "validation"


def test_a_setting_that_changes_the_tokens_of_a_step_is_counted(folder, tuned):
  comparison = load(tuned).build()
  assert isinstance(comparison, Comparison)
  search = dataclasses.replace(comparison.tuning, others={"BATCH_SIZE": (8,)}, shares=(0.5,))
  changed = dataclasses.replace(comparison, tuning=search)
  runs = TrainedRuns(changed, folder / "batches", ComparisonProgress(), "")
  (spec, *_) = search.results(runs).values()
  run = runs.train(spec)
  assert run.tokens == max(run.curve) == 4 * 8 * 32
