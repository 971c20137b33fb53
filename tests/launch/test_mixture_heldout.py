"""Held-out figures of a mixture: each component's and the whole's, in training and evaluation."""

import json

import pytest

from launch import evaluate, train
from tests import small_run
from training.metrics import read_metrics

MIXTURE = """
dataset.Mixture:
  components = [@one/dataset.TextDataset(), @other/dataset.TextDataset()]
  names = ['kept', 'seen']
  most_tokens = [64, None]
one/dataset.TextDataset.split = 'heldout'
other/dataset.TextDataset.split = 'train'
EVAL_DATA = @dataset.Mixture()
"""


def test_each_component_has_its_loss_and_the_whole_is_their_mean(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  small_run.write("run.gin", more=MIXTURE)
  assert train.main(["run.gin", "--run_dir=run"]) == 0
  told = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
  printed = capsys.readouterr()
  line = next(line for line in printed.err.splitlines() if line.startswith("held-out at step 6"))
  assert f"loss/kept {told['heldout_loss/kept']:.4f}" in line
  assert f"loss/seen {told['heldout_loss/seen']:.4f}" in line
  assert evaluate.main(["--run_dir=run"]) == 0
  printed = capsys.readouterr().out
  assert "step 6 on the run's held-out data, rows of 32 tokens" in printed
  (file,) = (tmp_path / "run/evaluations").glob("6-*.json")
  result = json.loads(file.read_text())
  components = result["components"]
  assert f"  kept: loss {components['kept']['loss']:.4f}, bits per byte" in printed
  for name, one in components.items():
    assert one["loss"] == pytest.approx(told[f"heldout_loss/{name}"], rel=1e-6)
    assert one["bits_per_byte"] == pytest.approx(told[f"heldout_bits_per_byte/{name}"], rel=1e-6)
  whole = sum(one["loss"] * one["tokens"] for one in components.values()) / result["tokens"]
  assert whole == pytest.approx(result["loss"], rel=1e-9)
  assert sum(one["tokens"] for one in components.values()) == result["tokens"]
  assert components["kept"]["loss"] != components["seen"]["loss"]
  # A component alone, and a few batches of which each component has some.
  assert evaluate.main(["--run_dir=run", "--gin.EVAL_DATA=@one/dataset.TextDataset()"]) == 0
  kept = f"loss           {components['kept']['loss']:.4f}"
  assert kept in capsys.readouterr().out
  assert evaluate.main(["--run_dir=run", "--batches=2"]) == 0
  printed = capsys.readouterr().out
  assert "kept: " in printed
  assert "seen: " in printed
