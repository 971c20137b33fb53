"""What test_seqio.py checks, run in a process of its own: importing seqio takes seconds.

Writes its findings as JSON to the file named by the second argument; the first is an empty folder.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data import (
  corpora,
  dataset,
  prepare,
  recall,
  recall_text,
  registered_tasks,
  rows,
  shard_packing,
  shard_plan,
  shard_workers,
  tasks,
  tokenizer_training,
  tokenizers,
)
from tests.data import hostile


def vocabulary_case(own):
  """Compares ids and texts of our tokenizer with seqio's."""
  theirs = tasks.seqio_vocabulary(own)
  found = {"size": [own.size, theirs.vocab_size], "special": [], "ids": [], "texts": []}
  found["special"] = [
    [own.eos_id, own.unk_id, own.pad_id],
    [theirs.eos_id, theirs.unk_id, theirs.pad_id],
  ]
  for text in hostile.TEXTS:
    ids = own.encode(text)
    found["ids"].append([ids, list(theirs.encode(text)), theirs.encode_tf(text).numpy().tolist()])
    for end in ([], [own.eos_id, *ids], [own.size + 7, own.unk_id]):
      found["texts"].append([own.decode(ids + end), theirs.decode(ids + end)])
  return found


def example_case(corpus, tokenizer, split="all"):
  """Tokenizes a corpus by its seqio task; returns each example as plain values."""
  examples = tasks.examples(corpus, tokenizer, split)
  return [[e.tokens.tolist(), e.text_bytes, e.invalid_utf8] for e in examples]


def write_lines(folder):
  """Writes the files of the task 'lines'; call it before the tasks are registered."""
  lines = folder / "lines"
  lines.mkdir()
  for n in range(5):
    (lines / f"{n}.txt").write_text("".join(f"line {n} {m}\n" for m in range(20 + n)))
  os.environ["LINES"] = str(lines)


def shares_case(folder):
  """Plans, reads and packs a task of five files in shares, and whole."""
  corpus = corpora.RegisteredTask(
    "lines", "tests.data.registered_tasks", ("inputs", "targets"), loss_on=("targets",)
  )
  spec = dataset.TextDataset(
    corpus, tokenizers.Bytes(), 64, "train", str(folder / "cache"), shard_bytes=300
  )
  planned = shard_plan.tasks(spec)
  shares = [[e.tokens.tolist() for e in shard_plan.examples(spec, task)] for task in planned]
  whole = [e.tokens.tolist() for e in tasks.examples(corpus, spec.vocabulary, "train")]
  directory = folder / "shares"
  directory.mkdir()
  for number, task in enumerate(planned):
    shard_packing.pack(spec, task, number, directory)
  again = shard_packing.folder_name(1)
  packed = (directory / again / rows.TOKENS).read_bytes()
  shutil.rmtree(directory / again)
  shard_packing.pack(spec, planned[1], 1, directory)
  counts = shard_workers.join(spec, spec.source(), len(planned), directory)
  opened = rows.RowFiles(directory)
  seeded = dataclasses.replace(corpus, seed=1)
  kept = prepare.shards_folder(spec, planned)
  first = folder / "lines" / "0.txt"
  before = first.read_text(), first.stat()
  first.write_text(before[0] + "another line\n")
  other = shard_plan.tasks(spec)
  unlike = {
    "counts": [len(planned), len(other)],
    "folder": prepare.shards_folder(spec, other).name,
    "read": failure_case(lambda: next(shard_plan.examples(spec, planned[1]))),
    "joined": failure_case(lambda: prepare._require_unchanged(spec, spec.source(), (), planned)),
  }
  first.write_text(before[0])
  os.utime(first, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
  prepare._require_unchanged(spec, spec.source(), (), planned)
  return {
    "shares": shares,
    "whole": whole,
    "names": [str(part) for (part,) in planned],
    "same": (directory / again / rows.TOKENS).read_bytes() == packed,
    "tokens": counts.tokens,
    "unscored": counts.unscored_tokens,
    "masked": int(sum((mask == 0).sum() for mask in opened.loss_mask)),
    "padding": counts.padding_tokens,
    "folders": [kept.name, prepare.shards_folder(spec, shard_plan.tasks(spec)).name],
    "unlike": unlike,
    "little": shard_plan.tasks(dataclasses.replace(spec, shard_bytes=None)) is None,
    "seeded": shard_plan.tasks(dataclasses.replace(spec, corpus=seeded)) is None,
  }


def failure_case(make):
  """Returns the kind and text of the error that `make` raises."""
  try:
    make()
  except Exception as error:
    return [type(error).__name__, str(error)]
  return ["nothing", ""]


def prepared_case(spec):
  """Prepares a dataset in this process and returns its counts and events."""
  events = []
  prepare.prepare(spec, events.append)
  opened = rows.RowFiles(spec.cache_path, verify=True)
  mask = None if opened.loss_mask is None else opened.loss_mask.tolist()
  return {"counts": vars(opened.counts), "events": events, "rows": len(opened), "mask": mask}


def recall_case(task, tokenizer, length, folder):
  """Prepares a recall task; returns its rows' tokens, segments and loss mask."""
  spec = dataset.TextDataset(task, tokenizer, length, "train", str(folder), whole_documents=True)
  prepare.prepare(spec, lambda event: None)
  opened = rows.RowFiles(spec.cache_path, verify=True).check(tokenizer, length)
  return [opened.tokens.tolist(), opened.segment_ids.tolist(), opened.loss_mask.tolist()]


def registered(task, features=("targets",), module="tests.data.registered_tasks", loss_on=None):
  return corpora.RegisteredTask(task, module, features, loss_on=loss_on)


def store_tfds(folder):
  """Stores a data set of TensorFlow Datasets as a user's machine would hold it."""
  features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
  texts = {"train": [b"first", b"", b"third \xff", b"fourth"], "validation": [b"held out"]}
  tfds.dataset_builders.store_as_tfds_dataset(
    name="small_texts",
    version="1.0.0",
    features=features,
    split_datasets={k: tf.data.Dataset.from_tensor_slices({"body": v}) for k, v in texts.items()},
    data_dir=folder,
  )
  return corpora.Tfds("small_texts:1.0.0", "body", data_dir=str(folder))


def main(folder: Path, output: Path):
  write_lines(folder)
  (folder / "texts").mkdir()
  for i, text in enumerate([*(t.encode() for t in hostile.TEXTS), *hostile.INVALID, b""]):
    (folder / "texts" / f"{i:02}.txt").write_bytes(text)
  texts = corpora.TextFiles(f"{folder}/texts/*.txt", heldout_fraction=0.0)
  (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
  bad_lines = corpora.JsonLines(f"{folder}/bad.jsonl", heldout_fraction=0.0)
  (folder / "empty.txt").write_text("")
  empty = corpora.TextFiles(f"{folder}/empty.txt", heldout_fraction=0.0)
  model = folder / "small.model"
  pieces = tokenizer_training.train_sentencepiece(
    corpora.PythonLibrary(), 600, model, megabytes=0.5
  )
  own = tokenizer_training.train_tokenizer_json(
    corpora.PythonLibrary(), 300, folder / "tokenizer.json", megabytes=0.1
  )
  byte = tokenizers.Bytes()
  small = store_tfds(folder / "tfds")

  def spec(corpus, split="all", tokenizer=byte):
    return dataset.TextDataset(corpus, tokenizer, 8, split, str(folder / "cache"))

  def prepares(*arguments):
    return lambda: prepare.prepare(spec(*arguments), lambda event: None)

  copying = recall.SelectiveCopying(length=8, data_tokens=3, examples=70)
  phonebook = recall_text.Phonebook(length=3, examples=5)
  cache = folder / "cache"
  found = {
    "copying": recall_case(copying, tokenizers.Symbols(16), 30, cache),
    "phonebook": recall_case(phonebook, byte, 160, cache),
    "bytes": vocabulary_case(tokenizers.Bytes(extra_ids=3)),
    "pieces": vocabulary_case(pieces),
    "pieces_extra": vocabulary_case(tokenizers.SentencePiece(str(model), extra_ids=3)),
    "texts_as_bytes": example_case(texts, byte),
    "texts_as_pieces": example_case(texts, pieces),
    "expected_pieces": [
      pieces.encode(t)
      for t in hostile.TEXTS + [t.decode("utf-8", "replace") for t in hostile.INVALID]
    ],
    "registered": tasks.task(texts, byte).name in seqio.TaskRegistry.names(),
    "tfds": example_case(small, byte, "train"),
    "tfds_json": [
      [own.decode(example.tokens), example.text_bytes, example.invalid_utf8]
      for example in tasks.examples(small, own, "train")
    ],
    "tfds_part": example_case(small, byte, "train[:50%]"),
    "tfds_prepared": prepared_case(spec(small, "train")),
    "with_inputs": example_case(registered("with_inputs", ("inputs", "targets")), byte, "train"),
    "long_documents": example_case(registered("long_documents"), byte, "train")[:1],
    "texts_prepared": prepared_case(spec(texts)),
    "targets_prepared": prepared_case(
      spec(registered("with_inputs", ("inputs", "targets"), loss_on=("targets",)), "train")
    ),
    "failures": {
      "bad_line": failure_case(prepares(bad_lines, "train")),
      "empty": failure_case(prepares(empty, "train")),
      "no_heldout": failure_case(prepares(empty, "heldout")),
      "split": failure_case(prepares(texts, "validation")),
      "cut_recall": failure_case(lambda: recall_case(copying, tokenizers.Symbols(16), 12, cache)),
      "few_symbols": failure_case(lambda: recall_case(copying, tokenizers.Symbols(9), 30, cache)),
      "tfds_split": failure_case(prepares(small, "heldout")),
      "tfds_json_split": failure_case(prepares(small, "heldout", own)),
      "tfds_absent": failure_case(
        prepares(corpora.Tfds("c4/en:3.1.0", data_dir=str(folder / "tfds")), "train")
      ),
      "tfds_unknown": failure_case(
        prepares(dataclasses.replace(small, dataset="smal_texts:1.0.0"), "train")
      ),
      "tfds_version": failure_case(lambda: corpora.Tfds("small_texts")),
      "tfds_field": failure_case(prepares(dataclasses.replace(small, field="text"), "train")),
      "tfds_json_field": failure_case(
        prepares(dataclasses.replace(small, field="text"), "train", own)
      ),
      "unknown_task": failure_case(prepares(registered("short_document"), "train")),
      "task_is_mixture": failure_case(prepares(registered("short_and_long"), "train")),
      "features": failure_case(prepares(registered("with_inputs"), "train")),
      "vocabulary": failure_case(prepares(registered("short_documents"), "train", pieces)),
      "no_vocabulary": failure_case(prepares(registered("no_vocabulary"), "train")),
      "mixture": failure_case(
        lambda: registered_tasks.mixture_rates("nothing", "tests.data.registered_tasks")
      ),
    },
    "shares": shares_case(folder),
    "leftovers": sorted(p.name for p in (folder / "cache").glob(".*.partial")),
    "rates": registered_tasks.mixture_rates("short_and_long", "tests.data.registered_tasks"),
  }
  output.write_text(json.dumps(found))


if __name__ == "__main__":
  main(Path(sys.argv[1]), Path(sys.argv[2]))
  # TensorFlow waits for ever at an ordinary exit after a generator of its raised.
  os._exit(0)
