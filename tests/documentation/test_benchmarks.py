"""A benchmark without what it needs ends with one line that names the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import absent_tpu

ROOT = Path(absent_tpu.__file__).parents[1]
# Runs a module as `python -m` does, without some libraries.
WITHOUT = """
import importlib.util, runpy, sys
found = importlib.util.find_spec
missing = sys.argv.pop(1).split(",")
importlib.util.find_spec = lambda name, *rest: None if name in missing else found(name, *rest)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def run(missing, *command, program=WITHOUT):
  return subprocess.run(
    [sys.executable, "-c", program, missing, *command],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ("missing", "command", "told"),
  [
    ("libtpu", ["benchmarks.tpu_bundles", "v5e"], "EXTRAS=tpu"),
    ("libtpu", ["benchmarks.compile_tpu", "v5e"], "EXTRAS=tpu"),
    ("libtpu", ["benchmarks.recurrent_block_traffic"], "EXTRAS=tpu"),
    ("libtpu", ["benchmarks.delta_rule_traffic"], "EXTRAS=tpu"),
    ("libtpu", ["benchmarks.sharding", "depths"], "EXTRAS=tpu"),
    ("jax_plugins.xla_cuda13", ["benchmarks.compile_gpu"], "EXTRAS=gpu"),
    ("recurrentgemma", ["benchmarks.peers", "train"], "EXTRAS=test"),
    ("moto", ["benchmarks.bucket_rows"], "EXTRAS=test"),
    ("transformers", ["benchmarks.peers", "decode"], "EXTRAS=test"),
    ("torch", ["benchmarks.peers", "train", "--network=gated_deltanet"], "EXTRAS=test"),
    ("", ["benchmarks.tpu_bundles", "v5"], "unknown generation: 'v5'; did you mean"),
    (
      "",
      ["benchmarks.compile_tpu", "v9"],
      "'v9'; choose from tpu7x, v3, v4, v5e, v5p, v6e",
    ),
    ("", ["benchmarks.recurrence_vs_c", "--output=docs"], "docs is a folder; name a file in it"),
    ("libtpu", ["benchmarks.paper_step_times"], "EXTRAS=tpu"),
    ("", ["benchmarks.paper_step_times", "--sizes=2b"], "'2b' is unknown; choose from 400m"),
    ("", ["benchmarks.published_runs", "8c"], "'8c' is not a published run; choose from 8b_v6e-8"),
    ("", ["benchmarks.plans", "h300", "--commands"], "no row has 'h300' in its name. Rows: "),
  ],
)
def test_a_benchmark_without_what_it_needs_names_the_remedy(missing, command, told):
  done = run(missing, *command)
  assert done.returncode
  assert told in done.stderr
  assert "Traceback" not in done.stdout + done.stderr


def test_plans_fails_if_a_row_failed(tmp_path):
  """Here every row, because their folder is a file."""
  (tmp_path / "file").touch()
  done = run("", "benchmarks.plans", "v5e-256_7b_hawk", "1M", f"--keep={tmp_path / 'file'}")
  assert done.returncode == 1
  assert done.stdout.count("failed with status 2") == 2
  assert done.stderr.endswith("2 rows failed\n")
  assert "Traceback" not in done.stderr


def test_the_tpu_compiler_prints_no_warnings():
  pytest.importorskip("libtpu")
  done = run("", program="from benchmarks import absent_tpu; absent_tpu.devices('v5e')")
  assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
