"""Models and their parameters as Flax NNX modules, for libraries that take those.

`flax.nnx.bridge.ToNNX` runs a linen module as an NNX module. What it lacks, and this file has, is
the way in for parameters that were trained before, and the way back to a run directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from base.errors import UserError
from base.paths import absolute, shown
from conversion import conversion
from experiment import run_config
from experiment.run_directory import RunDirectory
from experiment.trained import TrainedModel
from experiment.trust import NOBODY, Trust
from models.accounting import list_parameters
from models.language_model import LanguageModel
from parallel.tree_paths import by_path

if TYPE_CHECKING:
  from flax import nnx


def to_nnx(model: LanguageModel, params: Mapping[str, Any]) -> nnx.bridge.ToNNX:
  """Makes an NNX module of a model and its parameters.

  Args:
    model: any model of the zoo, as it is or quantized by Qwix.
    params: its parameters, without boxes. They are not copied.

  Returns:
    A module that is called as the model, without `apply`: `logits, state = module(tokens)`. Every
    parameter is an `nnx.Param`, at the path that it has in `params`.
  """
  from flax import nnx
  from flax.nnx.bridge import variables

  module = nnx.bridge.ToNNX(model)
  for name, part in variables.linen_vars_to_nnx_attrs({"params": dict(params)}).items():
    setattr(module, name, part)
  return module


def parameters(module: nnx.Module) -> dict[str, Any]:
  """Returns the parameters of a module that `to_nnx` made, as its model's `apply` takes them."""
  from flax import nnx

  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def save(
  module: nnx.Module, trained: TrainedModel, target: str | Path, *, trust: Trust = NOBODY
) -> None:
  """Writes the parameters of a module as a run directory.

  All commands read it, and `--init_from` trains further. It holds weights only: there is nothing to
  resume.

  Args:
    module: made by `to_nnx` of the run's model, and trained since.
    trained: the run that it was made of.
    target: the folder or address in a bucket; appears completely or not at all.
    trust: see `experiment.trained.load`.

  Raises:
    UserError: these are not the parameters of the run's model (those of a quantized or unstacked
      model are not), one has a value that is not finite, or the target is not empty.
  """
  model, params = trained.experiment.model, parameters(module)
  found = {path: _described(leaf) for path, leaf in by_path(params).items()}
  wanted = {p.path: f"{p.shape} {p.dtype}" for p in list_parameters(model)}
  for path in [*wanted, *sorted(found.keys() - wanted.keys())]:
    if found.get(path) != wanted.get(path):
      raise UserError(
        f"the module has {found.get(path, 'nothing')} for {path}, the model of "
        f"{shown(trained.run_dir)} has {wanted.get(path, 'nothing')}. Save a module made by "
        "nnx_bridge.to_nnx(run.experiment.model, run.params)."
      )
  for path, leaf in by_path(params).items():
    if not jnp.isfinite(leaf).all():
      raise UserError(f"{path} has values that are not finite. Lower the learning rate.")
  config = run_config.load(RunDirectory(trained.run_dir), trust=trust)
  words = f"conversion.nnx_bridge.save, from {trained.run_dir}"
  place = target if isinstance(target, Path) else absolute(target)
  conversion.write_run(place, trained, config, model, params, words)


def _described(leaf: Any) -> str:
  return f"{leaf.shape} {leaf.dtype}" if isinstance(leaf, jax.Array) else type(leaf).__name__
