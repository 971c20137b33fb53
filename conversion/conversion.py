"""Imports other libraries' weights as run directories, and merges adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from base import small_files
from base.errors import UserError
from base.paths import of, shown
from base.wording import type_in_words
from config.config import Config
from conversion import (
  adapters,
  recurrent_gemma,
  recurrent_gemma_flax,
  weight_map,
)
from conversion.adapter import Adapter
from conversion.export import CONFIG_FILE, TOKENIZER_FILE
from conversion.orbax_files import ForeignArrays
from conversion.safetensors_files import TensorFiles
from conversion.target_folder import appearing, told
from data import tokenizer_json, tokenizers
from data.tokenizer_json import TokenizerJson
from data.tokenizers import Tokenizer
from experiment import experiment as experiment_lib
from experiment import kept_files, run_config
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from experiment.trained import TrainedModel
from experiment.trust import NOBODY, Trust
from models import lora
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.tree_paths import by_path
from training import streamed_checkpoint

RUN, HUGGING_FACE, DEEPMIND = "run directory", "Hugging Face", "DeepMind"
# Files of Orbax's layouts, old and new.
_ORBAX = ("_METADATA", "manifest.ocdbt", "_sharding", "checkpoint")
_TYPES = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}
_TYPES |= {"float32": "float32", "bfloat16": "bfloat16"}
# The configuration of a run with adapters, without the adapters.
_WITHOUT_ADAPTERS = (
  "--gin.experiment.experiment.Experiment.model=%MODEL",
  "--gin.experiment.experiment.Experiment.init_from=None",
)
# Options that the files of gin/models/ read from macros.
_MACROS = {
  "WIDTH": "width",
  "DEPTH": "depth",
  "VOCAB_SIZE": "vocab_size",
  "RNN_WIDTH": "rnn_width",
  "HEADS": "heads",
  "WINDOW": "window",
}


def kind_of(source: Path) -> str:
  """Tells a folder's kind: RUN, HUGGING_FACE or DEEPMIND.

  Raises:
    UserError: it is none of these.
  """
  if not source.is_dir():
    raise UserError(f"no such folder: {shown(source)}. Correct the path.")
  if RunDirectory(source).holds_run():
    return RUN
  if (source / CONFIG_FILE).is_file():
    return HUGGING_FACE
  if any((source / name).exists() for name in _ORBAX):
    return DEEPMIND
  raise UserError(
    f"{shown(source)} is neither a run directory (config.gin), nor a Hugging Face folder "
    f"({CONFIG_FILE}), nor "
    f"an Orbax checkpoint ({', '.join(_ORBAX)})."
  )


def import_weights(
  kind: str,
  source: Path,
  run_dir: Path,
  tokenizer: str | None,
  bindings: list[str],
  words: str,
  origin: Path | None = None,
) -> None:
  """Imports published weights into a run directory, one tensor after the other.

  Args:
    kind: HUGGING_FACE or DEEPMIND.
    source: the folder with the weights.
    run_dir: appears whole or not at all.
    tokenizer: a SentencePiece model or 'bytes'; None is the source's.
    bindings: changes of the run's configuration.
    words: the command line, for the configuration's first line.
    origin: where the weights come from, if `source` is a copy.

  Raises:
    UserError: the weights are of another architecture, incomplete, or of another tokenizer.
  """
  config: dict[str, Any] = {}
  with told(source):
    if kind == HUGGING_FACE:
      config = _json(source / CONFIG_FILE)
      adapter = adapters.of_configuration(config)
      backbone, mixers = adapter.options(config)
      tensors: Any = TensorFiles(source)
      files = adapter.files
    else:
      tensors = ForeignArrays(source)
      adapter, files = recurrent_gemma.ADAPTER, recurrent_gemma_flax.FILES
      backbone, mixers = recurrent_gemma_flax.options_from_shapes(tensors.shapes)
    weight_map.check_types(tensors.types)
    weight_map.check_count(backbone, mixers, tensors.shapes)
  found = _tokenizer(source, tokenizer)
  # Embeddings of published weights have more rows than their tokenizer.json has ids.
  fits = found.size <= backbone["vocab_size"] and isinstance(found, TokenizerJson)
  if not fits and found.size != backbone["vocab_size"]:
    raise UserError(
      f"the tokenizer {_file_of(found)} has {found.size} ids, the weights in {shown(source)} are "
      f"for {backbone['vocab_size']}. Give the tokenizer of these weights: --vocabulary=..."
    )
  stored = _TYPES.get(tensors.types.get(files.embedding, "F32"), "float32")
  types = {"dtype": stored, "param_dtype": stored}
  is_json = isinstance(found, TokenizerJson)
  place = run_dir / (tokenizer_json.FILE if is_json else tokenizers.MODEL_FILE)
  loaded = _configuration(adapter, backbone | types, mixers, found, place, bindings)
  with told(source):
    model = experiment_lib.build(loaded).model
    paths = [parameter.path for parameter in list_parameters(model)]
  with appearing(run_dir) as partial:
    run = RunDirectory(partial)
    run.write_config(loaded, words)
    tokenizers.save(found, partial)
    if kind == HUGGING_FACE:
      kept_files.keep(source, partial / kept_files.FOLDER)
      kept_files.write_config(partial / kept_files.FOLDER, config)
    with told(source):
      arrays = files.stream(tensors, tensors.shapes, model)
      metadata = {"source": str(origin or source)}
      streamed_checkpoint.write_parameters(partial, 0, paths, arrays, metadata)


def merge(run_dir: Path, target: Path, which: str, words: str, trust: Trust = NOBODY) -> None:
  """Makes a run directory with a run's adapters merged into the weights.

  Args:
    run_dir: a run with adapters.
    target: the folder; appears completely or not at all. It is for generation, evaluation and
      `--init_from`, not to continue training.
    which: the checkpoint: 'best', 'latest' or a step.
    words: the command line, for the configuration's first line.
    trust: see `experiment.trained.load`.

  Raises:
    UserError: the run has no adapters.
    CheckpointError: the checkpoint does not exist.
  """
  run = RunDirectory(run_dir)
  trained = trained_lib.load(run, which, trust=trust)
  model, params = lora.merged(trained.experiment.model, trained.params)
  if model is trained.experiment.model:
    raise UserError(f"{shown(run_dir)} has no adapters to merge.")
  loaded = run_config.load(run, arguments=_WITHOUT_ADAPTERS, trust=trust)
  write_run(target, trained, loaded, model, params, words)


def write_run(
  target: Path,
  trained: TrainedModel,
  config: Config,
  model: LanguageModel,
  params: Mapping[str, Any],
  words: str,
) -> None:
  """Writes parameters that were made of a run's as a run directory of weights alone.

  Args:
    target: the folder; appears completely or not at all.
    trained: the run.
    config: configuration of the new directory.
    model: its model.
    params: the model's parameters.
    words: what made them, for the configuration's first line.
  """
  made_here = run_config.is_own(RunDirectory(trained.run_dir))
  arrays = ((path, np.asarray(leaf)) for path, leaf in by_path(params).items())
  paths = [parameter.path for parameter in list_parameters(model)]
  with appearing(target) as partial:
    RunDirectory(partial).write_config(config, words, made_here=made_here)
    tokenizers.save(trained.tokenizer, partial)
    kept_files.keep(
      kept_files.folder(trained.run_dir, trained.experiment), partial / kept_files.FOLDER
    )
    metadata = {"source": str(trained.run_dir)}
    streamed_checkpoint.write_parameters(partial, trained.step, paths, arrays, metadata)


def _configuration(
  adapter: Adapter,
  backbone: Mapping[str, Any],
  mixers: Mapping[str, Any],
  tokenizer: Tokenizer,
  model_file: Path,
  bindings: list[str],
) -> Config:
  """Makes the configuration of imported weights, with CPython's text as data."""
  of_both = {**backbone, **mixers}
  names = {**_MACROS, **adapter.macros}
  macros = {macro: of_both[name] for macro, name in names.items() if name in of_both}
  data = "data/python_bytes.gin"
  if isinstance(tokenizer, tokenizers.SentencePiece):
    data = "data/python_sentencepiece.gin"
    macros["VOCABULARY_MODEL"] = str(model_file)
  if isinstance(tokenizer, TokenizerJson):
    data = "data/python_tokenizer.gin"
    macros["VOCABULARY_MODEL"] = str(model_file)
  of_macros = (*names.values(), *adapter.set_by_gin_file)
  options = {f"models.backbone.Backbone.{name}": value for name, value in backbone.items()}
  options |= {f"{adapter.model}.{name}": value for name, value in mixers.items()}
  given = [
    f"--gin.{name}={value!r}"
    for name, value in (macros | options).items()
    if name.rpartition(".")[2] not in of_macros
  ]
  files = ["experiment.gin", adapter.gin_file, "mesh/single.gin", "kernels/auto.gin"]
  return experiment_lib.load([*files, data, "train/steps.gin"], [*given, *bindings])


def _file_of(tokenizer: Tokenizer) -> str:
  of_file = isinstance(tokenizer, tokenizers.SentencePiece | TokenizerJson)
  return shown(tokenizer.path) if of_file else "bytes"


def _tokenizer(source: Path, given: str | None) -> Tokenizer:
  if given == "bytes":
    return tokenizers.Bytes()
  places = [source / TOKENIZER_FILE, source / tokenizer_json.FILE]
  places.append(source.absolute().parent / TOKENIZER_FILE)
  path = of(given) if given else next((p for p in places if p.is_file()), None)
  if path is None:
    raise UserError(
      f"no {TOKENIZER_FILE} or {tokenizer_json.FILE} in {shown(source)}, and no {TOKENIZER_FILE} "
      "above it. Give the tokenizer's file that the weights were trained with: --vocabulary=FILE "
      "(or --vocabulary=bytes)."
    )
  with told(path):
    if not path.is_file():
      raise UserError(f"no such tokenizer: {shown(path)}. Correct the path.")
    if path.suffix == ".json":
      result = TokenizerJson(str(path))
      result.describe()  # Read now, to report an error here.
      return result
    result = tokenizers.SentencePiece(str(path))
    try:
      result.size  # noqa: B018 - read now, to report an error here
    except (RuntimeError, OSError) as error:
      raise UserError(f"{shown(path)} is not a SentencePiece model ({error}).") from None
    return result


def _json(file: Path) -> dict[str, Any]:
  try:
    found = json.loads(small_files.read(file) or b"")
  except (ValueError, TypeError, RecursionError, OSError) as error:
    raise UserError(f"{shown(file)} is not a JSON object ({str(error)[:200]}).") from None
  if not isinstance(found, dict):
    raise UserError(f"{shown(file)} is not a JSON object but {type_in_words(found)}.")
  return found
