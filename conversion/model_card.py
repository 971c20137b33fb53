"""Writes the card of an exported model: README.md with its configuration, data and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.dataset import Mixture
from experiment.trained import TrainedModel
from models import lora
from models.accounting import list_parameters
from training.loop import LOSS_PICTURE
from training.metrics import METRICS_FILE, read_metrics

CARD = "README.md"
_PICTURE = "loss.png"
# Entries of config.json that say nothing about the model.
_LEFT_OUT = ("architectures", "auto_map", "torch_dtype", "rope_parameters", "rope_scaling")
# Names of a run's records -> the card's.
_FIGURES = {
  "heldout_loss": "held-out loss, nats per token",
  "heldout_bits_per_byte": "held-out bits per byte",
  "loss": "training loss, nats per token",
  "bits_per_byte": "training bits per byte",
}


def write(folder: Path, trained: TrainedModel, name: str, config: Mapping[str, Any]) -> None:
  """Writes the card, and the picture of the run's loss where there is one.

  Args:
    folder: an existing folder.
    trained: the run.
    name: the model's name.
    config: the contents of config.json.
  """
  picture = trained.run_dir / LOSS_PICTURE
  if picture.is_file():
    (folder / _PICTURE).write_bytes(picture.read_bytes())
  text = "\n".join(_lines(trained, name, config, has_picture=picture.is_file()))
  (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _lines(
  trained: TrainedModel, name: str, config: Mapping[str, Any], *, has_picture: bool
) -> Iterator[str]:
  remote = ", trust_remote_code=True" if "auto_map" in config else ""
  count = sum(p.count for p in list_parameters(lora.without_adapters(trained.experiment.model)))
  tags = ["griffin-jax", str(config["model_type"]), *(["custom_code"] if remote else [])]
  yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:")
  yield from (f"- {tag}" for tag in tags)
  yield from ("---", "", f"# {name}", "")
  yield f"A language model of {count:,} parameters, trained with griffin-jax."
  yield from ("", "```python", "from transformers import AutoModelForCausalLM", "")
  yield f'model = AutoModelForCausalLM.from_pretrained("{name}"{remote})'
  yield from ("```", "")
  if remote:
    yield "No class of transformers holds this model exactly: its code lies beside the weights."
    yield ""
  yield from ("## Configuration", "")
  shown = {key: value for key, value in config.items() if key not in _LEFT_OUT}
  yield from _table("option", "value", ((key, json.dumps(value)) for key, value in shown.items()))
  yield from ("", "## Data", "")
  yield from _table("of the training", "", _data(trained))
  yield from ("", "## Figures", "")
  figures = list(_figures(trained))
  if figures:
    yield from _table("figure", "value", figures)
  else:
    yield "The run has no records: its weights were imported."
  if has_picture:
    yield from ("", f"![Loss against the step]({_PICTURE})")
  yield from ("", "## Licence and limits", "")
  yield "Add the licence of the data and of the weights, and what the model should not be used for."


def _table(first: str, second: str, rows: Any) -> Iterator[str]:
  yield f"| {first} | {second} |"
  yield "|---|---|"
  for key, value in rows:
    yield f"| {key} | {str(value).replace('|', chr(92) + '|')} |"


def _data(trained: TrainedModel) -> Iterator[tuple[str, str]]:
  experiment, tokenizer = trained.experiment, trained.tokenizer
  tokens = trained.step * experiment.batch_size * experiment.sequence_length
  yield "text", ", ".join(_names(experiment.train_data))
  yield "tokenizer", f"{tokenizer.describe()['kind']}, {tokenizer.size:,} ids"
  yield "tokens per row", f"{experiment.sequence_length:,}"
  yield "rows per step", f"{experiment.batch_size:,}"
  yield "steps", f"{trained.step:,}"
  if trained.step:
    yield "tokens", f"{tokens:,}"
  yield "optimizer", type(experiment.optimizer).__name__
  if experiment.init_from is not None:
    yield "initial weights", Path(experiment.init_from).name


def _names(data: Any) -> list[str]:
  if isinstance(data, Mixture):
    return [name for part in data.components for name in _names(part)]
  return [getattr(data, "what", None) or f"{data.mixture} ({data.split})"]


def _figures(trained: TrainedModel) -> Iterator[tuple[str, str]]:
  """Lists the last of each figure until the checkpoint."""
  log = trained.run_dir / METRICS_FILE
  records = read_metrics(log) if log.is_file() else []
  for name, words in _FIGURES.items():
    values = [r[name] for r in records if name in r and r["step"] <= trained.step]
    if values and isinstance(values[-1], int | float) and math.isfinite(values[-1]):
      yield words, f"{values[-1]:.4f}"
