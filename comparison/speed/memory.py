"""Counts the bytes of caches, and their effect on a decode step (section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from base.ranges import Count
from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure, Question, Series
from comparison.page.verdict import shown
from comparison.speed.description import check_baseline, conditions, listed
from models.accounting import list_parameters, state_bytes
from models.language_model import LanguageModel

_CELL = "bytes"


def decode_seconds(
  model: LanguageModel, *, batch_size: int, tokens: int, bandwidth: float
) -> float:
  """Returns the least seconds of a memory-bound decode step (section 5.1).

  (parameter bytes + batch x cache bytes) / bandwidth: every step reads both once.

  Args:
    model: any model.
    batch_size: number of sequences.
    tokens: size of the caches.
    bandwidth: bytes per second.
  """
  parameters = sum(parameter.bytes for parameter in list_parameters(model))
  return (parameters + batch_size * state_bytes(model, tokens)) / bandwidth


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSize:
  """Counts the bytes of a sequence's cache, from shapes.

  Attributes:
    lengths: sizes of the cache in tokens.
    baseline: the model to compare the others with.
  """

  lengths: Sequence[Count] = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
  baseline: str = "MQA Transformer"

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    del models
    return {_CELL: 1.0}

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    check_baseline(self.baseline, models)
    counts = cached(
      _CELL,
      lambda: {
        name: [state_bytes(model, length) for length in self.lengths]
        for name, model in models.items()
      },
    )
    held = counts[self.baseline][-1]
    parts = [
      f"{shown(values[-1], 'B')} for {name}"
      + ("" if name == self.baseline else f" (1/{_short(held / values[-1])} of {self.baseline}'s)")
      for name, values in counts.items()
    ]
    return (
      Figure(
        name="cache-bytes",
        title="Bytes of a sequence's cache against its length",
        finding=f"At {self.lengths[-1]:,} tokens a sequence's cache takes {listed(parts)}.",
        x=Axis(label="tokens", log=True),
        y=Axis(label="bytes per sequence", log=True),
        series=tuple(
          Series(name=name, x=tuple(self.lengths), y=tuple(map(float, values)))
          for name, values in counts.items()
        ),
        conditions=(("counted", "all arrays of the decode state, exactly"), *conditions(models)),
        source="section 5.1",
        asks=(
          Question(
            text=f"cache of a sequence of {self.lengths[-1]:,} tokens",
            better="lower",
            unit="B",
            role="cost",
          ),
        ),
      ),
    )


def _short(ratio: float) -> str:
  """Formats a ratio with three digits, but never as 2.85e+03."""
  return f"{ratio:,.0f}" if ratio >= 1000 else f"{ratio:,.3g}"
