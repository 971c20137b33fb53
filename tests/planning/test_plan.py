"""Plans for hardware that this machine does not have, by its real compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from base.errors import UserError
from experiment import describe, experiment
from launch import plan
from models.accounting import account
from planning import plan as planning
from planning import search
from planning.hardware import catalogue
from planning.hlo import bytes_accessed
from planning.hlo import text as hlo

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
RUN = """
from __gin__ import dynamic_registration
from models import griffin

include 'experiment.gin'
include 'models/griffin.gin'
include 'sizes/tiny.gin'
include 'mesh/megatron8_zero1.gin'
include 'kernels/reference.gin'
include 'data/python_bytes.gin'
include 'train/steps.gin'

MODEL_SHARDS = 4
WIDTH = 512
RNN_WIDTH = 512
HEADS = 4
DEPTH = 2
VOCAB_SIZE = 1024
WINDOW = 128
SEQUENCE_LENGTH = 256
BATCH_SIZE = 8
# Each kind of block once: a second recurrent block only takes longer to compile.
griffin.griffin.pattern = ('recurrent', 'attention')
"""


@pytest.fixture
def run_file(tmp_path):
  path = tmp_path / "run.gin"
  path.write_text(RUN)
  return path


@needs_libtpu
def test_a_plan_agrees_with_arithmetic_and_with_xla(run_file, tmp_path, capsys):
  out = tmp_path / "plans" / "plan.json"
  assert plan.main([str(run_file), "--hardware=v5e-8", f"--json={out}"]) == 0
  shown, told = capsys.readouterr()
  assert told.startswith("run: compiling for v5e-8; a large model takes minutes\n")
  (found,) = json.loads(out.read_text())
  assert found["mesh"] == {"data": 2, "seq": 1, "model": 4}
  assert found["devices"] == 8

  built = experiment.build(experiment.load([str(run_file)], []))
  counted = account(built.model, batch_size=8, length=256)
  count = sum(parameter.count for parameter in counted.parameters)
  # Four bytes, over `model`, but the one key/value head is whole on each. AdamW's moments are over
  # all.
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
  once = (2 * 2 * 2 + 2) * stream + stream * 2 * 128 / 512
  assert sent["all-reduce", "model"] == pytest.approx(once, rel=0.01)
  # ZeRO 1: gradients are scattered over the two, and updated parameters gathered: half of them
  # each.
  half = held / 2
  assert sent["reduce-scatter", "data"] == pytest.approx(half, rel=0.05)
  assert sent["all-gather", "data"] == pytest.approx(half, rel=0.05)

  # XLA counts the body of a loop once, and elementwise operations too.
  assert found["once_flops"] == pytest.approx(found["xla_flops"], rel=0.03)
  assert found["once_bytes"] == pytest.approx(found["xla_bytes"], rel=0.03)
  # The new state lies where the old one was; metrics are all that comes beside it.
  assert found["twice_bytes"] == 0
  assert found["result_bytes"] < 2**13
  assert found["gradient_bytes"] == pytest.approx(held, rel=0.01)
  # At least each block's input, and what a block multiplies with its matrices.
  assert found["activation_bytes"] > 2 * (4 * 256 * 512) * 4 * (1 + 3)
  # All of the time is told, and none is shorter than what the chip's peak rates allow.
  assert sum(found["expected_shares"].values()) == pytest.approx(1)
  assert found["expected_seconds"] >= max(found["compute_seconds"], found["interconnect_seconds"])
  assert len(found["largest_operations"]) == 10
  largest = [one["seconds"] for one in found["largest_operations"]]
  assert largest == sorted(largest, reverse=True)
  assert sum(found["unmodelled_seconds"].values()) < 0.01 * found["expected_seconds"]
  for text in (
    "all-reduce",
    "expected time",
    "matrix products",
    "roofline",
    "fits",
    "all of it",
    f"{found['bytes'] / 2**20:.1f}"[:3],
  ):
    assert text in shown
  # A small model's step takes microseconds: no time is shown as zero.
  assert " 0.0000 s" not in shown
  assert shown.count(" us") >= 4
  assert "1 microbatch\n" in shown


@needs_libtpu
def test_a_plan_counts_the_states_that_rows_carry(run_file, capsys):
  """Compiled for devices that share rows and channels."""
  run_file.write_text(f"{RUN}\ninclude 'train/carried_state.gin'\n")
  assert plan.main([str(run_file), "--hardware=v5e-8"]) == 0
  # Of 4 rows a device: a window of the one head, a convolution's inputs, a quarter of the channels.
  row = 4 * (2 * 128 * 128 + 128 + (3 + 1) * 512 // 4 + 2)
  line = f"carried states {describe.show_bytes(4 * row + 4)}"
  assert line in " ".join(capsys.readouterr().out.split())


@needs_libtpu
def test_decoding_of_several_models_side_by_side(run_file, tmp_path, capsys):
  out = tmp_path / "plans.json"
  arguments = [str(run_file), "--hardware=v5e-8", "--step=decode", f"--json={out}"]
  # Attention's window, of which Hawk has no use.
  arguments += ["--models=hawk,griffin", "--gin.WINDOW=64", "--gin.SEQUENCE_LENGTH=512"]
  assert plan.main(arguments) == 0
  shown = capsys.readouterr().out
  hawk, griffin = json.loads(out.read_text())
  assert "hawk" in shown
  assert "griffin" in shown
  assert re.search(r"\d\.\d us ", shown)  # A token takes less than a ten-thousandth of a second.
  for found, sub_blocks in ((hawk, 4), (griffin, 4)):
    assert (found["step"], found["tokens"], found["length"]) == ("decode", 8, 512)
    sent = {(one["kind"], one["axes"]): one["count"] for one in found["collectives"]}
    assert sent["all-reduce", "model"] == sub_blocks + 1
    assert found["optimizer_bytes"] == found["gradient_bytes"] == 0
    assert found["twice_bytes"] < 64  # counters
    assert found["once_bytes"] == pytest.approx(found["xla_bytes"], rel=0.03)
    # Every weight meets every row once.
    count = sum(p.count for p in account(build(run_file).model, batch_size=1, length=1).parameters)
    assert found["model_flops"] == pytest.approx(2 * count * 8 / 8, rel=0.2)
  # One head of 128, whole on each device, keys and values of 64 tokens for four rows in float32.
  cache = 4 * 64 * 2 * 128 * 4
  assert griffin["state_bytes"] == pytest.approx(
    hawk["state_bytes"] + cache - 4 * 4 * 512 / 4 * 4, rel=0.05
  )


@needs_libtpu
def test_prefill_leaves_a_state_and_the_last_token_s_logits(run_file, tmp_path):
  out = tmp_path / "plan.json"
  arguments = [str(run_file), "models/hawk.gin", "--hardware=v5e-8", "--step=prefill"]
  assert plan.main([*arguments, f"--json={out}", "--gin.DEPTH=1"]) == 0
  (found,) = json.loads(out.read_text())
  hawk = build(run_file, "models/hawk.gin", "--gin.DEPTH=1").model
  logits = 2 * 8 * 1024 * 512
  expected = hawk.matmul_flops(256) * 8 * 256 - 255 / 256 * 256 * logits
  assert found["model_flops"] == expected / 8
  assert found["counted_flops"] == pytest.approx(found["model_flops"], rel=0.05)
  assert found["once_bytes"] == pytest.approx(found["xla_bytes"], rel=0.03)
  # Whole logits and, of a quarter of the channels, the state and three taps: four rows in float32.
  # Beside them positions and what a TPU pads.
  rows, vocabulary, channels = 4, 1024, 512 // 4
  expected = 4 * rows * (vocabulary + (1 + 3) * channels)
  assert found["result_bytes"] == pytest.approx(expected, rel=0.15)


@needs_libtpu
@pytest.mark.parametrize(("policy", "share"), [("offload", 0.5), ("offload_mixer_outputs", 0.1)])
def test_offloaded_activations_lie_in_the_host_s_memory(run_file, tmp_path, capsys, policy, share):
  out, timeline = tmp_path / "plan.json", tmp_path / "timeline.json"
  arguments = [str(run_file), "models/hawk.gin", "--hardware=v5e-8", f"--json={out}"]
  if policy == "offload_mixer_outputs":
    arguments[2:2] = ["kernels/pallas_tpu.gin", "--gin.RNN_WIDTH=1024"]
  offload = f"--gin.models.backbone.Backbone.remat={policy}"
  assert plan.main([*arguments, "--gin.DEPTH=2", offload, f"--timeline={timeline}"]) == 0
  told = capsys.readouterr().err.splitlines()
  assert [line for line in told if line.startswith("written to")] == [
    f"written to {file}" for file in (out, timeline)
  ]
  (found,) = json.loads(out.read_text())
  assert found["host_bytes"] > share * found["activation_bytes"]
  assert found["twice_bytes"] == 0
  # What goes to the host and comes back takes the host's link, and time.
  link = [
    event
    for event in json.loads(timeline.read_text())["traceEvents"]
    if event["ph"] == "X" and event["cat"] == "waiting for the host" and "runs" in event["args"]
  ]
  sent = sum(event["dur"] * 1e-6 * event["args"]["runs"] for event in link if event["tid"] == 3)
  host_link = catalogue.hardware("v5e-8").pace.host_link
  assert sent * host_link == pytest.approx(2 * found["host_bytes"], rel=0.2)


@needs_libtpu
def test_the_compiler_s_own_text_says_what_jax_reads_out_of_its_result():
  device = catalogue.hardware("v5e-8").devices[0]
  x = jax.ShapeDtypeStruct(
    (256, 256), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device)
  )
  lowered = jax.jit(lambda x: x @ x + 1, donate_argnums=0).lower(x)
  compiled, program = planning.compile_program(lowered, "tpu")
  read = hlo.HloProgram(compiled.as_text())
  assert list(program.computations) == list(read.computations)
  assert bytes_accessed.traffic(program) == bytes_accessed.traffic(read)
  assert program.in_place == read.in_place == {()}
  assert program.flops() == read.flops() == 2 * 256**3


@needs_libtpu
def test_bytes_agree_with_xla_s_count_where_collectives_run_beside_other_work(run_file):
  files = ["models/hawk.gin", "precision/bfloat16.gin", "mesh/zero3.gin", "kernels/pallas_tpu.gin"]
  found = planning.plan(
    build(run_file, *files, "--gin.DEPTH=2", "--gin.BATCH_SIZE=16"), catalogue.hardware("v5e-8")
  )
  assert {one.kind for one in found.collectives} >= {"all-gather", "reduce-scatter"}
  assert found.xla.again_bytes > 0.05 * found.xla.xla_bytes
  assert found.xla.once_bytes == pytest.approx(found.xla.xla_bytes, rel=0.03)


@needs_libtpu
def test_bytes_that_a_tpu_moves_for_one_operation_each():
  """Gathered and scattered rows count whole 8 x 128 tiles, a slice itself, an update once."""
  mesh = jax.sharding.Mesh(np.array(catalogue.hardware("v5e-8").devices[:1]), ("x",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)

  def stacked(x, rows):
    return jax.lax.scan(lambda h, row: ((h + row),) * 2, x, rows)[1]

  table, rows = shape(4096, 512), shape(1024, dtype=jnp.int32)
  for function, arguments in (
    (lambda table, rows: jnp.take(table, rows, axis=0, mode="clip"), (table, rows)),
    (lambda table, rows, x: table.at[rows].add(x, mode="drop"), (table, rows, shape(1024, 512))),
    (lambda x: x[..., 100:105] * 2, (shape(512, 3, 130),)),
    (stacked, (shape(1024, 512), shape(7, 1024, 512))),
  ):
    compiled, program = planning.compile_program(jax.jit(function).lower(*arguments), "tpu")
    counted = bytes_accessed.traffic(program, loops=False, everywhere=True)
    assert counted.as_xla_counts == pytest.approx(
      compiled.cost_analysis()["bytes accessed"], rel=0.01
    )


@needs_libtpu
def test_kernels_are_those_of_the_chip_that_is_planned_for(run_file):
  """TPU v3 multiplies no bfloat16 inside of a kernel: attention is widened, or its compiler
  refuses.
  """
  files = ["models/transformer.gin", "precision/bfloat16.gin", "kernels/pallas_tpu.gin"]
  built = build(run_file, *files, "mesh/data.gin", "--gin.DEPTH=1")
  found = planning.plan(built, catalogue.hardware("v3-8"))
  assert any(name.startswith("splash") for name in found.xla.unseen_bytes)


def with_memory(slice_, size):
  chip = dataclasses.replace(slice_.chip, memory=size)
  return dataclasses.replace(slice_, generation=dataclasses.replace(slice_.generation, chip=chip))


@needs_libtpu
def test_a_search_compiles_the_cheapest_that_can_fit(run_file):
  # Small arrays would lie in the chips' own memory, which is not counted.
  arguments = ["--gin.DEPTH=2", "--gin.BATCH_SIZE=256", "--gin.SEQUENCE_LENGTH=512"]
  built = build(run_file, "models/hawk.gin", *arguments)
  slice_, told = catalogue.hardware("v5e-8"), []
  (roomy,) = search.search(built, slice_, compiles=1, tell=told.append)
  assert roomy.memory.fits
  assert (roomy.remat, roomy.grad_accum_steps) == ("none", 1)
  assert "remat none" in told[0]
  assert "stopped after --compiles=1; the next candidate is" in told[-1]

  # A run that is given these arguments is the one that was planned.
  run = build(run_file, "models/hawk.gin", *arguments, *search.arguments(roomy))
  assert run.sharding_plan(slice_.devices).sizes == roomy.mesh
  assert (run.mesh.zero, run.model.remat) == (roomy.zero, roomy.remat)
  assert run.options.step.grad_accum_steps == roomy.grad_accum_steps

  small = with_memory(slice_, roomy.memory.bytes * 0.6)
  (tight,) = search.search(built, small, compiles=1, tell=told.append)
  assert tight.memory.fits
  assert tight.memory.bytes <= small.chip.memory
  assert (tight.remat, tight.grad_accum_steps, tight.mesh) != ("none", 1, roomy.mesh)


@needs_libtpu
def test_a_search_splits_time_where_there_is_one_row(run_file):
  arguments = ["--gin.DEPTH=1", "--gin.BATCH_SIZE=1", "--gin.SEQUENCE_LENGTH=1024"]
  built = build(run_file, "models/hawk.gin", *arguments)
  slice_ = catalogue.hardware("v5e-8")
  sizes = {(choice.data, choice.seq, choice.model) for choice in search.choices(built, slice_)}
  assert sizes == {(1, 1, 8), (1, 2, 4), (1, 4, 2), (1, 8, 1)}
  told = []
  (found,) = search.search(built, slice_, compiles=1, tell=told.append)
  assert told[0].startswith(": compiling data=")
  assert found.mesh["seq"] > 1
  # With more rows than a microbatch's devices, time stays whole.
  for choice in search.choices(build(run_file), slice_):
    assert choice.seq == 1 or choice.data * choice.grad_accum_steps == 8


@needs_libtpu
def test_a_search_that_finds_nothing_says_what_would_help(run_file, capsys):
  # Seven rows and 255 tokens have no eighths, and four heads neither.
  arguments = ["--gin.BATCH_SIZE=7", "--gin.SEQUENCE_LENGTH=255"]
  assert plan.main([str(run_file), "--hardware=v5e-8", "--search", *arguments]) == 1
  told = capsys.readouterr().err
  assert "run: no setup fits: 7 rows of 255 tokens on v5e-8. Use more devices" in told


def test_what_is_left_out_of_a_search(run_file):
  built, slice_ = build(run_file), catalogue.hardware("v5e-8")
  found = search.choices(built, slice_)
  assert [choice.seconds for choice in found] == sorted(choice.seconds for choice in found)
  rows = built.batch_size
  assert all(rows % (choice.data * choice.grad_accum_steps) == 0 for choice in found)
  assert all(choice.data * choice.seq * choice.model == 8 for choice in found)
  assert {choice.zero for choice in found if choice.data * choice.seq == 1} == {0}
  # AdamW's moments alone, shared out by all, take a byte more than each has.
  count = account(built.model, batch_size=1, length=1).parameter_count
  assert not search.choices(built, with_memory(slice_, count - 1))


@needs_libtpu
def test_a_search_takes_kernels_that_only_the_planned_hardware_has(run_file):
  slice_ = catalogue.hardware("v5e-8")
  assert search.choices(build(run_file, "kernels/pallas_tpu.gin"), slice_)


def test_a_search_sets_the_macro_of_microbatches_where_the_files_use_it(run_file):
  configuration = experiment.load([str(run_file)], [])
  assert search.microbatches_name(configuration) == "MICROBATCHES"
  bound = "training.step.StepOptions.grad_accum_steps"
  configuration = experiment.load([str(run_file)], [f"--gin.{bound}=2"])
  assert search.microbatches_name(configuration) == bound


def build(run_file, *more):
  files = [file for file in more if not file.startswith("--")]
  arguments = [argument for argument in more if argument.startswith("--")]
  return experiment.build(experiment.load([str(run_file), *files], arguments))


def test_an_argument_that_no_model_uses_is_refused(run_file):
  with pytest.raises(UserError, match=r"--gin\.HEADS=8: .*HEADS has no effect.*no model uses it"):
    plan.main([str(run_file), "--hardware=v5e-8", "--models=hawk", "--gin.HEADS=8"])


def test_hardware_that_is_not_known(run_file):
  with pytest.raises(
    UserError, match=r"hardware 'b200-8' is not known: name a slice of v3, v4, v5e.*h100 or h200"
  ):
    plan.main([str(run_file), "--hardware=b200-8"])


@pytest.mark.skipif(
  importlib.util.find_spec("jax_plugins") is not None, reason="the CUDA plugin is installed"
)
def test_gpus_without_their_compiler_name_the_extra_to_install(run_file):
  with pytest.raises(UserError, match=r"'h200-8' needs the CUDA plugin .*make install EXTRAS=gpu"):
    plan.main([str(run_file), "--hardware=h200-8"])
