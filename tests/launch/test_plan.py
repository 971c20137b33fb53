"""Plans for TPUs that are not here, by their real compiler."""

from __future__ import annotations

import importlib.util
import json

import pytest

from launch import experiment, plan
from launch.command import UserError
from models.accounting import account

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
RUN = """
include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/megatron8_zero1.gin'
include 'kernels/reference.gin'
include 'data/python_bytes.gin'
include 'train/adamw.gin'

MODEL_SHARDS = 4
WIDTH = 512
RNN_WIDTH = 512
HEADS = 4
DEPTH = 3
VOCAB_SIZE = 1024
WINDOW = 128
SEQUENCE_LENGTH = 256
BATCH_SIZE = 8
"""


@pytest.fixture
def run_file(tmp_path):
  path = tmp_path / "run.gin"
  path.write_text(RUN)
  return path


def test_a_plan_agrees_with_arithmetic(run_file, tmp_path, capsys):
  out = tmp_path / "plans" / "plan.json"
  assert plan.main([str(run_file), "--hardware=v5e-8", f"--json={out}"]) == 0
  shown = capsys.readouterr().out
  (found,) = json.loads(out.read_text())
  assert found["mesh"] == {"data": 2, "seq": 1, "model": 4}
  assert found["devices"] == 8

  built = experiment.build(experiment.load([str(run_file)], []))
  counted = account(built.model, batch_size=8, length=256)
  count = sum(parameter.count for parameter in counted.parameters)
  # Four bytes, over `model`, but the one key/value head is whole on each. AdamW's moments are over all.
  key_value = 512 * 2 * (512 // 4)
  held = count - key_value + 4 * key_value
  assert found["parameter_bytes"] == pytest.approx(held, rel=0.01)
  assert found["optimizer_bytes"] == pytest.approx(held, rel=0.01)
  assert found["model_flops"] == counted.training_flops * 8 * 256 / 8
  assert found["counted_flops"] == pytest.approx(found["model_flops"], rel=0.1)

  # One all-reduce of the stream at the end of each sub-block, forward and backward, and for the
  # embedding and the logits; the gradient of the one key/value head is summed too.
  sent = {(one["kind"], one["axes"]): one["sent"] for one in found["collectives"]}
  stream = 2 * (3 / 4) * (4 * 256 * 512) * 4
  once = (2 * 2 * 3 + 2) * stream + stream * 2 * 128 / 512
  assert sent["all-reduce", "model"] == pytest.approx(once, rel=0.01)
  # ZeRO 1: gradients are scattered over the two, and updated parameters gathered: half of them each.
  half = held / 2
  assert sent["reduce-scatter", "data"] == pytest.approx(half, rel=0.05)
  assert sent["all-gather", "data"] == pytest.approx(half, rel=0.05)
  for text in ("all-reduce", "bound by", "fits", f"{found['bytes'] / 2**20:.1f}"[:3]):
    assert text in shown


def test_hardware_that_is_not_known(run_file):
  with pytest.raises(
    UserError, match=r"hardware 'h100-8' is not known: name a slice of v3, v4, v5e"
  ):
    plan.main([str(run_file), "--hardware=h100-8"])
