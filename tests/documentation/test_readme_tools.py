"""README's commands that plan, compare, convert and check, typed in order by a new user."""

from __future__ import annotations

import json
import shlex
import shutil
import signal

import jax
import jax.numpy as jnp
import pytest
import torch
from recurrentgemma import common
from recurrentgemma import jax as recurrentgemma
from recurrentgemma.jax import utils as recurrentgemma_utils
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from data import corpora
from data.tokenizer_training import train_sentencepiece
from tests.documentation import pages, test_readme_runs
from tests.documentation.session import Case, Session

README = pages.ROOT / "README.md"
PIECES = 400
SHORT = "--gin.STEPS=4 --gin.WARMUP_STEPS=2 --gin.BATCH_SIZE=2 --gin.SEQUENCE_LENGTH=64"
TINY = ["compare/sizes/66k.gin", "WARMUP_STEPS = 2", "BATCH_SIZE = 2"]
STEPS = {"66k": 20, "158k": 21, "343k": 22}
MACROS = {
  "MODELS": {
    "Griffin": ["compare/quick_griffin.gin"],
    "MQA Transformer": ["models/transformer.gin"],
  },
  "SEEDS": (0,),
  "SIZES": {size: [*TINY, f"STEPS = {steps}"] for size, steps in STEPS.items()},
  "ROUNDS": 1,
  "SAMPLES": 1,
  "SAMPLE_LENGTHS": (4, 8),
  "PREFILLS": (0,),
  "TOKENS_BEFORE": (8, 16),
}
COMPARED = shlex.join(f"--gin.{name}={value}" for name, value in MACROS.items())


def stop_and_go_on(session: Session, command: str) -> None:
  """A comparison that is stopped goes on, and trains no run twice."""
  command += " --only=scaling"
  stopped = session.stop(command, signal.SIGTERM, "comparisons/quick/runs/*/metrics.jsonl")
  assert stopped.status != 0
  done = session.type(command)
  assert "comparisons/quick/report/index.html" in done.out


CASES = {
  "Plan before you rent": [
    Case(
      "python -m launch.plan gin/runs/griffin_quickstart.gin",
      "--gin.WIDTH=256 --gin.RNN_WIDTH=256 --gin.HEADS=8 --gin.DEPTH=1 --gin.MICROBATCHES=1 "
      "--gin.SEQUENCE_LENGTH=128 --gin.WINDOW=64 --gin.RECURRENCE_KERNEL=associative",
      "all-reduce",
    )
  ],
  "Compare": [
    Case(
      "python -m launch.compare gin/compare/quick.gin --output=comparisons/quick",
      COMPARED,
      instead=stop_and_go_on,
      leaves=("comparisons/quick/report/index.html", "comparisons/quick/report/data.json"),
    ),
    Case("python -m launch.compare gin/compare/paper.gin --output=", skipped="needs a pod"),
    Case("python -m launch.compare gin/compare/quick.gin", COMPARED, r"Decode speed\n"),
    Case("python -m launch.compare gin/compare/paper.gin --describe", prints=r"scaling +\d"),
  ],
  "RecurrentGemma in and out": [
    Case(
      "python -m launch.convert recurrentgemma-2b/ runs/gemma",
      prints="is ready",
      leaves=("runs/gemma/config.gin",),
    ),
    Case(
      "python -m launch.convert recurrentgemma-flax/2b runs/flax",
      "--vocabulary=recurrentgemma-2b/tokenizer.model --gin.WINDOW=9",
      "is ready",
      leaves=("runs/flax/config.gin",),
    ),
    Case("python -m launch.generate --run_dir=runs/gemma", "--max_tokens=8", "^The Griffin is"),
    Case(
      "python -m launch.convert runs/gemma exported/",
      prints="is ready",
      leaves=("exported/model.safetensors", "exported/tokenizer.model"),
    ),
  ],
  "Fine-tune": [
    Case(
      "python -m launch.train gin/data/instructions.gin gin/train/lora.gin",
      SHORT,
      test_readme_runs.TRAINED,
    ),
    Case(
      "python -m launch.convert runs/tuned exported_tuned/",
      prints="is ready",
      leaves=("exported_tuned/model.safetensors",),
    ),
    Case(
      "python -m launch.convert runs/tuned runs/merged --merge",
      prints="is ready",
      leaves=("runs/merged/config.gin",),
    ),
  ],
  "Use it as a library": [Case("import jax")],
  "Add an architecture": [
    Case("python -m launch.check --model=griffin", "--only=causality,packing", r"\d+ passed in")
  ],
}
MISTAKES = [
  ("python -m launch.convert recurrentgemma-3b/ runs/x", "recurrentgemma-3b"),
  ("python -m launch.convert runs/gemma exported/", "exported"),
  ("python -m launch.convert broken/ runs/x", "broken"),
  ("python -m launch.compare gin/compare/quick.gin --output=comparisons/quick", "--resume=force"),
  ("python -m launch.compare gin/compare/quick.gin --output=x --only=speeed", "speeed"),
  ("python -m launch.plan gin/runs/griffin_quickstart.gin --hardware=v9-8", "v9"),
  ("python -m launch.check --model=grifin", "griffin"),
  ("python -m launch.check --model=griffin --only=causalty", "causality"),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
  """A clean copy, its environment active, with the folders that a user brings along."""
  session = Session(tmp_path_factory.mktemp("griffin"))
  session.type("source .venv/bin/activate")
  theirs = session.folder / "recurrentgemma-2b"
  hugging_face(theirs)
  flax(session.folder / "recurrentgemma-flax" / "2b")
  shutil.copytree(theirs, session.folder / "broken")
  (session.folder / "broken" / "model.safetensors").write_bytes(b"not what was written")
  lines = [{"question": f"{i} and {j}", "answer": str(i + j)} for i in range(8) for j in range(8)]
  (session.folder / "my").mkdir()
  (session.folder / "my/sums.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return session


def hugging_face(folder) -> None:
  """Random weights as transformers writes them, with a SentencePiece model."""
  torch.manual_seed(0)
  config = RecurrentGemmaConfig(
    vocab_size=PIECES,
    hidden_size=32,
    intermediate_size=192,
    num_attention_heads=4,
    num_key_value_heads=1,
    attention_window_size=8,
    num_hidden_layers=3,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=1,
  )
  RecurrentGemmaForCausalLM(config).save_pretrained(folder)
  text = corpora.TextFiles(str(pages.ROOT / "launch" / "*.py"))
  train_sentencepiece(text, PIECES, folder / "tokenizer.model")


def flax(folder) -> None:
  """Random weights as DeepMind's code writes them."""
  kinds = common.TemporalBlockType
  config = common.GriffinConfig(
    vocab_size=PIECES,
    width=32,
    mlp_expanded_width=96,
    num_heads=4,
    block_types=(kinds.RECURRENT, kinds.RECURRENT, kinds.ATTENTION),
    embeddings_scale_by_sqrt_dim=True,
    attention_window_size=8,
    logits_soft_cap=30.0,
    lru_width=32,
    scan_type=common.ScanType.LINEAR_NATIVE,
  )
  model, one = recurrentgemma.Griffin(config), jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), one, one))["params"]
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  recurrentgemma_utils.save_parameters(str(folder), params)


@pytest.mark.parametrize(("step", "case"), pages.paired(README, CASES))
def test_a_step_does_what_the_page_says(session, step, case):
  session.play(step, case)


def test_exported_weights_are_those_that_came_in(session):
  theirs, exported = (
    RecurrentGemmaForCausalLM.from_pretrained(session.folder / name)
    for name in ("recurrentgemma-2b", "exported")
  )
  for name, tensor in theirs.state_dict().items():
    torch.testing.assert_close(exported.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("command", "says"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(session, command, says):
  session.mistake(command, says)


def test_every_section_of_the_page_is_tried():
  tried = test_readme_runs.CASES.keys() | CASES.keys()
  assert pages.sections(README).keys() == tried
