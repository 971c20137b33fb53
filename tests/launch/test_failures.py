"""How failures of the machine and of the environment are told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax  # noqa: F401 - errors of JAX are told only where JAX is loaded
import pytest

from launch import failures

ROOT = Path(__file__).parents[2]


def test_a_failure_is_one_short_line_whatever_it_holds():
  said = failures.clipped("a" * 10_000 + "\x1b[31m\0" + "the end")
  assert len(said) < 500
  assert said.startswith("aaa")
  assert said.endswith("the end")
  assert "\x1b" not in said
  assert "\0" not in said
  assert len(failures.clipped("\x01" * 10_000)) < 500
  many = failures.clipped("\n".join(map(str, range(1000)))).splitlines()
  assert len(many) < 50
  assert many[0] == "0"
  assert many[-1] == "999"


@pytest.mark.parametrize(
  ("error", "parts"),
  [
    (FileNotFoundError(2, "No such file or directory", "a/b"), ["a/b"]),
    (OSError(28, "No space left on device", "/nowhere/x"), ["/nowhere/x", "Free some space"]),
    (OSError(30, "Read-only file system", "/nowhere/x"), ["/nowhere/x", "writable folder"]),
    (
      ValueError('RESOURCE_EXHAUSTED: Error writing "/a/b" [OS error 28: No space left on device]'),
      ["No space left on device: /a/b"],
    ),
    (
      RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 252935914376 bytes.\nMore"),
      ["not enough memory (Out of memory allocating 252.9 GB)", "--gin.BATCH_SIZE", "--dry_run"],
    ),
    (MemoryError("Unable to allocate 95.4 GiB for an array"), ["Unable to allocate 95.4 GiB"]),
    (MemoryError(), ["not enough memory (MemoryError)"]),
    (OSError(40, "Too many levels of symbolic links", "x"), ["form a circle"]),
    (RuntimeError("Unable to initialize backend 'cuda': none"), ["JAX_PLATFORMS=cpu"]),
    (
      ModuleNotFoundError("No module named 'flax.linen'", name="flax.linen"),
      [f"{sys.executable} has no package 'flax'", "source .venv/bin/activate"],
    ),
    (
      # Without gin, Python takes the folder gin/ for it.
      ImportError("cannot import name 'config_parser' from 'gin' (unknown location)", name="gin"),
      ["has no package 'gin'"],
    ),
  ],
)
def test_what_the_machine_refuses_is_told_with_its_place(error, parts):
  said = failures.of_system(error)
  assert all(part in said for part in parts), said
  assert len(said) < failures.LONGEST_LINE
  assert "\n" not in said


def test_a_mistake_in_the_code_is_none_of_the_machines():
  assert failures.of_system(ValueError("shapes differ")) is None
  assert failures.of_system(RuntimeError("x")) is None
  for missing in (
    ModuleNotFoundError("No module named 'layers.x'", name="layers.x"),
    ImportError("cannot import name 'x' from 'jax'", name="jax", path="jax/__init__.py"),
  ):
    assert failures.of_system(missing) is None


def test_a_python_without_the_packages_is_told_in_a_line():
  """As when the environment is not activated: -S leaves out the installed packages."""
  ended = subprocess.run(
    [sys.executable, "-S", "-m", "launch.train", "gin/runs/hawk_quickstart.gin", "--describe"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2
  assert re.fullmatch(r"error: .* has no package '\w+'\. .*activate.*\n", ended.stderr), (
    ended.stderr
  )
