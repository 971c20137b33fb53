"""The paper's downstream tasks: what lm-eval scores, beside the published table."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from comparison import shares
from comparison.page.figure import PUBLISHED
from comparison.quality import published_tasks
from comparison.quality.downstream import Downstream
from comparison.quality.published_tasks import TASKS
from evaluation.harness_tasks import TaskScore
from launch import compare, evaluate, train
from tests import small_run
from tests.comparison.test_parts import BASE, KnownRun, KnownRuns, measure
from tests.evaluation import harness_data

QUESTIONS = {"mmlu": 400, "winogrande": 100}


@dataclasses.dataclass(frozen=True)
class ScoredRun(KnownRun):
  """A run with known accuracies."""

  def downstream(self, task, data, *, fewshot, length, limit):
    """Griffin, whose loss falls, is right more often; on MMLU both are right by chance."""
    assert data.name == task
    assert fewshot == (5 if task == "mmlu" else 0)
    right = 0.25 if task == "mmlu" else 0.5 + 2 * abs(self.slope) * (self.slope < 0)
    return TaskScore(right, QUESTIONS[task])


class ScoredRuns(KnownRuns):
  """Runs with known accuracies."""

  def train(self, spec):
    """Trains nothing."""
    return ScoredRun(**vars(super().train(spec)))


def copies(folder, names):
  for name in names:
    (folder / name).mkdir(parents=True)
    (folder / name / "test.parquet").write_bytes(name.encode())


def test_tasks_are_told_by_size_beside_the_published_points(tmp_path):
  copies(tmp_path, QUESTIONS)
  part = Downstream(data=str(tmp_path), baseline=BASE)
  figures = measure(part, ScoredRuns())
  assert list(figures) == ["downstream_mean", "downstream_mmlu", "downstream_winogrande"]
  mean, mmlu = figures["downstream_mean"], figures["downstream_mmlu"]
  griffin, baseline = mean.series[:2]
  # A half of each task; MMLU's quarter.
  assert baseline.y == pytest.approx([0.375] * 3)
  assert griffin.y[-1] == pytest.approx((0.25 + 0.54) / 2, abs=0.01)
  # Tasks weigh the same: the smaller one decides how sure the mean is.
  own = shares.wilson(0.375, 320)
  assert (baseline.low[-1], baseline.high[-1]) == (own.low, own.high)
  assert f"Griffin is above {BASE} by 0.0" in mean.finding
  assert f"no difference seen between Griffin and {BASE}" in mmlu.finding
  assert [one.text for one in mean.differences] == [f"Griffin minus {BASE}"]
  paper = {one.name: one for one in mean.series if one.kind == PUBLISHED}
  assert list(paper) == [f"{BASE}, paper", "Hawk, paper", "Griffin, paper"]
  assert paper["Griffin, paper"].x == (1e9, 3e9, 7e9, 14e9)
  assert paper["Griffin, paper"].y[-1] == pytest.approx((0.495 + 0.741) / 2)
  conditions = dict(mean.conditions)
  assert conditions["questions"] == "MMLU 400, WinoGrande 100"
  assert conditions["examples before each"] == "MMLU 5, WinoGrande 0"
  assert "300 billion tokens of another text" in conditions["published:"]


def test_a_copy_that_changes_is_scored_again_and_one_that_moves_is_not(tmp_path):
  copies(tmp_path / "here", QUESTIONS)
  part = Downstream(data=str(tmp_path / "here"), baseline=BASE)
  before = set(part.results(KnownRuns()))
  (tmp_path / "here" / "mmlu" / ".cache").mkdir()
  (tmp_path / "here" / "mmlu" / ".cache" / "downloaded").write_text("today")
  (tmp_path / "here").rename(tmp_path / "there")
  moved = dataclasses.replace(part, data=str(tmp_path / "there"))
  assert set(moved.results(KnownRuns())) == before
  assert repr(moved) == repr(part)
  copies(tmp_path / "third", QUESTIONS)
  (tmp_path / "third" / "mmlu" / "test.parquet").write_bytes(b"other")
  other = dataclasses.replace(part, data=str(tmp_path / "third"))
  assert len(before & set(other.results(KnownRuns()))) == len(before) / 2


def test_what_is_not_here_is_left_out_with_a_sentence(tmp_path, monkeypatch):
  part = Downstream(data=None, baseline=BASE)
  assert part.left_out().startswith("Left out: there is no copy of the data of MMLU, HellaSwag")
  assert measure(part, KnownRuns()) == {}
  copies(tmp_path, TASKS)
  whole = Downstream(data=str(tmp_path), baseline=BASE)
  assert whole.left_out() == ""
  (tmp_path / "piqa" / "test.parquet").unlink()
  told = whole.left_out()
  assert told == f"Left out: PIQA, because {tmp_path} has no folder piqa with files."
  assert not any("piqa" in key for key in whole.results(KnownRuns()))
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert whole.left_out() == "Left out: lm-eval is not installed (make install EXTRAS=harness)."
  assert measure(whole, KnownRuns()) == {}


def test_the_published_rows_have_the_averages_of_the_table():
  averages = {
    "MQA Transformer": (54.4, 59.0, 64.2),
    "Hawk": (53.6, 59.5, 63.8),
    "Griffin": (57.2, 60.7, 65.8, 69.5),
  }
  for model, expected in averages.items():
    found = published_tasks.accuracies(model, list(TASKS))
    np.testing.assert_allclose(100 * np.array(list(found.values())), expected, atol=0.051)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Finished runs of a small model at two learning rates."""
  folder = tmp_path_factory.mktemp("run")
  file = small_run.write(folder / "griffin.gin", text=small_run.shared_text())
  for name, rate in (("first", 1e-2), ("second", 1e-3)):
    bound = f"--gin.LEARNING_RATE={rate}"
    assert train.main([str(file), f"--run_dir={folder / name}", bound]) == 0
  return folder / "first", folder / "second"


def test_a_comparison_scores_what_lm_eval_scores_of_the_run(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
  names = ("hellaswag", "winogrande", "arc_challenge")
  data, output = tmp_path / "data", tmp_path / "compared"
  asked = harness_data.write(data, names)
  bound = [f"--gin.DOWNSTREAM_DATA='{data}'", "--gin.DOWNSTREAM_LENGTH=256"]
  assert compare.main([*map(str, runs), f"--output={output}", "--only=downstream", *bound]) == 0
  page = (output / "report" / "index.html").read_text()
  told = f"Left out: MMLU, PIQA, ARC-E, because {data} has no folder mmlu or piqa or arc_easy"
  assert told in page
  assert told in capsys.readouterr().out
  assert "Griffin, paper <em>(published)</em>" in page
  figures = json.loads((output / "report" / "data.json").read_text())["figures"]
  conditions = dict(figures[0]["conditions"])
  assert conditions["questions"] == ", ".join(f"{TASKS[name]} {asked[name]}" for name in names)

  options = [f"--run_dir={runs[0]}", "--checkpoint=latest", "--length=256"]
  local = [f"--harness_data={name}={data / name}" for name in names]
  assert evaluate.main([*options, *local, f"--harness={','.join(names)}"]) == 0
  (file,) = (runs[0] / "evaluations").glob("*-harness-*.json")
  scored = json.loads(file.read_text())["results"]
  expected = [
    scored["hellaswag"]["acc_norm,none"],
    scored["winogrande"]["acc,none"],
    scored["arc_challenge"]["acc_norm,none"],
  ]
  found = {one["name"]: one["series"][0]["y"][0] for one in figures}
  assert [found[f"downstream_{name}"] for name in names] == pytest.approx(expected, abs=1e-12)
  assert found["downstream_mean"] == pytest.approx(np.mean(expected))
