"""Each way to break the contract is found by the check for it, with the place of the fault."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import contract
from contract.finding import Finding
from layers.mixer import MixerError
from models.backbone import Backbone
from parallel import shards
from tests.contract import broken_mixers

ROOT = Path(__file__).parents[2]
GIN = """
from __gin__ import dynamic_registration
from models import backbone
from {module} import {name}

include 'models/backbone.gin'

MODEL = @{name}.model()
{name}.model.backbone = @backbone.Backbone()
{name}.model.mixer = @{name}.{mixer}
"""


def build(mixer: type):
  return broken_mixers.model(Backbone(vocab_size=32, width=16, depth=1), mixer=mixer)


def failures(mixer: type, *checks: str) -> list[Finding]:
  return [finding for _, finding in contract.run(build(mixer), checks) if finding.failed]


def test_the_mixer_that_the_broken_ones_are_made_of_keeps_the_contract():
  checks = set(contract.CHECKS) - {"sharding", "TPU compiler"}
  assert not failures(broken_mixers.Averaging, *checks)


@pytest.mark.parametrize(
  ("mixer", "check", "case", "where"),
  [
    # Each of the three blocks looks one token ahead.
    ("LooksAhead", "causality", "token 8 changes no logit before it", "token 5 of row 0"),
    # Documents begin at 0, 5, 6, 21: the first that another comes before.
    ("LeaksAcrossSegments", "packing", "document of 1 token ", "token 5 of row 0"),
    ("WrongDecodeState", "decoding", "prefill of 7 tokens", "token 7 of row 0"),
    ("WrongDecodeState", "decoding", "from the initial state", "token 1 of row 0"),
    ("WrongFlops", "FLOPs", "row of one token", "matmul_flops(width, length=1)"),
    ("GrowingState", "state size", "GrowingState claims constant size", ""),
    ("IgnoresThePast", "causality", "token 8 changes the next logits", "token 9"),
    ("CutsTheGradient", "time chunks", "gradient in chunks of 4 tokens", "embedding/embedding"),
    ("WrongGradient", "gradients", "differences in float64", "embedding/embedding"),
  ],
)
def test_check_finds_what_is_broken_and_where(mixer, check, case, where):
  found = failures(getattr(broken_mixers, mixer), check)
  (one,) = [finding for finding in found if case in finding.case]
  assert one.where.startswith(where)
  assert one.says or one.difference > one.allowed


@pytest.mark.parametrize(
  ("mixer", "check"), [("LeaksAcrossSegments", "causality"), ("WrongDecodeState", "packing")]
)
def test_a_check_is_silent_about_what_others_are_there_for(mixer, check):
  assert not failures(getattr(broken_mixers, mixer), check)


def test_a_state_that_is_appended_to_is_found_by_both_of_its_checks():
  for check in ("state size", "decoding"):
    found = failures(broken_mixers.AppendingState, check)
    assert "returns a state that differs from the state it was given" in found[-1].says
    assert "float32[2, 2, 128]" in found[-1].says or "float32[1, 2, 128]" in found[-1].says


def prefill(mixer: type):
  tokens = jnp.zeros((1, 4), jnp.int32)
  return jax.eval_shape(lambda: build(mixer).init(jax.random.key(0), tokens, capacity=8))


@pytest.mark.parametrize(
  ("mixer", "message"),
  [
    (
      "NoInitialState",
      r"broken_mixers.NoInitialState has no method initial_state\(batch_size, capacity\): add it",
    ),
    (
      "WrongShape",
      r"WrongShape maps x of shape \(1, 4, 16\) to \(1, 4, 15\): it must return .* x's shape",
    ),
    ("NoPair", r"NoPair returns a \w+: it must return the pair \(y, state\)"),
    (
      "AnotherStructure",
      r"AnotherStructure returns a state that differs from initial_state\(batch_size=1, "
      r"capacity=8\): "
      r".* at \['h'\]|its root",
    ),
    ("AnotherType", r"AnotherType returns a state .*: bfloat16\[1, 128\] .* instead of float32"),
  ],
)
def test_a_mixer_that_is_none_is_named_with_the_remedy(mixer, message):
  with pytest.raises(MixerError, match=message):
    prefill(getattr(broken_mixers, mixer))


def test_an_input_axis_without_a_rule_is_refused_on_devices():
  rules = shards.Region(table=(("rnn", ()), ("time", ())), sizes=())
  with shards.per_device(rules), pytest.raises(MixerError, match="has input_axis='rrn', and no"):
    prefill(broken_mixers.MisspellsInputAxis)
  with shards.per_device(rules):
    prefill(broken_mixers.Averaging)


def test_a_misspelt_axis_that_is_not_split_is_refused_on_devices():
  rules = shards.Region(table=(("rnn", ()), ("time", ())), sizes=())
  with (
    shards.per_device(rules),
    pytest.raises(MixerError, match=r"unsplit_axes with 'tiem', and .*; did you mean time\?"),
  ):
    prefill(broken_mixers.MisspellsUnsplitAxes)
  with pytest.raises(
    MixerError, match=r"unsplit_axes='time', which is no tuple. Write \('time',\)"
  ):
    prefill(broken_mixers.UnsplitAxesOfLetters)


def check_outside(tmp_path, mixer: str, *arguments: str) -> subprocess.CompletedProcess:
  """Runs the command on a module and a gin file outside of the repository."""
  source = (ROOT / "tests/contract/broken_mixers.py").read_text(encoding="utf-8")
  package = tmp_path / "their_project"
  package.mkdir()
  (package / "mixers.py").write_text(source)
  gin = GIN.format(module="their_project", name="mixers", mixer=mixer)
  (tmp_path / "theirs.gin").write_text(gin)
  return subprocess.run(
    [sys.executable, "-m", "launch.check", "theirs.gin", *arguments],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ("mixer", "axis"), [("UndeclaredRefusal", "seq="), ("ForgetsInputAxis", "model=")]
)
def test_a_split_that_is_neither_refused_nor_right_fails_the_command(tmp_path, mixer, axis):
  done = check_outside(tmp_path, mixer, "--only=sharding")
  assert done.returncode == 1, done.stderr
  rows = [line for line in done.stdout.splitlines() if "ZeRO" in line and "refuses" not in line]
  assert {row.split()[0] for row in rows if axis not in row} == {"passed"}
  wrong = [row for row in rows if "gradients" in row and axis in row]
  assert wrong
  assert all(row.startswith("failed") and "embedding/embedding" in row for row in wrong)


def test_a_declared_refusal_is_made_and_all_else_is_right(tmp_path):
  done = check_outside(tmp_path, "Averaging", "--only=sharding")
  assert done.returncode == 0, done.stderr
  rows = [line for line in done.stdout.splitlines() if "ZeRO" in line]
  refused = [row for row in rows if row.startswith("refused")]
  assert len(refused) == 2
  assert all("seq=" in row and "--gin.SEQUENCE_SHARDS=1" in row for row in refused)
  # What is refused is checked on as many devices along the batch.
  others = [row for row in rows if row not in refused]
  assert {row.split()[0] for row in others} == {"passed"}
  assert len(others) == 6
  assert not any("seq=" in row for row in others)


def test_a_module_that_cannot_be_imported_is_one_line_with_the_remedy(tmp_path):
  (tmp_path / "theirs.gin").write_text("from their_projct import mixers\nMODEL = @mixers.model()\n")
  done = subprocess.run(
    [sys.executable, "-m", "launch.check", "theirs.gin"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "theirs.gin:1: there is no module 'their_projct.mixers'" in line
  assert (
    "start the command in the folder that contains their_projct, or add that folder to PYTHONPATH"
    in line
  )
