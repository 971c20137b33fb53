"""What a conversion needs to know about an architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from models.language_model import LanguageModel

Options = tuple[dict[str, Any], dict[str, Any]]
Tensors = Iterator[tuple[str, np.ndarray]]


class Source(NamedTuple):
  """One kind of public files of an architecture.

  Attributes:
    stream: `stream(tensors, shapes, model)`: our parameters in tree order, from name -> array and
      name -> shape. It looks each tensor up once, so that the mapping may read files.
    embedding: the name of the tensor that gives the parameters' type.
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
    set_by_gin_file: options that the gin file takes from macros, so that they are not bound.
    options: options of `Backbone` and of the model's function, from the contents of a config.json;
      raises ValueError if it describes another model.
    files: how its tensors are read.
    check_model: raises ValueError unless a model is of this architecture.
    config: `config(model, **token_ids)`: the contents of a config.json.
    tensors: `tensors(params, model)`: Hugging Face's names and arrays, one at a time.
  """

  model_type: str
  gin_file: str
  model: str
  set_by_gin_file: tuple[str, ...]
  options: Callable[[Mapping[str, Any]], Options]
  files: Source
  check_model: Callable[[LanguageModel], None]
  config: Callable[..., dict[str, Any]]
  tensors: Callable[[Mapping[str, Any], LanguageModel], Tensors]
