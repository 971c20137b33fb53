"""Every number of every gin file has a range, and an impossible value is an error of one line."""

from __future__ import annotations

import contextlib
import functools
import math
import typing

import jax
import jax.numpy as jnp
import pytest

from base.ranges import Range
from comparison import comparison
from config import config, types
from config import source as gin_source
from config.place import GIN_ROOT, ConfigError
from experiment import experiment
from launch import train
from models import accounting

RUN = "runs/griffin_quickstart.gin"
# What is written over a run's file: together they reach what gin files can choose.
OTHERS = (
  "mesh/zero3.gin",
  "data/json_lines_bytes.gin",
  "data/mixture_bytes.gin",
  "data/python_sentencepiece.gin",
  "data/mqar.gin",
  "data/needle.gin",
  "data/phonebook.gin",
  "data/ruler.gin",
  "train/lora.gin",
  "train/adamw_wsd.gin",
  "models/recurrent_gemma.gin",
)


@functools.cache
def source(files):
  return sum((gin_source.read_file(GIN_ROOT / file) for file in files), gin_source.Source())


def read(files, arguments=()):
  """An experiment, or a comparison if there is one file of that folder."""
  compares = files[0].startswith("compare/")
  root = comparison.Comparison if compares else experiment.Experiment
  return config.resolve(source(files) + gin_source.read_arguments(arguments), root, files[0])


def all_files():
  runs = [(f"runs/{file.name}",) for file in sorted((GIN_ROOT / "runs").glob("*.gin"))]
  compared = [
    (f"compare/{file.name}",)
    for file in sorted((GIN_ROOT / "compare").glob("*.gin"))
    if "PARTS =" in file.read_text(encoding="utf-8")
  ]
  return [*runs, *((RUN, other) for other in OTHERS), *compared]


def of_numbers(annotation) -> str | None:
  """Returns how a number is written for a parameter; None if it accepts no number."""
  if annotation is typing.Any or types.accepts(annotation, object()):
    return None
  for form, value in (("{}", 1), ("({},)", (1,))):
    if types.accepts(annotation, value) and not types.accepts(annotation, ("a",)):
      return form
  return None


@functools.cache
def every_number():
  """Lists the parameters that accept numbers: their gin names, and how a number is written."""
  return {
    key.full_name: (files, key, form)
    for files in reversed(all_files())
    for key in read(files).operative
    if (form := of_numbers(key.marked))
  }


def marks(annotation) -> list[Range]:
  own = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Range)]
  return own + [mark for part in typing.get_args(annotation) for mark in marks(part)]


def test_every_number_of_every_gin_file_has_a_range():
  assert len(every_number()) > 90
  assert [name for name, (_, key, _) in every_number().items() if not marks(key.marked)] == []


def make(built, module: str) -> None:
  """Builds the parts of an experiment on which the values of a module have an effect."""
  if module.startswith("models."):
    accounting.list_parameters(built.model)
  elif module.startswith("parallel."):
    built.sharding_plan(jax.devices())
  elif module.startswith("training.optimizer"):
    jax.eval_shape(built.optimizer.learning_rate, jax.ShapeDtypeStruct((), jnp.int32))


@pytest.mark.parametrize(
  "value", [-1, 0, 7, 10**9, 10**12, 2**63 - 1, 1e30, math.inf, -math.inf, math.nan, -0.5, 1.5]
)
def test_no_number_of_a_configuration_ends_in_a_traceback(value):
  """The value is refused in one line that names it, or the object can be built."""
  text = repr(value) if math.isfinite(value) else f"{math.copysign(1, value):.0f}e400"
  for name, (files, key, form) in every_number().items():
    if name.startswith("evaluation.") and value > 1:
      continue  # kept as it is until something is measured
    number = (value,) if "," in form else value
    if not types.accepts(key.marked, number) or types.fault(key.marked, number):
      continue
    assert math.isfinite(value), name
    small = ("--gin.DEPTH=3",) if "models" in name and files[0] == RUN else ()
    with contextlib.suppress(ConfigError, accounting.ModelError):
      make(read(files, [f"--gin.{name}={form.format(text)}", *small]).build(), name)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("models.griffin.griffin.window=-3", r"griffin\.griffin\.window is -3; it must be at least 1"),
    ("WINDOW=0", r"window, set by %WINDOW, is 0; it must be at least 1$"),
    ("optimizer.AdamW.clip_norm=0", "is 0; it must be above 0$"),
    ("optimizer.AdamW.clip_norm=1e400", "inf is not finite"),
    ("optimizer.AdamW.b2=1.0", r"is 1\.0; it must be below 1$"),
    ("LEARNING_RATE=-0.001", r"is -0\.001; it must be at least 0$"),
    ("LEARNING_RATE=nan", "is 'nan'; it must be float$"),
    ("DEPTH=1000000000", "it must be at most 100000$"),
    ("backbone.Backbone.dtype=int8", "must be 'float32' or 'bfloat16' or 'float16'"),
    ("backbone.Backbone.logit_cap=-1", "is -1; it must be above 0$"),
    ("SEED=-1", "is -1; it must be at least 0$"),
    (
      "OPTIMIZER=muon",
      "Optimizer; to use it, add gin/optimizer/muon.gin after the run file",
    ),
    ("SCHEDULE=wsd", "must be a function; to use it, add gin/schedule/wsd.gin after the run"),
    ("MODEL=hawk", "must be .*; to use it, add gin/models/hawk.gin after the run file"),
    ("WARMUP_STEPS=400", "warmup_steps=400 must be at least 0 and below the 400 steps"),
  ],
)
def test_a_number_out_of_range_is_named_with_its_place(argument, message):
  with pytest.raises(ConfigError, match=message) as error:
    read((RUN,), [f"--gin.{argument}"]).build()
  assert "WARMUP" in argument or str(error.value).startswith(f"--gin.{argument}: ")


def test_the_place_in_a_file_is_named(tmp_path):
  file = tmp_path / "mine.gin"
  file.write_text(f"include '{GIN_ROOT / RUN}'\nWINDOW = -3\n")
  with pytest.raises(
    ConfigError, match=r"mine\.gin:2: griffin\.griffin\.window, .* must be at least 1"
  ):
    experiment.load(file)


def test_nothing_is_written_before_the_step_was_traced(tmp_path, monkeypatch, capsys):
  """Three microbatches do not divide four rows; no mesh is there to notice it."""
  run = tmp_path / "run"
  small = [f"--gin.{name}=16" for name in ("WIDTH", "RNN_WIDTH", "SEQUENCE_LENGTH")]
  with pytest.raises(ConfigError, match="a batch of 4 rows cannot be split into 3 microbatches"):
    train.main(["gin/runs/hawk_quickstart.gin", f"--run_dir={run}", *small, "--gin.MICROBATCHES=3"])
  assert not run.exists()
