"""Results are saved, found again, and measured again if something that determines them changes."""

from __future__ import annotations

import json

import pytest

from comparison import machine as comparison_machine
from comparison.results import NotMeasured, ResultCache


def results(folder, depends="a", **options):
  return ResultCache(folder, "speed", lambda key: [depends, key[:1]], **options)


def forbidden():
  raise AssertionError("measured again")


def test_what_was_measured_is_not_measured_again(tmp_path):
  value = {"seconds": [0.1, 1e-9], "name": "é", "none": None}
  assert results(tmp_path).cached("x, 1", lambda: value) == value
  assert results(tmp_path).cached("x, 1", forbidden) == value
  first = results(tmp_path)
  assert first.cached("y", lambda: 1) == first.cached("y", forbidden) == 1


def test_values_are_as_json_gives_them_back_at_once(tmp_path):
  given = {1: (2, 3)}
  now = results(tmp_path).cached("x", lambda: given)
  assert now == results(tmp_path).cached("x", forbidden) == {"1": [2, 3]}


@pytest.mark.parametrize("change", ["key", "depends", "part"])
def test_what_changed_is_measured_anew_and_the_old_is_kept(tmp_path, change):
  results(tmp_path).cached("x", lambda: 1)
  if change == "key":
    assert results(tmp_path).cached("x!", lambda: 2) == 2
  elif change == "depends":
    assert results(tmp_path, depends="b").cached("x", lambda: 2) == 2
  else:
    assert ResultCache(tmp_path, "other", lambda key: ["a", "x"]).cached("x", lambda: 2) == 2
  assert results(tmp_path).cached("x", forbidden) == 1


def test_an_edited_text_is_measured_anew_but_a_missing_one_is_not(tmp_path):
  def of(*text):
    depends = {"run": "a", **({"text": list(text)} if text else {})}
    return ResultCache(tmp_path, "loss", lambda key: depends)

  # As earlier versions stored it.
  of().cached("x", lambda: 1)
  assert of("first").cached("x", forbidden) == 1
  of("first").cached("y", lambda: 1)
  assert of("edited").changed({"y": 0}) == ("text", ["first"], ["edited"])
  assert of("edited").cached("y", lambda: 2) == 2
  assert of("first").cached("y", forbidden) == 1
  # The files are gone: the page needs none.
  assert of().kept("y", forbidden) in (1, 2)


def test_recall_never_measures(tmp_path):
  with pytest.raises(NotMeasured):
    results(tmp_path).kept("x", forbidden)
  results(tmp_path).cached("x", lambda: 1)
  assert results(tmp_path).kept("x", forbidden) == 1


def test_a_damaged_result_is_measured_anew(tmp_path):
  results(tmp_path).cached("x", lambda: 1)
  (file,) = (tmp_path / "speed").glob("*.json")
  file.write_text(file.read_text()[:-10])
  assert results(tmp_path).cached("x", lambda: 2) == 2
  assert results(tmp_path).cached("x", forbidden) == 2


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_by_name(tmp_path, value):
  with pytest.raises(ValueError, match=r"the result 'x' of speed cannot be kept"):
    results(tmp_path).cached("x", lambda: value)
  assert not list(tmp_path.rglob("*.json*"))


def test_who_does_not_write_measures_all_the_same(tmp_path):
  assert results(tmp_path, writes=False).cached("x", lambda: 1) == 1
  assert not list(tmp_path.rglob("*"))


def test_beginnings_and_ends_are_told_with_seconds(tmp_path):
  told = []
  results(tmp_path, on_result=lambda *event: told.append(event)).cached("x", lambda: 1)
  assert told[0] == ("x", None)
  assert told[1][0] == "x"
  assert told[1][1] >= 0
  record = json.loads(next((tmp_path / "speed").glob("*.json")).read_text())
  assert results(tmp_path).seconds({"x": 1.0, "y": 1.0}) == {"x": record["seconds"]}


def on(jax: str, python: str = "3.11.1", devices: str = "4 cores", part: str = "Speed()"):
  """What the results of a machine depend on, as a comparison stores it."""
  versions = {"python": python, "jax": jax, "jaxlib": jax}
  return {
    "models": {"Griffin": "1a"},
    "part": part,
    "on": {"devices": devices},
    "versions": versions,
  }


def of_machine(folder, **machine):
  return ResultCache(
    folder, "speed", lambda key: on(**machine), comparable=comparison_machine.comparable
  )


def test_a_patch_release_measures_nothing_again(tmp_path):
  of_machine(tmp_path, jax="0.10.1").cached("x", lambda: 1)
  for other in ({"jax": "0.10.2"}, {"jax": "0.10.2", "python": "3.12.4"}):
    assert of_machine(tmp_path, **other).cached("x", forbidden) == 1
    assert of_machine(tmp_path, **other).changed({"x": 1}) is None


def test_results_of_earlier_versions_are_found_whatever_their_patch_releases(tmp_path):
  # Their names had a digest of all versions.
  ResultCache(tmp_path, "speed", lambda key: on("0.10.1")).cached("x", lambda: 1)
  assert of_machine(tmp_path, jax="0.10.2").cached("x", forbidden) == 1


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"jax": "0.11.0"}, "JAX was 0.10 and is 0.11"),
    ({"devices": "8 cores"}, "devices were 4 cores and are 8 cores"),
    ({"part": "Speed(rows=2)"}, "its options changed"),
  ],
)
def test_what_is_measured_again_is_told_with_the_reason(tmp_path, change, told):
  of_machine(tmp_path, jax="0.10.1").cached("x", lambda: 1)
  now = of_machine(tmp_path, **{"jax": "0.10.1", **change})
  assert comparison_machine.change(*now.changed({"new": 1, "x": 1})) == told
  assert now.cached("x", lambda: 2) == 2
  assert of_machine(tmp_path, jax="0.10.1").cached("x", forbidden) == 1
