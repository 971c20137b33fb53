"""Adapter from our models to EleutherAI's lm-eval; needs the extra `harness`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
  handle_stop_sequences,
  normalize_gen_kwargs,
  postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from base.errors import UserError
from data.tokenizers import Tokenizer
from evaluation.likelihood import Likelihood, LikelihoodScorer, Request, bucket
from inference.decode_sharding import DecodeSharding, OneDevice
from inference.decoder import ENDED, Decoder
from inference.sampling import Sampler
from inference.text_stream import continuation
from models.language_model import LanguageModel

Report = Callable[[str, int, int], None]
_MAX_NEW_TOKENS = 256


class HarnessError(UserError, ValueError):
  """A task's request cannot be served; the message says what would help."""


class HarnessModel(TemplateLM):
  """Answers lm-eval's requests.

  A context is the start of a document, as in training: BOS comes before its first token. Requests
  with more than `max_length` tokens lose their first tokens, including BOS, as with lm-eval's own
  models.
  """

  def __init__(
    self,
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    tokens_at_once: int = 2**14,
    stop_ids: Sequence[int] = (),
    report: Report | None = None,
    where: DecodeSharding | None = None,
  ):
    """Sets the model and its limits.

    Args:
      model: the model.
      params: its parameters.
      tokenizer: its tokenizer.
      max_length: the most tokens that the model reads.
      tokens_at_once: rows times length of a batch.
      stop_ids: ids that end a generated text, in addition to the tokenizer's EOS.
      report: called with the kind of requests ('loglikelihood', ...), the number done and the
        total.
      where: the devices; None is one device.
    """
    super().__init__()
    self._scorer = LikelihoodScorer(model, max_length, tokens_at_once, where or OneDevice())
    self._params = params
    self._tokenizer = tokenizer
    self._report = report or (lambda what, done, total: None)
    self._stops = sorted({tokenizer.eos_id, *stop_ids})
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id} - {*self._stops}
    self._forbidden = (*special, *range(tokenizer.size, model.vocab_size))

  @property
  def max_length(self) -> int:
    """The most tokens that the model reads."""
    return self._scorer.max_length

  @property
  def eot_token_id(self) -> int:
    """The id that ends a document."""
    return self._tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    """The id before a document's first token."""
    return self._tokenizer.bos_id

  @property
  def tokenizer_name(self) -> str:
    """Identifies the tokenizer, for lm-eval's caches of requests."""
    return json.dumps(self._tokenizer.describe(), sort_keys=True)

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Returns the ids of a text, with BOS by default."""
    begin = [] if add_special_tokens is False else [self.prefix_token_id]
    return [*begin, *self._tokenizer.encode(string)]

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Scores each continuation after its context: log-likelihood, and whether it is greedy."""
    pairs = [
      (
        request.args,
        *(
          self._encode_pair(*request.args)
          if request.args[0]
          else (
            [self.prefix_token_id],
            self.tok_encode(_arguments(request)[1], add_special_tokens=False),
          )
        ),
      )
      for request in requests
    ]
    return self._loglikelihood_tokens(pairs)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    longest = max((len(continuation) for _, _, continuation in requests), default=0)
    if longest > self.max_length:
      raise HarnessError(
        f"an answer has {longest} tokens, and the model reads max_length={self.max_length}. Raise "
        "it (--length; in a comparison DOWNSTREAM_LENGTH)."
      )
    # An empty continuation is certain.
    asked = [index for index, (_, _, continuation) in enumerate(requests) if continuation]
    found = [Likelihood(0.0, True)] * len(requests)
    scores = self._scorer(
      self._params,
      [Request(requests[index][1], requests[index][2]) for index in asked],
      lambda done, total: self._report("loglikelihood", done, total),
    )
    for index, score in zip(asked, scores, strict=True):
      found[index] = score
    for (text, _, _), score in zip(requests, found, strict=True):
      if text is not None:
        self.cache_hook.add_partial("loglikelihood", text, tuple(score))
    return [(score.log_probability, score.greedy) for score in found]

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Scores each whole text: its log-likelihood, in windows of max_length tokens."""
    windows, owners = [], []
    for index, (text,) in enumerate(request.args for request in requests):
      for window in get_rolling_token_windows(
        token_list=self.tok_encode(text, add_special_tokens=False),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        windows.append(Request(*make_disjoint_window(window)))
        owners.append(index)
    totals = [0.0] * len(requests)
    scores = self._scorer(
      self._params, windows, lambda done, total: self._report("rolling windows", done, total)
    )
    for owner, score in zip(owners, scores, strict=True):
      totals[owner] += score.log_probability
    for request, total in zip(requests, totals, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Continues each context to one of its stop texts, the end of the document or the limit.

    Raises:
      HarnessError: a request's new tokens do not fit into max_length, or an option is out of range.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
      groups[json.dumps(_arguments(request)[1], sort_keys=True)].append(index)
    texts, done = [""] * len(requests), 0
    for indices in groups.values():
      given = _arguments(requests[indices[0]])[1]
      options = _options(given, min(_MAX_NEW_TOKENS, self.max_length // 2))
      stops = [stop for stop in handle_stop_sequences(options.get("until"), eos=None) if stop]
      limit = options["max_gen_toks"]
      if limit >= self.max_length:
        raise HarnessError(
          f"a request wants up to {limit} new tokens, max_length={self.max_length} leaves no room "
          "for"
          " its context. Raise max_length, or set max_gen_toks in the task's generation_kwargs."
        )
      decoder = self._decoder(options)
      room = self.max_length - limit
      prompts = {index: self.tok_encode(requests[index].args[0])[-room:] for index in indices}
      # Batches of similar lengths, the longest first.
      indices.sort(key=lambda index: -len(prompts[index]))
      while indices:
        longest = bucket(len(prompts[indices[0]]))
        rows = max(1, self._scorer.tokens_at_once // (longest + limit))
        chosen, indices = indices[:rows], indices[rows:]
        asked = [(requests[index].args[0], prompts[index]) for index in chosen]
        asked += asked[-1:] * (min(rows, bucket(len(chosen), 2, 1)) - len(chosen))
        given = self._generate(decoder, asked, limit, stops, longest)
        for index, text in zip(chosen, given, strict=False):
          texts[index] = text
          self.cache_hook.add_partial("generate_until", requests[index].args, text)
        done += len(chosen)
        self._report("generate_until", done, len(requests))
    return texts

  def _decoder(self, options: dict[str, Any]) -> Decoder:
    return Decoder(
      self._scorer.model,
      _sampler(options),
      stop_ids=self._stops,
      forbidden_ids=self._forbidden,
      where=self._scorer.where,
    )

  def _generate(
    self,
    decoder: Decoder,
    asked: list[tuple[str, list[int]]],
    limit: int,
    stops: list[str],
    pad_to: int,
  ) -> list[str]:
    """Continues contexts, given with their ids, until all have reached a stop text or their end."""
    ids: list[list[int]] = [[] for _ in asked]
    texts = [""] * len(asked)
    prompts = [prompt for _, prompt in asked]
    for tokens in decoder.generate(
      self._params, prompts, max_tokens=limit, chunk=32, pad_to=pad_to
    ):
      for row, new in enumerate(tokens):
        ids[row] += [int(token) for token in new if token != ENDED]
        context, prompt = asked[row]
        read = prompt[1:] if prompt[0] == self.prefix_token_id else prompt
        texts[row] = continuation(self._tokenizer, context, read, ids[row])
      ended = tokens[:, -1] == ENDED
      if all(
        end or any(stop in text for stop in stops) for end, text in zip(ended, texts, strict=True)
      ):
        break
    return [postprocess_generated_text(text, stops, None) for text in texts]


def _arguments(request: Instance) -> tuple[Any, Any]:
  """Returns a request's context and its other arguments, which lm-eval's types lack."""
  return cast(tuple[Any, Any], request.args)


def _options(given: dict[str, Any], max_tokens: int) -> dict[str, Any]:
  """Returns a request's options with lm-eval's defaults, also for null.

  Raises:
    HarnessError: an option has the wrong type.
  """
  try:
    said = {name: value for name, value in given.items() if value is not None}
    return cast(dict[str, Any], normalize_gen_kwargs(said, max_tokens))
  except (TypeError, ValueError) as error:
    raise _of_task(error) from None


def _of_task(error: Exception) -> HarnessError:
  reason = str(error)[:200].rstrip(".")
  return HarnessError(
    f"a task's generation_kwargs cannot be used: {reason}. Correct them in the task's YAML."
  )


def _sampler(options: dict[str, Any]) -> Sampler:
  """Makes the sampler of a request's options, with the meaning of zeros in `transformers`.

  Raises:
    HarnessError: an option is out of range.
  """
  if not options.get("do_sample"):
    return Sampler(temperature=0)
  top_k, top_p = options.get("top_k"), options.get("top_p", 1.0)
  try:
    # top_p 0 keeps the most likely token; top_k 0 keeps all.
    temperature = options.get("temperature", 1.0) if top_p != 0 else 0
    return Sampler(temperature=temperature, top_k=top_k or None, top_p=top_p or 1.0)
  except (TypeError, ValueError) as error:
    raise _of_task(error) from None
