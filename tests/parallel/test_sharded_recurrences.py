"""The recurrences with time split over eight devices, against the whole row in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def found():
  process = subprocess.run(
    [sys.executable, "-m", "tests.parallel.sharded_recurrences"],
    cwd=Path(__file__).parents[2],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return {line["op"]: line for line in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize(
  ("op", "results"),
  [
    ("rg_lru", {"h", "x", "gate_a", "gate_x", "log_decay"}),
    ("linear_scan", {"h", "x", "log_a"}),
    ("delta_rule by head", {"h", "q", "k", "v", "beta", "log_a"}),
    ("delta_rule by channel", {"h", "q", "k", "v", "beta", "log_a"}),
    ("linear attention by head", {"h", "q", "k", "v", "log_a"}),
    ("linear attention by channel", {"h", "q", "k", "v", "log_a"}),
    ("mlstm", {"h", "q", "k", "v", "log_f", "log_i"}),
  ],
)
def test_values_and_gradients_equal_float64(found, op, results):
  assert set(found[op]["errors"]) == results
  # Products of matrices add up more roundings than products of decays.
  tolerance = 4e-7 if op in ("rg_lru", "linear_scan") else 2e-6
  for name, error in found[op]["errors"].items():
    assert error <= tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("op", ["rg_lru", "linear_scan"])
def test_devices_send_states_whatever_the_length(found, op):
  short, long = found[op]["sent"]
  assert short == long
  assert set(short) == {"tensor<2x8xf32>"}  # [B, R]
  # Forward and backward: to the neighbour, and to those 1, 2 and 4 away; a product and a state
  # each, but the last time nobody needs the product.
  assert len(short) == 2 * (2 * 4 - 1)


@pytest.mark.parametrize("op", ["delta_rule by head", "delta_rule by channel"])
def test_devices_send_matrices_whatever_the_length(found, op):
  short, long = found[op]["sent"]
  assert short == long
  # [B, H, K, K] of the map and [B, H, K, V] of the state, as often as products and states above.
  assert short.count("tensor<2x2x5x5xf32>") == 2 * 3
  assert short.count("tensor<2x2x5x3xf32>") == 2 * 4
  assert len(short) == 2 * (2 * 4 - 1)


@pytest.mark.parametrize(("decays", "count"), [("head", 1), ("channel", 5)])
def test_devices_send_states_and_products_of_decays_whatever_the_length(found, decays, count):
  short, long = found[f"linear attention by {decays}"]["sent"]
  assert short == long
  # [B, H, 1 or K, 1] of the decays and [B, H, K, V] of the state; a later product is of two.
  assert short.count(f"tensor<2x2x{count}x1xf32>") == 2 * 3
  assert short.count("tensor<2x2x5x3xf32>") == 2 * 4
  assert len(short) == 2 * (2 * 4 - 1)


def test_devices_of_mlstm_send_stabilizers_decays_and_states_whatever_the_length(found):
  short, long = found["mlstm"]["sent"]
  assert short == long
  # The decay and the value of the stabilizer [B, H], of all devices.
  assert short.count("tensor<8x2x2x2xf32>") == 1
  # As of linear attention by head; the state has the normalizer as a further column.
  assert short.count("tensor<2x2x1x1xf32>") == 2 * 3
  assert short.count("tensor<2x2x5x4xf32>") == 2 * 4
  assert len(short) == 1 + 2 * (2 * 4 - 1)
