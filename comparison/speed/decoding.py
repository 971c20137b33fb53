"""Measures the latency of samples and of tokens by length (section 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from base.ranges import Count, CountFromZero, Positive
from base.wording import plural
from comparison.measurement import Cached
from comparison.page.figure import ESTIMATED, Axis, Figure, Question, Series
from comparison.page.verdict import shown
from comparison.speed import bandwidth as bandwidth_lib
from comparison.speed import memory, timing
from comparison.speed.description import change, check_baseline, conditions, listed, series, times
from comparison.speed.generation import TimedGeneration
from comparison.speed.timing import MedianInterval
from inference.sampling import Sampler
from models.language_model import LanguageModel

_BANDWIDTH = "memory bandwidth"
Found = Mapping[str, Sequence[MedianInterval]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSpeed:
  """Times samples from prompt to end, and single tokens at several context lengths.

  The tokens are compared with a memory-bound model: parameters and caches are read once per token.

  Attributes:
    lengths: tokens per sample.
    prefills: tokens per prompt; 0 is only BOS.
    after: context lengths at which to time single tokens.
    steps: tokens per timed run there.
    batch_size: samples per batch.
    rounds: number of timed rounds.
    bandwidth: memory bandwidth in bytes per second; None measures it.
    sampler: the sampler.
    baseline: the model to compare the others with.
  """

  lengths: Sequence[Count] = (512, 1024, 2048, 4096)
  prefills: Sequence[CountFromZero] = (0, 4096)
  after: Sequence[CountFromZero] = (128, 512, 2048, 8192)
  steps: Count = 64
  batch_size: Count = 16
  rounds: Count = 7
  bandwidth: Positive | None = None
  sampler: Sampler = dataclasses.field(default_factory=Sampler)
  baseline: str = "MQA Transformer"

  def results(self, models: Mapping[str, LanguageModel]) -> Mapping[str, float]:
    """See `comparison.measurement.Measurement`."""
    del models
    samples = {
      _sample(prefill, length): float(length + prefill / 16)
      for prefill in self.prefills
      for length in self.lengths
    }
    tokens = {_token(after): float(self.steps + after / 16) for after in self.after}
    return samples | tokens | ({} if self.bandwidth else {_BANDWIDTH: float(self.steps)})

  def __call__(self, models: Mapping[str, LanguageModel], cached: Cached) -> tuple[Figure, ...]:
    """See `comparison.measurement.Measurement`."""
    check_baseline(self.baseline, models)
    generations = {name: TimedGeneration(model, self.sampler) for name, model in models.items()}
    samples = [
      self._samples(
        models,
        prefill,
        [
          cached(
            _sample(prefill, length), partial(self._time_samples, generations, prefill, length)
          )
          for length in self.lengths
        ],
      )
      for prefill in self.prefills
    ]
    tokens = [
      cached(_token(after), partial(self._time_tokens, generations, after)) for after in self.after
    ]
    bandwidth = self.bandwidth or cached(_BANDWIDTH, bandwidth_lib.measured)
    return *samples, self._tokens(models, tokens, bandwidth)

  def _time_samples(
    self, generations: Mapping[str, TimedGeneration], prefill: int, length: int
  ) -> dict:
    return timing.interleaved(
      {name: one.samples(self.batch_size, prefill, length) for name, one in generations.items()},
      self.rounds,
    )

  def _time_tokens(self, generations: Mapping[str, TimedGeneration], after: int) -> dict:
    runs = self.rounds + 1
    return timing.interleaved(
      {
        name: one.steps(self.batch_size, after, self.steps, runs)
        for name, one in generations.items()
      },
      self.rounds,
    )

  def _samples(
    self, models: Mapping[str, LanguageModel], prefill: int, results: Sequence[Mapping]
  ) -> Figure:
    found = {name: [timing.interval(result[name]) for result in results] for name in models}
    prompt = f"a prompt of {prefill:,} tokens" if prefill else "an empty prompt"
    longest = {name: values[-1] for name, values in found.items()}
    parts = [
      f"{name} {_seconds(longest[name].median)}"
      + (
        ""
        if name == self.baseline
        else f" ({_compared(longest[name], longest[self.baseline], self.baseline)})"
      )
      for name in models
    ]
    return Figure(
      name=f"sample-latency-{prefill}",
      title=f"Time per sample against its length, after {prompt}",
      finding=f"{plural(self.batch_size, 'sample')} of {plural(self.lengths[-1], 'token')} after "
      f"{prompt} take "
      f"{listed(parts)}.",
      x=Axis(label="tokens per sample", log=True),
      y=Axis(label="seconds", log=True),
      series=tuple(series(name, self.lengths, found[name]) for name in models),
      spread=timing.spread(self.rounds),
      conditions=(*self._conditions(), *conditions(models)),
      source="section 5",
    )

  def _tokens(
    self, models: Mapping[str, LanguageModel], results: Sequence[Mapping], bandwidth: float
  ) -> Figure:
    found = {
      name: [timing.interval(result[name]).scaled(1e3 / self.steps) for result in results]
      for name in models
    }
    bounds = {
      name: [
        1e3
        * memory.decode_seconds(
          model, batch_size=self.batch_size, tokens=after, bandwidth=bandwidth
        )
        for after in self.after
      ]
      for name, model in models.items()
    }
    lines = [series(name, self.after, found[name]) for name in models]
    lines += [
      Series(
        name=f"{name}, memory-bound model",
        x=tuple(self.after),
        y=tuple(bounds[name]),
        kind=ESTIMATED,
      )
      for name in models
    ]
    return Figure(
      name="token-latency",
      title="Time per token against context length",
      finding=_tokens_finding(self.after, found, bounds),
      x=Axis(label="context length, tokens", log=True),
      y=Axis(label="milliseconds per decode step (a token in each row)", log=True),
      series=tuple(lines),
      spread=timing.spread(self.rounds),
      conditions=(
        *self._conditions(),
        ("tokens per timed run", str(self.steps)),
        (
          _BANDWIDTH,
          f"{bandwidth / 1e9:.4g} GB/s, {'given' if self.bandwidth else 'measured here'}",
        ),
        *conditions(models),
      ),
      source="section 5.1",
      asks=(
        Question(
          text=f"time per token after {self.after[-1]:,}, batch {self.batch_size}",
          better="lower",
          at=self.after[-1],
          unit="ms",
          role="cost",
        ),
      ),
    )

  def _conditions(self) -> tuple[tuple[str, str], ...]:
    return (("batch", str(self.batch_size)), ("sampler", _describe(self.sampler)))


def _seconds(value: float) -> str:
  return shown(value, "s") if value >= 1 else shown(1e3 * value, "ms")


def _tokens_finding(
  after: Sequence[int], found: Found, bounds: Mapping[str, Sequence[float]]
) -> str:
  changes = [
    f"{name}'s from {change(values[0], values[-1], ' ms')}" for name, values in found.items()
  ]
  ratios = [f"{values[-1].median / bounds[name][-1]:.3g}" for name, values in found.items()]
  return (
    f"From {after[0]:,} to {plural(after[-1], 'token')} of context, the time per token changes as "
    f"follows: {listed(changes)}; the last are {listed(ratios)} times the memory-bound model's."
  )


def _compared(value: MedianInterval, reference: MedianInterval, name: str) -> str:
  found = times(value, reference)
  return f"{found} {name}'s" if found.endswith("times") else f"{found} from {name}"


def _describe(sampler: Sampler) -> str:
  if not sampler.temperature:
    return "greedy"
  return f"temperature {sampler.temperature:g}, top-k {sampler.top_k}, top-p {sampler.top_p:g}"


def _sample(prefill: int, length: int) -> str:
  return f"samples of {length} tokens after {prefill}"


def _token(after: int) -> str:
  return f"tokens after {after}"
