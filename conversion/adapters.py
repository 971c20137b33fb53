"""The supported architectures of imports and exports, by Hugging Face's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion import recurrent_gemma
from conversion.adapter import Adapter
from conversion.recurrent_gemma_fields import short
from models.language_model import LanguageModel

# The first is the default for a configuration without a model_type.
ADAPTERS: dict[str, Adapter] = {
  adapter.model_type: adapter for adapter in (recurrent_gemma.ADAPTER,)
}


def of_configuration(config: Mapping[str, Any]) -> Adapter:
  """Finds the adapter for the contents of a config.json.

  Raises:
    ValueError: its model_type is not supported.
  """
  model_type = config.get("model_type", next(iter(ADAPTERS)))
  # A list or an object is not hashable.
  if not isinstance(model_type, str) or model_type not in ADAPTERS:
    raise ValueError(
      f"model_type={short(model_type)} is not supported (supported: {', '.join(ADAPTERS)}). "
      "Give a folder with such a model."
    )
  return ADAPTERS[model_type]


def of_model(model: LanguageModel) -> Adapter:
  """Finds the adapter that can write a model.

  Raises:
    ValueError: there is none; with one adapter, it says what that one needs.
  """
  refusals = []
  for adapter in ADAPTERS.values():
    try:
      adapter.check_model(model)
    except ValueError as error:
      refusals.append(str(error))
    else:
      return adapter
  raise ValueError(" ".join(refusals))
