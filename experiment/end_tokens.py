"""Reads the stop tokens of imported models."""

from __future__ import annotations

import json
from pathlib import Path

from base import small_files
from base.errors import UserError
from experiment import kept_files
from experiment.experiment import Experiment

_FILE = "generation_config.json"
_REMEDY = "Correct the file, or remove it to stop at the tokenizer's end-of-document token."


def stop_ids(run_dir: Path, experiment: Experiment) -> tuple[int, ...]:
  """Reads `eos_token_id` of the run's generation_config.json; () without the file or the entry.

  Hugging Face writes one id, several (RecurrentGemma's instruction-tuned models: `<eos>` and
  `<end_of_turn>`), or null.

  Raises:
    UserError: the file cannot be read, or its entry is invalid.
  """
  file = kept_files.folder(run_dir, experiment) / _FILE
  try:
    contents = small_files.read(file)
    if contents is None:
      return ()
    content = json.loads(contents)
  except small_files.NotReadable as error:
    raise UserError(f"{error}. {_REMEDY}") from None
  except OSError as error:
    raise UserError(f"cannot read {file}: {error.strerror}.") from None
  except (ValueError, RecursionError) as error:
    raise UserError(f"{file} is not valid JSON ({str(error)[:100]}). {_REMEDY}") from None
  if not isinstance(content, dict):
    raise UserError(f"{file} is not a JSON object. {_REMEDY}")
  given = content.get("eos_token_id")
  ids = [] if given is None else given if isinstance(given, list) else [given]
  size = experiment.model.vocab_size
  for one in ids:
    # JSON's true is an int in Python.
    if type(one) is not int or not 0 <= one < size:
      raise UserError(
        f"{file}: eos_token_id={json.dumps(given)[:100]} must be an id from 0 to {size - 1}, or a "
        "list of "
        f"them. {_REMEDY}"
      )
  return tuple(ids)
