"""Every model of the zoo keeps the contract, as `python -m launch.check` runs it.

Slow because every variant is a program to trace and to compile. One process runs the checks that
compile one program or none on all models; those that compile more on so many of them that each
mixer is checked, and each of what stands around the mixers of a model, though not every mixer in
each of these; and those that only ask how layers are compiled, or which arrays a state has, on so
many that each kind of mixer is checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import contract
from config.place import ConfigError
from contract.subject import Subject
from experiment import model_zoo
from models.language_model import LanguageModel

ROOT = Path(__file__).parents[2]
NAMES = model_zoo.names()
ON_ALL = ("causality", "packing", "state size", "parameters", "FLOPs")
ON_KINDS = ("remat", "scan", "checkpoint", "widths", "TPU compiler")


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


def pieces(model: LanguageModel) -> set[str]:
  """The mixers of a model, and all of the model but its pattern and depth."""
  return {*map(repr, model.pattern), repr(model.clone(pattern=(), depth=1))}


def kinds(model: LanguageModel) -> set[str]:
  """The kinds of mixers of a model: the classes that they are made of, whatever their sizes."""
  classes = (re.findall(r"<class '([\w.]+)'>", repr(mixer)) for mixer in model.pattern)
  return set(map(" of ".join, classes))


def parts_of(check: str) -> Callable[[LanguageModel], set[str]]:
  """What the models that are checked have to have, all together."""
  return kinds if check in ON_KINDS else pieces


def covering(models: dict[str, LanguageModel], parts=pieces) -> list[str]:
  """Models whose parts are those of all: in each step the one with the most new parts, and of
  these the one with the fewest others.

  Hawk's mixers and Griffin's attention stand in one hybrid.
  """
  left, chosen = set().union(*map(parts, models.values())), []
  while left:
    most = max(models, key=lambda n: (len(parts(models[n]) & left), -len(parts(models[n]))))
    chosen.append(most)
    left -= parts(models[most])
  return chosen


def holders(models: dict[str, LanguageModel], name: str, check: str) -> list[str]:
  """The models on which a check is run to check a model."""
  if check in ON_ALL:
    return [name]
  parts = parts_of(check)
  found = [n for n in covering(models, parts) if parts(models[n]) & parts(models[name])]
  assert parts(models[name]) <= set().union(*(parts(models[n]) for n in found))
  return found


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
  return subjects()


@pytest.fixture(scope="module")
def findings(models, tmp_path_factory) -> dict[str, tuple[int, str, dict[str, list[dict]]]]:
  """Of each model the exit status, what was printed, and the findings of each check."""
  folder, same = tmp_path_factory.mktemp("contracts"), checked_as(models)
  run_on = {c: NAMES if c in ON_ALL else covering(models, parts_of(c)) for c in contract.CHECKS}
  asked = [
    f"{name}:{','.join(check for check, on in run_on.items() if name in on)}"
    for name in dict.fromkeys(same.values())
  ]
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
  """In the models that have its pieces, if not in itself."""
  for holder in holders(models, name, check):
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
