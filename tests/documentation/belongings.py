"""Files that a user of the pages needs: books, a task of lm-eval, weights, examples."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
from recurrentgemma import common
from recurrentgemma import jax as recurrentgemma
from recurrentgemma.jax import utils as recurrentgemma_utils
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from data import corpora
from data.tokenizer_training import train_sentencepiece
from tests.documentation import pages

PIECES = 400


def bring(folder: Path) -> None:
  """Writes all of these files into a checkout."""
  books(folder)
  runs(folder / "my_runs.csv")
  task(folder / "my_tasks")
  theirs = folder / "recurrentgemma-2b"
  hugging_face(theirs)
  flax(folder / "recurrentgemma-flax" / "2b")
  shutil.copytree(theirs, folder / "broken")
  (folder / "broken" / "model.safetensors").write_bytes(b"not what was written")
  lines = [{"question": f"{i} and {j}", "answer": str(i + j)} for i in range(8) for j in range(8)]
  (folder / "my").mkdir()
  (folder / "my/sums.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def runs(file: Path) -> None:
  """A table of trained runs: L = 2 + 400 N^-0.35 + 400 D^-0.3 by sizes and tokens."""
  with file.open("w") as table:
    table.write("N,D,loss\n")
    for n, d in itertools.product((1e8, 4e8, 2e9), (2e9, 1e10, 5e10, 2e11)):
      table.write(f"{n},{d},{2 + 400 * n**-0.35 + 400 * d**-0.3}\n")


def books(folder: Path) -> None:
  """Text files in books/: some of the sources."""
  for number, source in enumerate(sorted(folder.glob("[d-l]*/*.py"))):
    book = folder / f"books/{number % 3}/{number}.txt"
    book.parent.mkdir(parents=True, exist_ok=True)
    book.write_bytes(source.read_bytes())


def task(folder: Path) -> None:
  """A task of lm-eval with one question."""
  folder.mkdir()
  question = {"question": "two and two", "choices": [" four", " five"], "answer": 0}
  (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
  (folder / "my_task.yaml").write_text(f"""\
task: my_task
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{folder}/questions.jsonl"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
""")


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
