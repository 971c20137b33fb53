"""Losses are set against costs, and the finding names the models that no other beats in both."""

from comparison.page.figure import Axis, Figure, Question, Series
from comparison.page.trade_offs import trade_offs

MODELS = ("Griffin", "Hawk", "Baseline")


def figure(name, values, role, unit, spread=0.0):
  """A figure with a question that has an answer for each model but those with None."""
  drawn = {model: value for model, value in zip(MODELS, values, strict=True) if value is not None}
  ends = {
    model: {"low": (value - spread,), "high": (value + spread,)} if spread else {}
    for model, value in drawn.items()
  }
  return Figure(
    name=name,
    title=name,
    finding="None.",
    x=Axis(label="tokens"),
    y=Axis(label=unit),
    series=tuple(
      Series(name=model, x=(1.0,), y=(value,), **ends[model]) for model, value in drawn.items()
    ),
    conditions=(("of", name),),
    asks=(Question(text=f"{name} of all", better="lower", unit=unit, role=role),),
  )


LOSS = figure("loss", (2.0, 2.1, 2.2), "loss", "nats", spread=0.01)


def test_the_models_that_no_other_beats_in_both_are_named():
  ms = figure("time", (0.2, 0.1, 0.3), "cost", "ms")
  (found,) = trade_offs([LOSS, ms], MODELS)
  assert found.finding == (
    "No other is better in both: Griffin (2 nats, 0.2 ms), Hawk (2.1 nats, 0.1 ms). "
    "Baseline (2.2 nats, 0.3 ms) behind Griffin and Hawk."
  )
  assert [(one.name, one.x, one.y) for one in found.series] == [
    ("Griffin", (0.2,), (2.0,)),
    ("Hawk", (0.1,), (2.1,)),
    ("Baseline", (0.3,), (2.2,)),
  ]
  assert found.series[0].low == (1.99,)
  conditions = dict(found.conditions)
  assert conditions["cost"] == "time of all: figure time"
  # They may be models of other sizes.
  assert (conditions["loss, of"], conditions["cost, of"]) == ("loss", "time")


def test_equal_models_do_not_beat_each_other():
  size = figure("size", (7.0, 7.0, 7.0), "cost", "B")
  (found,) = trade_offs([figure("loss", (2.0, 2.0, 3.0), "loss", "nats"), size], MODELS)
  assert "No other is better in both: Griffin (2 nats, 7 B), Hawk (2 nats, 7 B)." in found.finding


def test_each_cost_has_a_figure_and_needs_two_models_with_both_answers():
  costs = [
    figure("time", (0.2, 0.1, None), "cost", "ms"),
    figure("size", (None, None, 9.0), "cost", "B"),
    figure("step", (1.0, 2.0, 3.0), "", ""),
  ]
  (found,) = trade_offs([LOSS, *costs], MODELS)
  assert found.name == "trade_off_time_of_all"
  assert [series.name for series in found.series] == ["Griffin", "Hawk"]
  assert trade_offs(costs, MODELS) == ()
  assert trade_offs([LOSS], MODELS) == ()
