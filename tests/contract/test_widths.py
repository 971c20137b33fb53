"""The check of widths fails where rates do not follow them, and says where it cannot be made."""

import pytest

import contract
from experiment import model_zoo
from launch import check
from models import maximal_update

FILES = ["models/transformer.gin"]


def findings(wider, factors=(4,)):
  model = model_zoo.build(FILES)[0]
  return [finding for _, finding in contract.run(model, ["widths"], wider, factors)]


def wider(factor):
  return model_zoo.build(FILES, widened=factor)[0]


def test_rates_that_ignore_the_width_fail(monkeypatch):
  monkeypatch.setattr(maximal_update, "rate_factors", lambda model, base: ())
  (found,) = findings(wider)
  assert found.failed
  assert found.difference > 2 * found.allowed


def test_models_that_differ_in_more_than_widths_are_refused():
  (found,) = findings(lambda factor: model_zoo.build(FILES, [f"--gin.WIDTH={32 * factor}"])[0])
  assert found.outcome == "refused"
  assert "head_dim=32, and 8 in the base" in found.says


def test_models_that_do_not_follow_the_width_are_told_of():
  (found,) = findings(lambda factor: wider(1))
  assert (found.outcome, found.says) == ("not run", "the model's width does not follow WIDTH")
  (found,) = findings(None)
  assert (found.outcome, "launch.check" in found.says) == ("not run", True)


def test_wider_models_have_heads_as_wide():
  model, macros = model_zoo.build(["models/griffin.gin"], widened=2)
  assert (model.width, macros["WIDTH"], macros["HEADS"]) == (64, "64", "8")
  given = model_zoo.build(["models/griffin.gin"], ["--gin.WIDTH=48", "--gin.HEADS=3"], 2)[0]
  assert given.width == 96
  same, macros = model_zoo.build(["models/griffin.gin"], ["--gin.RNN_WIDTH=%WIDTH"], 2)
  assert (same.width, macros["RNN_WIDTH"]) == (64, "64")


@pytest.mark.parametrize("widths", ["32", "16", "48", "0", "wide"])
def test_widths_that_are_no_multiples_are_refused(widths, capsys):
  with pytest.raises(SystemExit) as ended:
    check.main(["--model=hawk", "--only=widths", f"--widths=64,{widths}"])
  assert ended.value.code == 2
  told = f"--widths: '{widths}' is no multiple of WIDTH=32, from 64 on"
  assert told in capsys.readouterr().err
