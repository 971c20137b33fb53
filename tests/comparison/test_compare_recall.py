"""Runs of a recall task are compared by their directories, as runs of text are."""

from __future__ import annotations

import json
from pathlib import Path

from launch import compare, train

SMALL = ["--gin.WIDTH=16", "--gin.HEADS=2", "--gin.DEPTH=1", "--gin.BATCH_SIZE=4"]
SHORT = ["--gin.STEPS=2", "--gin.WARMUP_STEPS=1", "--gin.data.recall.InductionHeads.examples=300"]


def test_runs_of_a_recall_task_are_compared(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = "gin/runs/transformer_induction_heads.gin"
  for seed in (3, 5):
    command = [file, f"--run_dir=seed_{seed}", f"--gin.SEED={seed}", *SMALL, *SHORT]
    assert train.main(command) == 0
  only = ["--only=held_out_loss", "--gin.SCORED_TOKENS=1024", "--output=out"]
  assert compare.main(["seed_3", "seed_5", *only]) == 0
  data = json.loads(Path("out/report/data.json").read_text())
  names = [figure["name"] for figure in data["figures"]]
  assert names[:3] == ["held_out_difference", "held_out_by_flops", "loss_by_position"]
  conditions = dict(data["figures"][0]["conditions"])
  assert conditions["scored"].endswith("tokens in rows of 34")
  assert data["seeds_of"] == {"seed_3": [3], "seed_5": [5]}
  # A symbol is no byte.
  assert "bits_per_byte" not in Path("seed_3/metrics.jsonl").read_text()
