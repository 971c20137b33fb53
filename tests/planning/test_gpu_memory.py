"""The part of a GPU's memory that a process can use."""

import os
import subprocess
import sys

import pytest

from planning.hardware import catalogue, gpu
from planning.hardware.chip import GIB


@pytest.mark.parametrize(("name", "in_all"), [("h100-8", 79.2), ("h200-8", 139.9)])
def test_a_plan_counts_with_what_jax_takes(name, in_all):
  chip = catalogue.hardware(name).chip
  assert chip.memory < 0.93 * in_all * GIB
  # The compiler is told of the device itself.
  whole = float(gpu.target_config(chip).partition("device_memory_size: ")[2].split()[0])
  assert whole == pytest.approx(chip.memory / gpu.MEMORY_FRACTION)
  assert catalogue.hardware("v5e-8").chip.share == 1


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, {"XLA_CLIENT_MEM_FRACTION": "0.92"}),
    ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),
    ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"}),
  ],
)
def test_a_command_has_jax_take_it_unless_told_otherwise(given, expected):
  code = """
import os
from launch import command
command.run(lambda _: print({k: v for k, v in os.environ.items() if "MEM_FRACTION" in k}))
"""
  clean = {name: value for name, value in os.environ.items() if "MEM_FRACTION" not in name}
  done = subprocess.run(
    [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == repr(expected)
