"""Placements follow the rules, and the error about one that does not fit suggests what to do."""

import types

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from models.accounting import list_parameters
from models.backbone import Backbone
from models.griffin import griffin
from parallel.mesh import MeshSpec
from parallel.rules import Rules
from parallel.sharding_plan import Parallelism, ShardingPlan


def model(**options):
  sizes = {"rnn_width": 2560, "heads": 16, "gate_blocks": 16} | options
  return griffin(Backbone(vocab_size=32_000, width=2048, depth=24), **sizes)


def sharding_plan(stage: int = 0, rules: Rules | None = None, built=None, **sizes) -> ShardingPlan:
  mesh = AbstractMesh(
    (sizes.get("data", 1), sizes.get("seq", 1), sizes.get("model", 1)), ("data", "seq", "model")
  )
  return ShardingPlan(mesh, rules or Rules(), stage, list_parameters(built or model()))


def held(found: ShardingPlan, kind: str) -> int:
  """Bytes of all parameters on one device, if they were placed like a kind of array."""
  places = found.param_shardings
  return sum(found.held_bytes(p, getattr(places[p.path], kind)) for p in found.parameters)


def test_megatron_splits_columns_then_rows_and_leaves_the_shared_head_whole():
  places = sharding_plan(model=16).param_shardings
  block = "stack/repeats/block_0/"
  expected = {
    block + "mixer/linear_x/kernel": P(None, None, "model"),
    block + "mixer/linear_out/kernel": P(None, "model", None),
    block + "mixer/rg_lru/gate_a/kernel": P(None, "model", None, None),
    block + "mixer/conv1d/kernel": P(None, None, "model"),
    block + "mlp/down/kernel": P(None, "model", None),
    "stack/repeats/block_2/mixer/query/kernel": P(None, None, "model"),
    "stack/repeats/block_2/mixer/key/kernel": P(None, None, None),
    "embedding/embedding": P("model", None),
  }
  assert {path: places[path].used for path in expected} == expected


@pytest.mark.parametrize("stage", range(4))
def test_each_zero_stage_divides_what_it_promises(stage):
  found, whole = sharding_plan(stage, data=32), sharding_plan(0).parameters
  total = sum(parameter.bytes for parameter in whole)
  for kind, first in (("optimizer", 1), ("gradient", 2), ("stored", 3)):
    share = held(found, kind) / total
    # Vectors stay whole: less than a thousandth of the bytes.
    assert share == 1 if stage < first else 1 / 32 <= share < 1 / 32 + 1e-3
  assert held(found, "used") == total


def test_zero_and_megatron_divide_together():
  found = sharding_plan(3, data=16, model=16)
  total = sum(parameter.bytes for parameter in found.parameters)
  shared_heads = sum(p.bytes for p in found.parameters if "kv_heads" in p.axes)
  assert held(found, "stored") < total / 256 + shared_heads / 16 + 1e-3 * total


@pytest.mark.parametrize(
  ("sizes", "options", "message"),
  [
    (
      {"model": 16},
      {"gate_blocks": 10},
      r"gate_a/kernel: 10 gate blocks cannot be split evenly over model=16 \(the gates need no "
      r"communication .*Make gate_blocks .* a multiple of 16, or --gin\.MODEL_SHARDS a divisor of "
      r"10: "
      r"1, 2, 5, 10\.",
    ),
    ({"model": 32}, {}, r"16 gate blocks cannot be split evenly over model=32"),
    ({"model": 3}, {"gate_blocks": 1}, r"cannot be split evenly over model=3"),
  ],
)
def test_a_dimension_that_does_not_divide_is_named_with_the_way_out(sizes, options, message):
  with pytest.raises(ValueError, match=message):
    sharding_plan(built=model(**options), **sizes)


def test_an_axis_without_a_rule_and_a_rule_without_an_axis_are_named():
  table = dict(Rules().table)
  with pytest.raises(ValueError, match="no rule for its logical axis 'mlp'"):
    sharding_plan(rules=Rules(table={k: v for k, v in table.items() if k != "mlp"}), model=2)
  with pytest.raises(
    ValueError, match="'mlp' -> 'tensor' has an unknown mesh axis; the mesh has data"
  ):
    sharding_plan(rules=Rules(table=table | {"mlp": "tensor"}), model=2)


def test_a_misspelt_axis_that_may_be_replicated_is_named():
  with pytest.raises(ValueError, match=r"replicated has 'kv_head', .*; did you mean kv_heads\?"):
    Rules(replicated=("kv_head",))


def test_parameters_replicated_by_oversight_are_an_error():
  rules = Rules(table=dict(Rules().table) | {"mlp": None})
  with pytest.raises(
    ValueError, match=r"of the parameter bytes are replicated over mesh axis model"
  ):
    sharding_plan(rules=rules, model=4)
  sharding_plan(rules=Rules(table=rules.table, replicated=("mlp", "kv_heads")), model=4)


def test_rows_that_cannot_be_split_are_named():
  found = sharding_plan(data=4)
  found.check_batch(8, 511)
  message = (
    r"batch: 6 rows at a time cannot be split evenly over data=4\. Make --gin\.BATCH_SIZE a "
    r"multiple "
    r"of 4, or --gin\.DATA_SHARDS a divisor of 6: 1, 2, 3\."
  )
  with pytest.raises(ValueError, match=message):
    found.check_batch(6, 512)


def test_a_row_that_the_time_axis_does_not_divide_is_refused():
  with pytest.raises(
    ValueError,
    match=r"batch: 65 tokens of a row cannot be split evenly over seq=2\. "
    r"Make --gin\.SEQUENCE_LENGTH a",
  ):
    sharding_plan(seq=2).check_batch(8, 65)


def test_minus_one_takes_the_devices_that_are_left():
  assert MeshSpec(data=-1, model=4).sizes(32) == {"data": 8, "seq": 1, "model": 4}
  with pytest.raises(ValueError, match="both -1"):
    MeshSpec(data=-1, model=-1)
  devices = [types.SimpleNamespace(platform="cpu", id=i) for i in range(4)]
  arranged = MeshSpec(data=2, model=2)._arrange(devices, (2, 1, 2))
  assert np.array_equal([[d.id for d in row] for row in arranged[:, 0]], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
  ("spec", "devices", "message"),
  [
    (
      {"data": 3, "model": 4},
      8,
      r"mesh axes data=3 x model=4 need 12 devices, 8 are visible\. Set --gin\.DATA_SHARDS=2, or "
      r"launch on 12",
    ),
    (
      {"data": 2, "model": 3},
      8,
      r"need 6 devices, 8 .* Set --gin\.DATA_SHARDS and --gin\.MODEL_SHARDS so .* is 8, or launch "
      r"on 6",
    ),
    (
      {"model": 3},
      8,
      r"model=3 need a multiple of 3 devices, 8 .*Set --gin\.MODEL_SHARDS so .* divides 8, or "
      r"launch on 9",
    ),
    ({"data": 2, "slices": 4}, 2, r"mesh\.slices=4 does not divide data=2"),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_told_with_the_way_out(spec, devices, message):
  with pytest.raises(ValueError, match=message):
    MeshSpec(**spec).sizes(devices)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [({"model": 0}, r"mesh axis model=0 must be at least 1"), ({"slices": 0}, "slices=0")],
)
def test_a_mesh_that_cannot_exist_is_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    MeshSpec(**sizes)


def test_zero_splits_over_the_time_axis_too():
  """Devices along it see other tokens of the same rows: they would hold copies."""
  found, alone = sharding_plan(3, data=2, seq=8), sharding_plan(3, data=16)
  assert held(found, "stored") == held(alone, "stored")


def test_an_unknown_zero_stage_is_refused():
  with pytest.raises(ValueError, match="ZeRO stage 4 does not exist"):
    Parallelism(zero=4)
