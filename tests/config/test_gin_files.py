"""Every gin file of the repository builds something that can be trained."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from comparison import comparison, of_runs
from comparison.progress import ComparisonProgress
from comparison.runs import TrainedRuns
from config import config, source
from config.place import GIN_ROOT
from experiment import describe, experiment
from models import accounting
from parallel.rules import Rules
from parallel.sharding_plan import ShardingPlan
from training import step as step_lib


def read(file):
  return (GIN_ROOT / file).read_text(encoding="utf-8")


# Options of models, which no choice of a model may overturn.
SET = {"WINDOW": 96, "CHUNK": 32, "KV_HEADS": 1, "DELTA_HEAD_DIM": 16, "VOCAB_MULTIPLE": 3}
MODELS = sorted(str(path.relative_to(GIN_ROOT)) for path in (GIN_ROOT / "models").glob("*.gin"))
FILES = sorted(str(path.relative_to(GIN_ROOT)) for path in GIN_ROOT.rglob("*.gin"))
RUNS = [file for file in FILES if file.startswith("runs/")]
COMPARISONS = [
  file for file in FILES if Path(file).parent == Path("compare") and "PARTS =" in read(file)
]
# One of each folder: what a file is combined with, unless it is of that folder itself.
PARTS = {
  "models": "models/griffin.gin",
  "sizes": "sizes/tiny.gin",
  "mesh": "mesh/single.gin",
  "kernels": "kernels/auto.gin",
  "data": "data/python_bytes.gin",
  "train": "train/steps.gin",
  "optimizer": "optimizer/adamw.gin",
  "schedule": "schedule/cosine.gin",
  "precision": "precision/float32.gin",
}
# Parameters of the largest model over those of the smallest at one size: the paper's sizes fix
# widths.
LARGEST_RATIO = {
  "compare/quick.gin": 1.02,
  "compare/state_carry.gin": 1.02,
  "compare/state_carry_texts.gin": 1.02,
  "compare/paper.gin": 1.21,
  "compare/rivals.gin": 1.02,
  "compare/rivals_quick.gin": 1.02,
  "compare/mup_quick.gin": 1.21,
  "compare/isoflop.gin": 1.02,
  "compare/ruler.gin": 1.21,
  "compare/ruler_quick.gin": 1.02,
}
# Included by others, and nothing alone.
FRAGMENTS = {
  "models/backbone.gin": "models/griffin.gin",
  "train/tensorboard.gin": "train/steps.gin",
  "data/text_dataset.gin": "data/python_bytes.gin",
  "data/recall.gin": "data/induction_heads.gin",
  "data/bytes.gin": "data/python_bytes.gin",
  "data/ruler_tasks.gin": "data/ruler.gin",
  "data/ruler_needles.gin": "data/ruler.gin",
  "data/ruler_words.gin": "data/ruler.gin",
  "data/ruler_few_words.gin": "data/ruler.gin",
  "data/text_files.gin": "data/text_files_bytes.gin",
  "data/json_lines.gin": "data/json_lines_bytes.gin",
  "data/symbols.gin": "data/induction_heads.gin",
  "data/sentencepiece.gin": "data/text_files_sentencepiece.gin",
  "data/tokenizer.gin": "data/text_files_tokenizer.gin",
  "data/tiktoken.gin": "data/text_files_tiktoken.gin",
  "data/tokenizer_file.gin": "data/text_files_tokenizer.gin",
  "data/train_and_heldout.gin": "data/python_bytes.gin",
  "data/hub_dataset.gin": "data/hub_dataset_bytes.gin",
  "data/parquet.gin": "data/parquet_bytes.gin",
  "data/records.gin": "data/records_bytes.gin",
  "data/saved_dataset.gin": "data/saved_dataset_bytes.gin",
  # Of the tokenizer of what is trained on.
  "data/instructions.gin": "data/instructions_bytes.gin",
  "data/instructions_gemma_turns.gin": "data/instructions_bytes.gin",
}

# Set a few values of what a file of the same folder sets whole.
ADDED = (
  "train/carried_state.gin",
  "train/learned_state.gin",
  "train/mup.gin",
  "train/passed_state.gin",
  "train/time_chunks.gin",
)


def load(file):
  if file in RUNS:
    return experiment.load(GIN_ROOT / file)
  folder = "added" if file in ADDED else file.partition("/")[0]
  others = {folder: FRAGMENTS.get(file, file)} if "/" in file else {}
  parts = PARTS | others
  # Of a tokenizer that is yet to be trained, the size cannot be known.
  own = parts["data"].endswith(("s_sentencepiece.gin", "_tokenizer.gin", "_tiktoken.gin"))
  own = ["--gin.VOCAB_SIZE=300"] if own else []
  return experiment.load(["experiment.gin", *parts.values()], own)


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("compare/")])
def test_file_is_read_built_and_shaped(file):
  loaded = load(file)
  built = experiment.build(loaded)
  if file in ("kernels/pallas_tpu.gin", "kernels/mosaic_gpu.gin"):
    # For hardware that is not attached: it says so, and says what there is.
    with pytest.raises(ValueError, match="available"):
      describe.abstract_state(built)
    return
  state = describe.abstract_state(built)
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  # The appendix's networks for recall have about 250 thousand, all others millions.
  small = "sizes/recall.gin" in (file, *re.findall(r"'(.*)'", read(file)))
  assert 2e5 < count < 3e5 if small else count > 1e6


@pytest.mark.parametrize("file", RUNS)
def test_run_takes_a_step_without_warnings_of_its_own(file):
  loaded = load(file)
  # What one model has no use for is in the files that the models share; a run has no such line.
  assert not [warning for warning in loaded.warnings if warning.startswith(f"gin/{file}")]
  built = experiment.build(loaded)
  state, batch = describe.abstract_state(built), describe.abstract_batch(built)
  step = step_lib.make_train_step(built.model, built.optimizer.transformation(), built.options.step)
  after, metrics = jax.eval_shape(step, state, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file", RUNS)
def test_saved_text_of_a_run_builds_the_same(file, tmp_path):
  loaded = load(file)
  for text in (loaded.text(), loaded.operative_text()):
    saved = tmp_path / "saved.gin"
    saved.write_text(text)
    again = experiment.load(saved)
    values = {key.name: repr(item.value) for key, item in loaded.operative.items()}
    assert {key.name: repr(item.value) for key, item in again.operative.items()} == values
    experiment.build(again)


@pytest.mark.parametrize("file", COMPARISONS)
def test_every_run_and_every_model_of_a_comparison_is_built_and_shaped(file):
  loaded = comparison.load(GIN_ROOT / file)
  assert not [warning for warning in loaded.warnings if warning.startswith("gin/compare")]
  built = loaded.build()
  runs = TrainedRuns(built, Path("unused"), ComparisonProgress(), "")
  specs, sizes = set(), {}
  for part in built.parts.values():
    if isinstance(part, comparison.OnTrainedModels):
      specs |= {dataclasses.replace(s, seed=0) for s in part.part.results(runs).values()}
      continue
    models = {
      name: experiment.build(built.model_config(name, part.choices)).model for name in built.models
    }
    assert part.part.results(models)
  for spec in sorted(specs, key=str):
    # Builds the run and its model's shapes.
    cost = runs.cost(spec)
    sizes.setdefault((spec.size, cost.tokens), []).append(cost.parameters)
  assert bool(sizes) == bool(specs)
  # What is compared at one size has equally many tokens, but where the FLOPs are equal, and about
  # as many parameters.
  if file != "compare/isoflop.gin":
    assert len({size for size, _ in sizes}) == len(sizes)
  assert all(max(counts) < LARGEST_RATIO[file] * min(counts) for counts in sizes.values())


def test_every_file_of_a_comparison_is_part_of_one():
  included, waiting = set(), [*COMPARISONS, of_runs.FILE]
  while waiting:
    file = waiting.pop()
    included.add(file)
    named = set(re.findall(r"(?<=')compare/[\w/]+\.gin(?=')", read(file)))
    waiting += named - included
  assert included == {file for file in FILES if file.startswith("compare/")}


def test_described_sharding_says_where_every_parameter_lies(monkeypatch):
  """Uses abstract devices, which do not exist."""
  built = experiment.build(
    experiment.load(
      [RUNS[0], "mesh/zero3.gin"],
      ["--gin.WIDTH=256", "--gin.RNN_WIDTH=256", "--gin.HEADS=4"],
    )
  )
  mesh = AbstractMesh((2, 1, 4), ("data", "seq", "model"))
  placed = ShardingPlan(mesh, Rules(max_replicated=1.0), 3, accounting.list_parameters(built.model))
  monkeypatch.setattr(experiment.Experiment, "sharding_plan", lambda self, devices=None: placed)
  lines = [line.split("  ") for line in describe.sharding(built).splitlines()]
  told = {parts[0]: [part.strip() for part in parts[1:] if part] for parts in lines}
  assert {parameter.path for parameter in placed.parameters} <= set(told)
  vocabulary = built.model.padded_vocab_size
  assert told["embedding/embedding"] == [
    "vocab, embed", "model, -", "model+data, -", "model+data, -",
    describe.show_bytes(vocabulary * 256 * 4 / 8),
  ]  # fmt: skip
  assert told["mesh"] == ["data=2 x seq=1 x model=4, ZeRO stage 3"]
  held = sum(placed.held_bytes(p, placed.param_shardings[p.path].stored) for p in placed.parameters)
  assert told["parameters per device"] == [describe.show_bytes(held)]


def test_described_costs_say_how_many_rows_are_padding():
  told = describe.description(experiment.build(experiment.load(RUNS[0])))
  assert re.search(r"^vocabulary +259 ids in 272 rows: 13 are padding$", told, re.MULTILINE)
  unpadded = experiment.build(experiment.load(RUNS[0], ["--gin.VOCAB_MULTIPLE=1"]))
  assert "padding" not in describe.description(unpadded)
  counts = [
    accounting.account(run.model, batch_size=1, length=1).parameter_count
    for run in (experiment.build(experiment.load(RUNS[0])), unpadded)
  ]
  assert counts[0] - counts[1] == 13 * unpadded.model.width


def test_no_two_files_are_left_out():
  assert set(FRAGMENTS) | set(PARTS.values()) <= set(FILES)
  assert len(RUNS) >= 3


def test_rows_of_unequal_length_are_refused():
  with pytest.raises(config.ConfigError, match="training rows have 512 tokens and held-out"):
    experiment.build(
      experiment.load(RUNS[0], ["--gin.heldout/dataset.TextDataset.sequence_length=64"])
    )


def test_a_float32_copy_of_float32_parameters_is_refused():
  loaded = experiment.load([RUNS[0], "precision/bfloat16_master.gin", "precision/float32.gin"])
  with pytest.raises(config.ConfigError, match=r"master_copy has no effect.*bfloat16"):
    experiment.build(loaded)


def test_a_model_with_too_few_tokens_is_refused():
  built = experiment.build(experiment.load(RUNS[0], ["--gin.VOCAB_SIZE=200"]))
  with pytest.raises(config.ConfigError, match=r"has 259 ids.*Set --gin.VOCAB_SIZE=259"):
    built.check_tokenizer()


@pytest.mark.parametrize("file", ["optimizer/muon.gin", "schedule/wsd.gin"])
def test_another_optimizer_or_schedule_keeps_the_numbers_of_the_run(file):
  run, changed = experiment.load([RUNS[0]]), experiment.load([RUNS[0], "train/tuning.gin", file])
  names = "WARMUP_STEPS", "WEIGHT_DECAY", "LEARNING_RATE"
  tuning = experiment.load([RUNS[0], "train/tuning.gin"])
  assert [changed.macros[name].value for name in names] == (
    [tuning.macros[name].value for name in names]
  )
  one = experiment.load([RUNS[0], file])
  assert one.macros["LEARNING_RATE"].value == run.macros["LEARNING_RATE"].value


@pytest.mark.parametrize("rule", ["adamw", "adafactor", "lion", "muon"])
@pytest.mark.parametrize("last", [False, True])
def test_every_optimizer_keeps_a_master_copy_whichever_file_comes_first(rule, last):
  files = [f"optimizer/{rule}.gin", "precision/bfloat16_master.gin"]
  built = experiment.build(experiment.load([RUNS[0], *(files if last else reversed(files))]))
  assert built.optimizer.master_copy


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_after_a_run_keeps_the_options_that_the_run_sets(model, tmp_path):
  file = tmp_path / "run.gin"
  lines = [f"{name} = {value}" for name, value in SET.items()]
  file.write_text("\n".join(["include 'runs/griffin_quickstart.gin'", *lines, ""]))
  found = experiment.load([file, model])
  assert {name: found.macros[name].value for name in SET} == SET
  defaults = [item for item in source.read_file(model).statements if item.is_default]
  assert {item.selector for item in defaults} <= {*SET, "PATTERN", "MIXERS"}


def test_of_two_models_the_later_ones_defaults_hold():
  files = ["runs/hawk_quickstart.gin", "models/recurrent_gemma.gin"]
  assert experiment.load(files).macros["WINDOW"].value == 2048
  window = experiment.load(["runs/griffin_quickstart.gin", "models/cg_griffin.gin"])
  assert window.macros["WINDOW"].value == 128
