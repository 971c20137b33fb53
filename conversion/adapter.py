"""Adapters: the interface between conversion and an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from conversion.weight_map import WeightMapping
from models.language_model import LanguageModel

ModelOptions = tuple[dict[str, Any], dict[str, Any]]
Tensors = Iterator[tuple[str, np.ndarray]]


class WeightsFormat(NamedTuple):
  """A file format of an architecture's public weights.

  Attributes:
    stream: `stream(tensors, shapes, model)`: yields our parameters in tree order, from arrays and
      shapes by name. It looks each tensor up once, so that the mapping may read files.
    embedding: the name of the tensor with the parameters' dtype.
  """

  stream: Callable[
    [Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]], LanguageModel], Tensors
  ]
  embedding: str


class Adapter(NamedTuple):
  """Reads and writes the Hugging Face files of one architecture.

  Attributes:
    model_type: its name in config.json.
    gin_file: the file of gin/ that builds it.
    model: the gin name of the function that builds it.
    macros: macros of the gin file, beside those that all have -> the options that they set.
    set_by_gin_file: options that the gin file binds to macros, so that they need no binding.
    options: converts the contents of a config.json to options of `Backbone` and of the model's
      function; raises ValueError if it describes another model.
    files: readers of its tensors.
    check_model: raises ValueError unless the architecture's class can hold a model exactly.
    config: `config(model, **more)`: returns the contents of a config.json, with `more` entries.
    table: lists all tensors of a model's Hugging Face form.
    float32: endings of the names of tensors that are written as float32 whatever the others are,
      because the class loads them so.
  """

  model_type: str
  gin_file: str
  model: str
  macros: Mapping[str, str]
  set_by_gin_file: tuple[str, ...]
  options: Callable[[Mapping[str, Any]], ModelOptions]
  files: WeightsFormat
  check_model: Callable[[LanguageModel], None]
  config: Callable[..., dict[str, Any]]
  table: Callable[[LanguageModel], Iterable[WeightMapping]]
  float32: tuple[str, ...] = ()
