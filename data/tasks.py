"""The corpora as seqio tasks, and their examples.

This module and `data.registered_tasks` alone import seqio and, with it, TensorFlow: for TFDS and
registered tasks.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from data import corpora, encoding, recall, registered_tasks, tokenizers
from data.encoding import Example, Text
from data.files import is_utf8, to_bytes
from data.instructions import Instructions
from data.token_files import TokenFiles
from data.tokenizers import Tokenizer

# Documents passed from Python to TensorFlow at once.
_GROUP = 64
_GROUP_BYTES = 2**20


def seqio_vocabulary(tokenizer: Tokenizer) -> Any:
  """Returns seqio's vocabulary with a tokenizer's ids."""
  import seqio

  if isinstance(tokenizer, tokenizers.Bytes):
    return seqio.ByteVocabulary(extra_ids=tokenizer.extra_ids)
  if isinstance(tokenizer, tokenizers.SentencePiece):
    return seqio.SentencePieceVocabulary(tokenizer.path, extra_ids=tokenizer.extra_ids)
  if isinstance(tokenizer, tokenizers.Symbols):
    return seqio.PassThroughVocabulary(tokenizer.size, eos_id=tokenizer.eos_id)
  raise TypeError(f"vocabulary={tokenizer!r} must be tokenizers.Bytes, .SentencePiece or .Symbols.")


def _tokenize(dataset: Any, output_features: Any, field: str) -> Any:
  """Converts the text in `field` to ids and EOS; records its size and whether it was UTF-8.

  One map in place of several of seqio.preprocessors: each costs a tenth of a millisecond per
  document, and seqio's `tokenize` holds 256 documents in memory.
  """
  import seqio
  import tensorflow as tf

  def tokenize(example: dict[str, Any]) -> dict[str, Any]:
    raw = example[field]
    text = tf.strings.unicode_transcode(raw, "UTF-8", "UTF-8", errors="replace")
    result = seqio.preprocessors.tokenize_impl({"targets": text}, output_features, False)
    result = seqio.preprocessors.append_eos_after_trim_impl(
      cast(dict[str, Any], result), output_features
    )
    result["text_bytes"] = tf.strings.length(text, unit="BYTE")
    result["invalid_utf8"] = tf.not_equal(raw, text)
    return result

  return dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)


class _Failure:
  """Keeps the exception of reading documents; tf.data only reports its text."""

  error: BaseException | None = None


def _groups(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
  """Groups documents, at most _GROUP of them and about _GROUP_BYTES."""
  group, size = [], 0
  for document in documents:
    group.append(document)
    size += len(document)
    if len(group) == _GROUP or size >= _GROUP_BYTES:
      yield group
      group, size = [], 0
  if group:
    yield group


def _source(corpus: corpora.Corpus, failure: _Failure) -> Any:
  """Returns a seqio data source of the corpus."""
  import seqio
  import tensorflow as tf

  if isinstance(corpus, corpora.Tfds):
    return seqio.TfdsDataSource(tfds_name=corpus.dataset, tfds_data_dir=corpus.data_dir)

  def read(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def generate() -> Iterator[dict[str, list[bytes]]]:
      try:
        for group in _groups(cast(corpora.Documents, corpus).documents(split)):
          yield {"text": group}
      except Exception as error:
        failure.error = error
        raise

    # In groups, since a call from TensorFlow into Python costs more than a short document.
    signature = {"text": tf.TensorSpec((None,), tf.string)}
    return tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()

  return seqio.FunctionDataSource(read, splits=corpora.SPLITS)


def _batched(examples: Iterable[recall.RecallExample]) -> Iterator[Sequence[recall.RecallExample]]:
  examples = iter(examples)
  while group := list(itertools.islice(examples, _GROUP)):
    yield group


def _recall_source(task: recall.RecallTask, tokenizer: Tokenizer, failure: _Failure) -> Any:
  """Returns a seqio data source of a recall task's examples: ids, and 1 where the loss is."""
  import seqio
  import tensorflow as tf

  def read(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def generate() -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
      try:
        for group in _batched(task.drawn(tokenizer, split)):
          tokens = np.concatenate([example.tokens for example in group])
          mask = np.concatenate([example.loss_mask for example in group])
          yield tokens, mask.astype(np.int32), [len(example.tokens) for example in group]
      except Exception as error:
        failure.error = error
        raise

    # TensorFlow's stubs lack the method.
    cut = tf.RaggedTensor.from_row_lengths  # pyright: ignore[reportAttributeAccessIssue]

    def ragged(tokens: Any, mask: Any, lengths: Any) -> dict[str, Any]:
      return {"targets": cut(tokens, lengths), "loss_mask": cut(mask, lengths)}

    signature = (tf.TensorSpec((None,), tf.int32),) * 3
    groups = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return groups.map(ragged).unbatch()

  return seqio.FunctionDataSource(read, splits=recall.SPLITS)


def task(corpus: corpora.Corpus, tokenizer: Tokenizer, failure: _Failure | None = None) -> Any:
  """Returns the seqio task of a corpus; registers it if needed.

  Raises:
    CorpusError: a registered task is missing or has another tokenizer.
  """
  import seqio

  if isinstance(corpus, corpora.RegisteredTask):
    return registered_tasks.registered(corpus, tokenizer)
  identity = json.dumps([corpus.describe(), tokenizer.describe()], sort_keys=True)
  digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
  name = "".join(c if c.isalnum() else "_" for c in corpus.name) + "_" + digest
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  feature = seqio.Feature(seqio_vocabulary(tokenizer), add_eos=True)
  if isinstance(corpus, recall.RecallTask):
    mask = seqio.Feature(seqio.PassThroughVocabulary(2), add_eos=False)
    return seqio.TaskRegistry.add(
      name,
      source=_recall_source(corpus, tokenizer, failure or _Failure()),
      preprocessors=[],
      output_features={"targets": feature, "loss_mask": mask},
    )
  field = corpus.field if isinstance(corpus, corpora.Tfds) else "text"
  return seqio.TaskRegistry.add(
    name,
    source=_source(corpus, failure or _Failure()),
    preprocessors=[functools.partial(_tokenize, field=field)],
    output_features={"targets": feature},
  )


def examples(corpus: corpora.Corpus, tokenizer: Tokenizer, split: str) -> Iterator[Example]:
  """Yields the corpus, tokenized by its seqio task: every document once, in order.

  Raises:
    CorpusError: the corpus cannot be read, or has no such split.
  """
  if isinstance(corpus, Instructions):
    yield from _instruction_examples(corpus, tokenizer, split)
  elif isinstance(corpus, recall.RecallTask):
    yield from _recall_examples(corpus, tokenizer, split)
  elif isinstance(corpus, TokenFiles):
    yield from corpus.token_examples(tokenizer, split)
  elif hasattr(corpus, "documents"):
    documents = cast(corpora.Documents, corpus).documents(split)
    yield from encoding.examples(map(Text, documents), tokenizer)
  elif isinstance(corpus, corpora.RegisteredTask):
    yield from registered_tasks.examples(corpus, tokenizer, split)
  else:
    yield from _seqio_examples(corpus, tokenizer, split)


def _seqio_examples(corpus: corpora.Corpus, tokenizer: Tokenizer, split: str) -> Iterator[Example]:
  """Yields the examples of a TFDS data set, or of another corpus by its seqio task."""
  failure = _Failure()
  if isinstance(corpus, corpora.Tfds):
    source = _source(corpus, failure)
    registered_tasks.require_split(corpus, split, _tfds_splits(corpus, source))
    if not isinstance(tokenizer, tokenizers.Bytes | tokenizers.SentencePiece):
      dataset = source.get_dataset(split, shuffle=False)
      texts = (Text(values[corpus.field]) for values in dataset.as_numpy_iterator())
      yield from encoding.examples(texts, tokenizer)
      return
  found = task(corpus, tokenizer, failure)
  registered_tasks.require_split(corpus, split, found.splits)
  dataset = found.get_dataset(
    sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
  )
  try:
    yield from _ungrouped(dataset.ragged_batch(_GROUP))
  except Exception as error:
    raise (failure.error or error) from None


def _tfds_splits(corpus: corpora.Tfds, source: Any) -> Sequence[str]:
  """Returns the splits of a data set that TFDS has prepared, and that has the text feature."""
  splits: list[str] = []
  reason = "It is not prepared there."
  try:
    splits = list(source.splits)
  except ValueError as error:  # An unknown name, or no version.
    reason = str(error).partition("\n")[0]
  if not splits:
    where = corpus.data_dir or "its folder (TFDS_DATA_DIR, or else ~/tensorflow_datasets)"
    raise corpora.CorpusError(
      f"TensorFlow Datasets has no {corpus.dataset!r} in {where}. {reason} Prepare it (tfds "
      "build), or correct corpora.Tfds.dataset or corpora.Tfds.data_dir."
    )
  fields = list(source.tfds_dataset.info.features)
  if corpus.field not in fields:
    raise corpora.CorpusError(
      f"{corpus.name} has no {corpus.field!r}, only {', '.join(map(repr, fields))}. Correct "
      "corpora.Tfds.field."
    )
  return splits


def _instruction_examples(
  corpus: Instructions, tokenizer: Tokenizer, split: str
) -> Iterator[Example]:
  """Tokenizes each piece separately, so that a prompt's ids do not depend on its response.

  Without seqio, which would only pass ids and masks to TensorFlow and back.
  """
  for pieces in corpus.examples(split):
    texts = [to_bytes(piece.text) for piece in pieces]
    clean = [text.decode("utf-8", errors="replace") for text in texts]
    ids = [tokenizer.encode(text) for text in clean]
    scored = np.repeat([piece.scored for piece in pieces], [len(part) for part in ids])
    yield Example(
      np.asarray([*(i for part in ids for i in part), tokenizer.eos_id], np.int32),
      sum(len(text.encode()) for text in clean),
      any(not is_utf8(text) for text in texts),
      # The end belongs to the last piece, also if that is empty: to say nothing is to be learnt
      # too.
      np.append(scored, pieces[-1].scored),
    )


def _ungrouped(groups: Any) -> Iterator[Example]:
  for group in groups:
    tokens = group["targets"].values.numpy()
    ends = group["targets"].row_splits.numpy()[1:-1]
    sizes, flags = group["text_bytes"].numpy(), group["invalid_utf8"].numpy()
    for ids, size, flag in zip(np.split(tokens, ends), sizes, flags, strict=True):
      yield Example(ids, int(size), bool(flag))


def _recall_examples(
  corpus: recall.RecallTask, tokenizer: Tokenizer, split: str
) -> Iterator[Example]:
  byte_lengths = tokenizer.byte_lengths()
  for example in corpus.drawn(tokenizer, split):
    size = int(byte_lengths[example.tokens].sum())
    yield Example(np.asarray(example.tokens), size, False, np.asarray(example.loss_mask))
