"""Measures the largest throughput of generation over batch sizes (section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax

from base.ranges import Count
from comparison.measurement import Cached
from comparison.page.figure import Axis, Figure, Question
from comparison.speed import timing
from comparison.speed.description import NO_DIFFERENCE, check_baseline, conditions, listed, series
from comparison.speed.generation import TimedGeneration
from comparison.speed.timing import MedianInterval
from inference.sampling import Sampler
from models.language_model import LanguageModel

# By model and length: the interval of each batch size that fits into memory.
Rates = Mapping[tuple[str, int], Mapping[int, MedianInterval]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
  """Times whole samples after BOS, at every batch size that fits into memory.

  The parameters of all models are in memory together.

  Attributes:
    lengths: tokens per sample.
    batch_sizes: samples per batch.
    rounds: number of timed rounds.
    sampler: the sampler.
    baseline: the model to compare the others with.
  """

  lengths: Sequence[Count] = (512, 1024, 2048, 4096)
  batch_sizes: Sequence[Count] = (1, 4, 16, 64, 256)
  rounds: Count = 7
  sampler: Sampler = dataclasses.field(default_factory=Sampler)
  baseline: str = "MQA Transformer"

  def __post_init__(self):
    if not self.batch_sizes or list(self.batch_sizes) != sorted(set(self.batch_sizes)):
      raise ValueError(f"batch_sizes={tuple(self.batch_sizes)} must be ascending.")

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    del models
    # A step reads the parameters once for any batch size.
    return {
      _key(length, batch): float(length * (32 + batch))
      for length in self.lengths
      for batch in self.batch_sizes
    }

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    check_baseline(self.baseline, models)
    generations = {name: TimedGeneration(model, self.sampler) for name, model in models.items()}
    rates: dict[tuple[str, int], dict[int, MedianInterval]] = {}
    for length in self.lengths:
      fitting = generations
      for batch in self.batch_sizes:
        result = cached(_key(length, batch), partial(self._measure, fitting, length, batch))
        fitting = {name: one for name, one in fitting.items() if result.get(name)}
        for name in fitting:
          rate = timing.interval(result[name]).inverse(length * batch)
          rates.setdefault((name, length), {})[batch] = rate
      missing = [name for name in models if (name, length) not in rates]
      if missing:
        raise ValueError(
          f"{listed(missing)}: not even {self.batch_sizes[0]} samples of {length:,} tokens fit "
          "into memory. Use shorter samples, or a smaller model."
        )
    return self._largest(models, rates), self._by_batch(models, rates)

  def _measure(self, generations: Mapping[str, TimedGeneration], length: int, batch: int) -> dict:
    runs, full = {}, {}
    for name, one in generations.items():
      run = one.samples(batch, 0, length)
      if _fits(run):
        runs[name] = run
      else:
        full[name] = None
    return timing.interleaved(runs, self.rounds) | full

  def _largest(self, models: Mapping[str, LanguageModel], rates: Rates) -> Figure:
    best = {key: max(found, key=lambda b, f=found: f[b].median) for key, found in rates.items()}
    largest = {
      name: [rates[name, length][best[name, length]] for length in self.lengths] for name in models
    }
    last = self.lengths[-1]
    parts = [
      f"{largest[name][-1].median:,.0f} for {name} (batch {best[name, last]}"
      f"{self._compared(name, largest)})"
      for name in models
    ]
    return Figure(
      name="largest-throughput",
      title="Largest throughput over batch sizes against sample length",
      finding=f"The most tokens per second in samples of {last:,} tokens: {listed(parts)}.",
      x=Axis(label="tokens per sample", log=True),
      y=Axis(label="tokens per second"),
      series=tuple(series(name, self.lengths, largest[name]) for name in models),
      spread=timing.spread(self.rounds),
      conditions=(
        ("batch sizes tried", ", ".join(map(str, self.batch_sizes))),
        *(
          (f"batch of {name}", ", ".join(str(best[name, n]) for n in self.lengths))
          for name in models
        ),
        *conditions(models),
      ),
      source="section 5",
      asks=(
        Question(
          text=f"throughput in samples of {last:,}, at its best batch",
          better="higher",
          unit="tokens/s",
        ),
      ),
    )

  def _compared(self, name: str, largest: Mapping[str, Sequence[MedianInterval]]) -> str:
    if name == self.baseline:
      return ""
    mine, others = largest[name][-1], largest[self.baseline][-1]
    if mine.overlaps(others):
      return f"; {NO_DIFFERENCE} from {self.baseline}"
    return f"; {mine.median / others.median:.3g} times {self.baseline}'s"

  def _by_batch(self, models: Mapping[str, LanguageModel], rates: Rates) -> Figure:
    last = self.lengths[-1]
    found = {name: rates[name, last] for name in models}
    parts = [
      f"{name} {one[max(one)].median / one[min(one)].median:.3g} times from batch {min(one)} to "
      f"{max(one)}" + (f" ({NO_DIFFERENCE})" if one[max(one)].overlaps(one[min(one)]) else "")
      for name, one in found.items()
    ]
    return Figure(
      name="throughput-by-batch",
      title=f"Throughput against batch size, samples of {last:,} tokens",
      finding=f"In samples of {last:,} tokens the tokens per second grow as follows: "
      f"{listed(parts)}.",
      x=Axis(label="batch", log=True),
      y=Axis(label="tokens per second", log=True),
      series=tuple(series(name, tuple(one), tuple(one.values())) for name, one in found.items()),
      spread=timing.spread(self.rounds),
      conditions=conditions(models),
      source="section 5",
    )


def _fits(run) -> bool:
  try:
    run()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return False
  return True


def _key(length: int, batch: int) -> str:
  return f"{batch} samples of {length} tokens"
