"""Exports runs as Hugging Face files, one parameter at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from base.errors import UserError
from base.paths import of, shown
from conversion import (
  adapters,
  griffin_package,
  model_card,
  peft_files,
  safetensors_files,
  weight_stream,
)
from conversion.target_folder import appearing, told
from data import tiktoken_files, tokenizer_json, tokenizers
from data.tiktoken_files import Tiktoken
from data.tokenizer_json import TokenizerJson
from data.tokenizers import Tokenizer
from experiment import kept_files
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from experiment.trained import TrainedModel
from experiment.trust import NOBODY, Trust
from models import lora, maximal_update

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"


def export(
  run_dir: Path,
  target: Path,
  which: str,
  dtype: str | None,
  max_bytes: int,
  trust: Trust = NOBODY,
  *,
  own_code: bool = False,
) -> list[str]:
  """Exports a run as Hugging Face files for `AutoModelForCausalLM.from_pretrained`.

  In memory are the largest parameter, and the tensors of one file.

  Args:
    run_dir: the run; adapters are merged into its weights.
    target: the folder; appears completely or not at all.
    which: the checkpoint: 'best', 'latest' or a step.
    dtype: dtype of the tensors; None is that of the run's parameters.
    max_bytes: the most bytes of tensors in a file.
    trust: see `experiment.trained.load`.
    own_code: bring the PyTorch code even if a class of transformers holds the model.

  Returns:
    lines for the user: the class that holds the model, and that transformers finds no tokenizer.

  Raises:
    UserError: no adapter can write the run's model.
    CheckpointError: the checkpoint does not exist.
  """
  trained = trained_lib.opened(RunDirectory(run_dir), which, trust=trust)
  model, tokenizer = lora.without_adapters(trained.experiment.model), trained.tokenizer
  model, _ = maximal_update.folded(model)
  leaves: Mapping[str, np.ndarray] = MergedParameters(trained)
  kind = np.dtype(dtype or model.param_dtype)
  entries = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
  if tokenizer.pad_id == tokenizer.bos_id:
    # transformers' generate would take the first token of a prompt for padding, and hide it.
    entries["pad_token_id"] = None
  kept = kept_files.folder(trained.run_dir, trained.experiment)
  length = trained.experiment.sequence_length
  entries["max_position_embeddings"] = max(length, kept_files.longest_text(kept) or 0)
  with told(run_dir), appearing(target) as partial:
    adapter = adapters.of_model(model, own_code=own_code)
    config = adapter.config(model, **entries) | {"dtype": str(kind), "torch_dtype": str(kind)}
    tensors = weight_stream.tensors(leaves, adapter.table(model), kind)
    if dtype is not None:
      tensors = (
        (name, array if name.endswith(adapter.float32) else array.astype(kind, copy=False))
        for name, array in tensors
      )
    safetensors_files.write(partial, tensors, max_bytes)
    (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if adapter is griffin_package.ADAPTER:
      shutil.copyfile(griffin_package.CODE, partial / griffin_package.CODE.name)
    model_card.write(partial, trained, target.name, config)
    kept_files.keep(kept, partial)
    has_tokenizer = _copy_tokenizer(tokenizer, partial)
  told_lines = [f"for transformers' {config['architectures'][0]}"]
  if adapter is griffin_package.ADAPTER:
    told_lines[0] += f", with its code in {griffin_package.CODE.name} (trust_remote_code=True)"
  return told_lines + ([] if has_tokenizer else [_without_tokenizer(tokenizer)])


def export_adapters(
  run_dir: Path,
  target: Path,
  which: str,
  base: str | None,
  trust: Trust = NOBODY,
  *,
  own_code: bool = False,
) -> None:
  """Exports a run's adapters alone, as files for `peft.PeftModel.from_pretrained`.

  Args:
    run_dir: a run with adapters.
    target: the folder; appears completely or not at all.
    which: the checkpoint: 'best', 'latest' or a step.
    base: name or folder of the model without adapters, for the files; None leaves it out.
    trust: see `experiment.trained.load`.
    own_code: whether that model is an export with its own PyTorch code, as in `export`.

  Raises:
    UserError: the run has no adapters, or no class of transformers can hold its model.
    CheckpointError: the checkpoint does not exist.
  """
  trained = trained_lib.opened(RunDirectory(run_dir), which, trust=trust)
  model = trained.experiment.model
  if not isinstance(model, lora.AdaptedModel):
    raise UserError(f"{shown(run_dir)} has no adapters. Export it without --adapters.")
  with told(run_dir), appearing(target) as partial:
    adapter = adapters.of_model(lora.without_adapters(model), own_code=own_code)
    peft_files.write(partial, model, trained.params, adapter, base)


class MergedParameters(Mapping[str, np.ndarray]):
  """A run's parameters by path, with adapters merged and muP's factor of the logits folded in.

  Each is read when it is looked up.
  """

  def __init__(self, trained: TrainedModel):
    self._stored: Mapping[str, np.ndarray] = trained.params
    self._model = trained.experiment.model
    _, self._fold = maximal_update.folded(self._model)

  def __getitem__(self, path: str) -> np.ndarray:
    array, (parent, _, name) = self._stored[path], path.rpartition("/")
    down, up = (f"{parent}/{adapter}" for adapter in (lora.A, lora.B))
    if name != "kernel" or down not in self._stored:
      return self._fold(path, array)
    assert isinstance(self._model, lora.AdaptedModel)
    merged = lora.merged_kernel(self._model, array, self._stored[down], self._stored[up])
    return np.asarray(merged)

  def __iter__(self) -> Iterator[str]:
    return (path for path in self._stored if path.rpartition("/")[2] not in (lora.A, lora.B))

  def __len__(self) -> int:
    return sum(1 for _ in self)


def _copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> bool:
  """Copies the tokenizer's file; returns whether transformers finds one in the folder."""
  if isinstance(tokenizer, tokenizers.SentencePiece):
    # Compared with its description: a run on bytes may have another run's tokenizer file.
    (folder / TOKENIZER_FILE).write_bytes(of(tokenizer.path).read_bytes())
  if isinstance(tokenizer, TokenizerJson | Tiktoken):
    tokenizer.write(folder)
  return any((folder / name).is_file() for name in (TOKENIZER_FILE, tokenizer_json.FILE))


def _without_tokenizer(tokenizer: Tokenizer) -> str:
  if isinstance(tokenizer, tokenizers.Symbols):
    meaning = f"symbol k is id k + {tokenizers.Symbols.SPECIAL}"
  elif isinstance(tokenizer, Tiktoken):
    meaning = f"those of the ranks in {tiktoken_files.FILE}"
  else:
    meaning = f"byte b of the text's UTF-8 is id b + {tokenizers.Bytes().encode(chr(0))[0]}"
  return (
    f"no tokenizer file for transformers: this run reads {tokenizer.describe()['kind']}. Give "
    f"the model ids: {meaning}, BOS is {tokenizer.bos_id}, EOS {tokenizer.eos_id}, unknown "
    f"{tokenizer.unk_id}."
  )
