"""The supported architectures of imports and exports, by Hugging Face's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion import config_fields, griffin_package, llama, mamba2, recurrent_gemma
from conversion.adapter import Adapter
from layers import initial_state
from models.language_model import LanguageModel

# In the order in which exports try them.
ADAPTERS: dict[str, Adapter] = {
  adapter.model_type: adapter
  for adapter in (
    llama.ADAPTER,
    recurrent_gemma.ADAPTER,
    mamba2.ADAPTER,
    griffin_package.ADAPTER,
  )
}
# Of a configuration without a model_type.
_DEFAULT = recurrent_gemma.MODEL_TYPE


def of_configuration(config: Mapping[str, Any]) -> Adapter:
  """Finds the adapter for the contents of a config.json.

  Raises:
    ValueError: its model_type is not supported.
  """
  model_type = config.get("model_type", _DEFAULT)
  # A list or an object is not hashable.
  if not isinstance(model_type, str) or model_type not in ADAPTERS:
    known = ", ".join(name for name in ADAPTERS if name != griffin_package.MODEL_TYPE)
    raise ValueError(
      f"model_type={config_fields.short(model_type)} is not supported (supported: {known}). Give a "
      "folder with such a model."
    )
  return ADAPTERS[model_type]


def of_model(model: LanguageModel, *, own_code: bool = False) -> Adapter:
  """Finds the first adapter that can write a model.

  Args:
    model: the model.
    own_code: only the adapter that brings its own PyTorch code.

  Raises:
    ValueError: there is none; it says what each would need.
  """
  if model.learned_states:
    raise ValueError(
      "the model's learned initial states have no place in Hugging Face's form: documents would "
      f"begin with nothing there. Export a run that was trained with {initial_state.OPTION}=False."
    )
  # Another library would compute something else with the same parameters.
  if type(model) is not LanguageModel:
    raise ValueError(
      f"the model's class is {type(model).__name__}: exports know LanguageModel alone. Put what is "
      "different into a mixer, and write an adapter beside those in conversion/."
    )
  if own_code:
    griffin_package.check_model(model)
    return griffin_package.ADAPTER
  refusals = []
  for adapter in ADAPTERS.values():
    try:
      adapter.check_model(model)
    except ValueError as error:
      refusals.append(str(error))
    else:
      return adapter
  # The last one holds most models.
  raise ValueError(" ".join(reversed(refusals)))
