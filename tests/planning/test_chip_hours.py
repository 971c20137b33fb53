"""The chip hours of a comparison's trainings, by the real compiler of hardware that is not here."""

import importlib.util

import pytest

from comparison import comparison
from experiment import experiment
from launch import chip_hours as door
from planning import chip_hours
from planning.hardware import catalogue

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
SMALL = ["WIDTH = 128", "RNN_WIDTH = 128", "HEADS = 1", "DEPTH = 1", "SEQUENCE_LENGTH = 128"]
SHARED = ["mesh/zero3.gin", "data/python_bytes.gin", "train/steps.gin", "BATCH_SIZE = 8"]


def compared(**options):
  """A comparison of Hawk whose two sizes differ in the number of steps."""
  macros = {
    "MODELS": {"Hawk": ["models/hawk.gin", "kernels/reference.gin"]},
    "BASELINE": "Hawk",
    "SIZES": {
      "short": [*SMALL, "STEPS = 1000"],
      "long": [*SMALL, "STEPS = 3000"],
      **options,
    },
    "SHARED": SHARED,
    "PARTS": "{'scaling': %SCALING}",
    "SEEDS": (0, 1),
    "TUNING": None,
  }
  return comparison.load(
    "compare/quick.gin", [f"--gin.{name}={value}" for name, value in macros.items()]
  ).build()


def test_equal_steps_are_compiled_once_and_counted_by_their_number():
  slice_ = catalogue.hardware("v5e-8")
  told = []
  given = {
    size: experiment.build(
      experiment.load(
        ["runs/hawk_quickstart.gin", "mesh/zero3.gin"],
        [
          "--gin.WIDTH=128",
          "--gin.RNN_WIDTH=128",
          "--gin.DEPTH=1",
          "--gin.BATCH_SIZE=8",
          "--gin.RECURRENCE_KERNEL=reference",
          f"--gin.STEPS={steps}",
        ],
      )
    )
    for size, steps in (("short", 100), ("long", 300))
  }
  found = chip_hours.planned(given, slice_, told.append)
  assert sum("compiling for v5e-8; a large" in line for line in told) == 1
  short, long = found["short"], found["long"]
  assert (short.steps, long.steps, short.chips) == (100, 300, 8)
  assert long.chip_hours == pytest.approx(3 * short.chip_hours)
  assert short.chip_hours == pytest.approx(short.seconds_per_step * 100 * 8 / 3600)


def test_chip_hours_count_chips_where_a_chip_is_two_devices():
  hardware = catalogue.hardware("tpu7x-128")
  assert (hardware.device_count, hardware.chips) == (128, 64)
  training = chip_hours.PlannedTraining(36.0, 100, hardware.chips)
  assert training.chip_hours == pytest.approx(64.0)


def test_the_table_has_every_training_and_all_seeds():
  table = door.table(compared(), catalogue.hardware("v5e-8"))
  (short,), (long,) = (
    [line.split() for line in table.splitlines() if line.startswith(f"{size}, Hawk")]
    for size in ("short", "long")
  )
  assert short[2] == long[2]
  assert (short[3], long[3]) == ("1,000", "3,000")
  total = float(table.split("\n\n")[-1].split()[0])
  assert total == pytest.approx(float(short[4]) + float(long[4]), abs=0.11)
  assert "chip hours of v5e-8, over 2 seeds" in table
