"""seqio tasks as a user would register them; imported by the preparing process, never by a test."""

import functools
import os

import seqio
import tensorflow as tf


def _texts(split, shuffle_files, texts):
  del split, shuffle_files
  return tf.data.Dataset.from_tensor_slices({"inputs": texts, "targets": texts})


def _add(name, texts, features, keep_text=True, vocabulary=None):
  vocabulary = vocabulary or seqio.ByteVocabulary()
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(functools.partial(_texts, texts=texts), splits=["train"]),
    preprocessors=[
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=keep_text),
      seqio.preprocessors.append_eos,
    ],
    output_features={f: seqio.Feature(vocabulary, add_eos=f == "targets") for f in features},
  )


_add("short_documents", ["ab"] * 300, ["targets"])
_add("long_documents", ["c" * 23] * 300, ["targets"], keep_text=False)
_add("with_inputs", [b"q\xff", b"r"], ["inputs", "targets"])
_add("no_vocabulary", ["x"], ["targets"], vocabulary=seqio.PassThroughVocabulary(10))
# Prompts and responses, a pair per line of the files in a folder of the environment.
seqio.TaskRegistry.add(
  "lines",
  source=seqio.TextLineDataSource({"train": os.environ.get("LINES", "nowhere") + "/*.txt"}),
  preprocessors=[
    lambda lines: lines.map(lambda line: {"inputs": line, "targets": tf.strings.upper(line)}),
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
  ],
  output_features={
    f: seqio.Feature(seqio.ByteVocabulary(), add_eos=f == "targets") for f in ("inputs", "targets")
  },
)
seqio.MixtureRegistry.add("short_and_long", [("short_documents", 3), ("long_documents", 1)])
