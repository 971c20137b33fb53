"""Every model of the zoo keeps the contract, as `python -m launch.check` runs it.

Slow because every variant is a program to compile: one process runs all checks on all models, but
the slowest four only on so many of them that each kind of block is checked in each kind of model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import contract
from config.place import ConfigError
from contract.subject import Subject
from experiment import model_zoo
from models.language_model import LanguageModel

ROOT = Path(__file__).parents[2]
NAMES = model_zoo.names()
# Six tenths of the time: gradients and training steps, each compiled four or five times.
SLOW = ("remat", "time chunks", "carried state", "sharding", "TPU compiler")


def test_files_without_a_model_are_told_what_to_add():
  with pytest.raises(ConfigError, match=r"tiny.gin does not set MODEL\. .* as in gin/models/hawk"):
    model_zoo.build(["gin/sizes/tiny.gin"])


def subjects() -> dict[str, LanguageModel]:
  """The models as the contract takes them."""
  return {name: Subject(model_zoo.build([model_zoo.file_of(name)])[0]).model for name in NAMES}


def checked_as(models: dict[str, LanguageModel]) -> dict[str, str]:
  """The model whose findings are those of each: another pattern of the same mixers is the same
  subject.

  The contract looks at two repeats of a pattern in which each kind of mixer stands once, so that
  griffin_recall is checked as griffin is: the programs are the same to the last operation.
  """
  first: dict[str, str] = {}
  return {name: first.setdefault(repr(model), name) for name, model in models.items()}


def blocks(model: LanguageModel) -> set[str]:
  """The kinds of blocks of a model, each with all of the model but its pattern and depth."""
  return {repr(model.clone(pattern=(mixer,), depth=1)) for mixer in model.pattern}


def covering(models: dict[str, LanguageModel]) -> list[str]:
  """Models whose blocks are those of all: in each step the one with the most new blocks, and of
  these the one with the fewest others.

  Hawk's blocks and Griffin's attention stand in models that are the same but for the pattern.
  """
  left, chosen = set().union(*map(blocks, models.values())), []
  while left:
    most = max(models, key=lambda n: (len(blocks(models[n]) & left), -len(blocks(models[n]))))
    chosen.append(most)
    left -= blocks(models[most])
  return chosen


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
  return subjects()


@pytest.fixture(scope="module")
def findings(models, tmp_path_factory) -> dict[str, tuple[int, str, dict[str, list[dict]]]]:
  """Of each model the exit status, what was printed, and the findings of each check."""
  folder, same, whole = tmp_path_factory.mktemp("contracts"), checked_as(models), covering(models)
  quick = ",".join(check for check in contract.CHECKS if check not in SLOW)
  asked = [n if n in whole else f"{n}:{quick}" for n in dict.fromkeys(same.values())]
  process = subprocess.run(
    [sys.executable, "-m", "tests.contract.zoo", folder, *asked],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  result = {}
  for done in map(json.loads, process.stdout.splitlines()):
    by_check: dict[str, list[dict]] = {}
    for record in json.loads((folder / f"{done['name']}.json").read_text()):
      by_check.setdefault(record["check"], []).append(record)
    result[done["name"]] = done["status"], done["shown"], by_check
  return {name: result[other] for name, other in same.items()}


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_model_keeps_the_contract(models, findings, name, check):
  """Of a slow check, in the models that have its blocks."""
  holders = [name]
  if check in SLOW:
    holders = [n for n in covering(models) if blocks(models[n]) & blocks(models[name])]
    assert blocks(models[name]) <= set().union(*(blocks(models[n]) for n in holders))
  for holder in holders:
    _, shown, by_check = findings[holder]
    assert_kept(by_check[check], shown)


def assert_kept(found, shown):
  assert found
  assert not [record for record in found if record["outcome"] == "failed"], shown
  missing = [record["says"] for record in found if record["outcome"] == "not run"]
  assert len(missing) < len(found), missing[0]


@pytest.mark.parametrize("name", NAMES)
def test_exit_status_says_that_nothing_failed(findings, name):
  status, shown, _ = findings[name]
  assert status == 0, shown
  assert " failed" not in shown.splitlines()[-1]


def test_the_models_of_the_paper_are_listed_and_what_others_include_is_not():
  assert {"griffin", "hawk", "transformer", "recurrent_gemma"} <= set(NAMES)
  assert "backbone" not in NAMES


@pytest.mark.parametrize(
  ("name", "constant"), [("griffin", True), ("hawk", True), ("transformer", False)]
)
def test_who_claims_a_state_of_constant_size(findings, name, constant):
  _, _, by_check = findings[name]
  claims = [r["case"] for r in by_check["state size"] if "claims" in r["case"]]
  assert all(("claims constant size" in case) == constant for case in claims)
