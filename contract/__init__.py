"""What every model of the zoo must obey, as checks that run.

Each check takes a `Subject` and yields a `Finding` per case. A model that passes trains packed
rows, decodes, resumes, and splits over devices like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from contract import (
  causality,
  checkpoints,
  counts,
  decoding,
  packing,
  precision,
  sharding,
  state_size,
  tpu,
  variants,
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
  "sharding": sharding.check,
  "bfloat16": precision.bfloat16,
  "gradients": precision.gradients,
  "parameters": counts.parameters,
  "FLOPs": counts.flops,
  "checkpoint": checkpoints.check,
  "TPU compiler": tpu.check,
}


def run(model: LanguageModel, names: Iterable[str] = CHECKS) -> Iterator[tuple[str, Finding]]:
  """Runs checks, and yields each finding with the name of its check as soon as it is there.

  What a model raises is a finding too, and ends that check alone.

  Args:
    model: any model of the zoo, small enough to compile in seconds; its depth is chosen here.
    names: which of `CHECKS`.
  """
  subject = Subject(model)
  for name in names:
    try:
      for finding in CHECKS[name](subject):
        yield name, finding
    except (Exception, SystemExit) as error:  # whatever the model raises
      message = " ".join(str(error).split())
      says = f"{type(error).__name__}: {message[:500]}"
      yield name, Finding(case="ends with an error", outcome="failed", says=says)
