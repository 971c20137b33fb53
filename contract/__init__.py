"""The contract of every model of the zoo, as runnable checks.

Each check takes a `Subject` and yields a `Finding` per case. A model that passes trains packed
rows, decodes, resumes, and splits over devices like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from base.errors import UserError, is_out_of_memory
from contract import (
  carried,
  causality,
  checkpoints,
  chunks,
  counts,
  decoding,
  packing,
  precision,
  sharding,
  state_size,
  tpu,
  variants,
  widths,
)
from contract.finding import Finding
from contract.subject import Subject
from models.language_model import LanguageModel

CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
  "causality": causality.check,
  "packing": packing.check,
  "decoding": decoding.check,
  "state size": state_size.check,
  "remat": variants.remat,
  "scan": variants.scan,
  "time chunks": chunks.check,
  "carried state": carried.check,
  "sharding": sharding.check,
  "bfloat16": precision.bfloat16,
  "gradients": precision.gradients,
  "parameters": counts.parameters,
  "FLOPs": counts.flops,
  "checkpoint": checkpoints.check,
  "widths": widths.check,
  "TPU compiler": tpu.check,
}


def run(
  model: LanguageModel,
  names: Iterable[str] = CHECKS,
  wider: Callable[[int], LanguageModel] | None = None,
  width_factors: Sequence[int] = (4,),
) -> Iterator[tuple[str, Finding]]:
  """Runs checks; yields the name of each check with its findings.

  An exception of a model is a finding too, and ends only that check.

  Args:
    model: any model of the zoo, small enough to compile in seconds; its depth is replaced.
    names: names in `CHECKS`.
    wider, width_factors: see `Subject`; the check 'widths' needs them.

  Raises:
    UserError: memory ran out, which says nothing about the model.
  """
  subject = Subject(model, wider, width_factors)
  for name in names:
    try:
      for finding in CHECKS[name](subject):
        yield name, finding
    except (Exception, SystemExit) as error:  # a model may raise anything
      message = " ".join(str(error).split())
      if is_out_of_memory(error):
        raise UserError(
          f"not enough memory for the check {name!r} ({message[:200] or type(error).__name__}). "
          "Check a smaller model, such as --gin.WIDTH=32 --gin.RNN_WIDTH=128."
        ) from error
      says = f"{type(error).__name__}: {message[:500]}"
      yield name, Finding(case="ends with an error", outcome="failed", says=says)
