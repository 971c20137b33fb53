"""Writes adapters as files of the library PEFT: adapter_config.json, adapter_model.safetensors.

PEFT computes `y = x W^T + (alpha / r) x A^T B^T` with A [r, in] and B [out, r]. Where Hugging Face
joins several of our maps to one, their adapters become one of the sum of their ranks: A holds all
of theirs, and B has zeros where a part of the output does not belong to an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conversion.adapter import Adapter
from conversion.weight_map import WeightMapping
from models import lora
from models.lora import AdaptedModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_WEIGHT = ".weight"
# peft.tuners.tuners_utils: fused kernels read this weight without its adapter.
_REFUSED = ("mamba2", "out_proj")


def write(
  folder: Path,
  model: AdaptedModel,
  leaves: Mapping[str, np.ndarray],
  adapter: Adapter,
  base: str | None,
) -> None:
  """Writes a model's adapters.

  Args:
    folder: an existing folder.
    model: the model with adapters.
    leaves: its parameters by path, adapters among them.
    adapter: writes the model without adapters.
    base: name or folder of that model, for PEFT; None leaves it out.

  Raises:
    ValueError: PEFT does not accept adapters on one of the maps.
  """
  from safetensors.numpy import save_file

  parts: dict[str, list[WeightMapping]] = {}
  linear: set[str] = set()
  for entry in adapter.table(lora.without_adapters(model)):
    if entry.layout != "transposed":
      continue
    module = entry.name.removesuffix(_WEIGHT)
    linear.add(module)
    if _beside(entry, lora.A) in leaves:
      if (adapter.model_type, module.rpartition(".")[2]) == _REFUSED:
        raise ValueError(
          "PEFT accepts no adapters on out_proj of Mamba-2. Export the merged weights (without "
          "--adapters), or train with LORA_TARGETS = ['z', 'x', 'bc', 'dt']."
        )
      parts.setdefault(module, []).append(entry)
  held = {path: leaves[path] for path in leaves if path.rpartition("/")[2] in (lora.A, lora.B)}
  tensors, ranks = {}, {}
  for module, entries in parts.items():
    down, up = _joined(entries, held)
    tensors[f"base_model.model.{module}.lora_A.weight"] = down
    tensors[f"base_model.model.{module}.lora_B.weight"] = up
    ranks[module] = len(down)
  # The scale alpha / r is the same where ranks are joined.
  larger = {module: rank for module, rank in ranks.items() if rank != model.rank}
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": model.rank,
    "lora_alpha": model.alpha,
    "rank_pattern": larger,
    "alpha_pattern": {name: model.alpha * rank / model.rank for name, rank in larger.items()},
    "target_modules": _targets(set(parts), linear),
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "use_rslora": False,
  }
  save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
  (folder / WEIGHTS_FILE).chmod(0o644)  # the library makes files readable only by their owner
  (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _beside(entry: WeightMapping, name: str) -> str:
  return f"{entry.path.rpartition('/')[0]}/{name}"


def _joined(
  entries: list[WeightMapping], held: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns A [r, in] and B [out, r] of a tensor of one or several of our maps."""
  pairs = []
  for entry in entries:
    pair = (held[_beside(entry, name)] for name in (lora.A, lora.B))
    pairs.append([x if entry.repeat is None else x[entry.repeat] for x in pair])
  down = np.concatenate([a.T for a, _ in pairs])
  up = np.zeros((entries[0].shape[0], len(down)), down.dtype)
  start = 0
  for entry, (a, b) in zip(entries, pairs, strict=True):
    columns = np.arange(start, start + a.shape[1])
    rows = np.arange(b.shape[1]) if entry.rows is None else entry.rows
    up[np.ix_(rows, columns)] = b.T
    start += a.shape[1]
  return np.ascontiguousarray(down), up


def _targets(adapted: set[str], linear: set[str]) -> list[str]:
  """Names the adapted modules: by their last part where all modules of that name are adapted."""
  short = {name.rpartition(".")[2] for name in adapted}
  others = {name.rpartition(".")[2] for name in linear - adapted}
  return sorted(short - others) + sorted(
    name for name in adapted if name.rpartition(".")[2] in others
  )
