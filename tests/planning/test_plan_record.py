"""The record of a plan, as `launch.plan --json` writes it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planning import tables
from planning.record import CollectiveTotal, Expected, Memory, Plan, Roofline, XlaCounts

# Of every version: files of plans are compared with each other.
KEYS = """
  step hardware topology devices model parameters mesh zero remat accumulate batch_size length
  parameter_bytes optimizer_bytes state_bytes batch_bytes result_bytes twice_bytes temporary_bytes
  activation_bytes gradient_bytes host_bytes memory memory_share collectives model_flops
  counted_flops hbm_bytes compute_seconds hbm_seconds interconnect_seconds peak_flops tokens
  compile_seconds once_flops xla_flops once_bytes xla_bytes again_bytes unseen_bytes
  optimal_seconds bytes fits seconds cost bound tokens_per_second utilisation
"""
# Since plans replay the compiler's schedule.
EXPECTED_KEYS = """
  expected_seconds expected_tokens_per_second expected_utilisation expected_shares
  largest_operations unmodelled_seconds
"""


def numbered(kind: type):
  """A part of a plan with another number in each field."""
  return kind(*range(1, 1 + len(dataclasses.fields(kind))))


def numbered_plan() -> Plan:
  """A plan whose figures are all different."""
  return Plan(
    step="train",
    hardware="v5e-8",
    topology="2x4",
    devices=8,
    model="hawk",
    parameters=7,
    mesh={"data": 8},
    zero=1,
    remat="none",
    grad_accum_steps=3,
    batch_size=16,
    length=32,
    collectives=(CollectiveTotal("all-reduce", "data", 2, 5.0),),
    compile_seconds=1.5,
    memory=numbered(Memory),
    roofline=numbered(Roofline),
    expected=Expected(8.0, {"matrix products": 1.0}, (), {}, 1.0, 7.0, 8),
    xla=numbered(XlaCounts),
  )


def test_keys_and_values_are_those_of_earlier_versions():
  plan = numbered_plan()
  record = json.loads(json.dumps(plan.record()))
  assert record.keys() == {*KEYS.split(), *EXPECTED_KEYS.split()}
  assert (record["accumulate"], record["memory"], record["memory_share"]) == (3, 11, 12)
  assert (record["bytes"], record["fits"]) == (1 + 2 + 3 + 4 + 5 + 7, False)
  assert (record["bound"], record["seconds"], record["cost"]) == ("interconnect", 6, 6.9)
  assert (record["tokens"], record["tokens_per_second"]) == (8, 8 / 6)
  assert record["utilisation"] == 1 / (7 * 6)
  assert (record["expected_seconds"], record["expected_tokens_per_second"]) == (8, 1)
  assert record["expected_utilisation"] == 1 / (7 * 8)
  assert record["collectives"] == [{"kind": "all-reduce", "axes": "data", "count": 2, "sent": 5.0}]


def test_a_short_step_s_time_is_not_printed_as_nothing():
  plan = numbered_plan()
  roofline = dataclasses.replace(
    plan.roofline, compute_seconds=1e-4, hbm_seconds=2e-4, interconnect_seconds=3e-4
  )
  expected = dataclasses.replace(plan.expected, seconds=2.8083e-3)
  short = dataclasses.replace(plan, roofline=roofline, expected=expected)
  assert "expected 2,808.3 us, roofline 300.0 us (interconnect)" in tables.line(short)


@pytest.mark.parametrize(
  ("longest", "shown"),
  [(0.2, "0.2000 s +0.0030 s"), (0.02, "20.000 ms +3.000 ms"), (9e-3, "9,000.0 us +3,000.0 us")],
)
def test_times_of_a_table_have_one_unit(longest, shown):
  def lasting(seconds):
    plan = numbered_plan()
    xla = dataclasses.replace(plan.xla, unseen_bytes={})
    expected = dataclasses.replace(plan.expected, seconds=seconds)
    least = dict.fromkeys(("compute_seconds", "hbm_seconds", "interconnect_seconds"), 3e-3)
    roofline = dataclasses.replace(plan.roofline, **least)
    return dataclasses.replace(plan, expected=expected, roofline=roofline, xla=xla)

  first, second = shown.split(" +")
  table = tables.side_by_side([lasting(longest), lasting(3e-3)])
  assert [table.count(time) for time in (first, second)] == [1, 3]
  assert f"expected {first}, roofline {second}" in tables.line(lasting(longest))
  told = tables.one(lasting(longest))
  assert f"{first} per step" in told
  assert f"{second} per step" in told


def test_activations_beyond_the_temporaries_are_said_not_to_be_in_hbm():
  plan = numbered_plan()  # 7 bytes of temporaries, 8 of activations
  plan = dataclasses.replace(plan, xla=dataclasses.replace(plan.xla, unseen_bytes={}))
  assert "activations kept for the backward pass, not all in HBM" in tables.one(plan)
  held = dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, temporary_bytes=9))
  assert "not all in HBM" not in tables.one(held)


def test_what_has_no_rule_is_named_with_its_most_of_the_expected_time():
  plan = numbered_plan()
  plan = dataclasses.replace(plan, xla=dataclasses.replace(plan.xla, unseen_bytes={}))
  assert "not modelled" not in tables.one(plan)
  unknown = dataclasses.replace(plan.expected, unmodelled={"sort": 0.2, "rng": 0.2})
  told = tables.one(dataclasses.replace(plan, expected=unknown))
  assert "not modelled: sort, rng; at most 5.0% of the expected time" in told
  # A loop of unknown length has an operation without a rule in its time.
  twice = dataclasses.replace(plan.expected, unmodelled={"while": 8.0, "sort": 8.0})
  assert "at most 100.0%" in tables.one(dataclasses.replace(plan, expected=twice))
