"""Examples in ArrayRecord and TFRecord files give their texts.

Encoded here by hand: TensorFlow, which takes seconds to import, wrote WRITTEN.
"""

import gzip
import struct

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data.corpora import CorpusError
from data.record_corpora import Records

TEXTS = ["first é", "", "x" * 300, *(f"text {n}" for n in range(40))]


def field(number, content):
  size, varint = len(content), b""
  while size > 127:
    varint += bytes([size & 127 | 128])
    size >>= 7
  return bytes([number << 3 | 2]) + varint + bytes([size]) + content


def example(text):
  values = field(1, field(1, text.encode()))
  entries = [(b"n", field(3, field(1, b"\x05"))), (b"text", values)]
  return field(1, b"".join(field(1, field(1, key) + field(2, value)) for key, value in entries))


def tf_record(records):
  return b"".join(struct.pack("<Q4x", len(r)) + r + bytes(4) for r in records)


def write(folder, ending):
  path = folder / f"a.{ending}"
  records = [example(text) for text in TEXTS]
  if ending == "array_record":
    writer = ArrayRecordWriter(str(path), "group_size:4")
    for record in records:
      writer.write(record)
    writer.close()
  else:
    pack = gzip.compress if ending.endswith("gz") else bytes
    path.write_bytes(pack(tf_record(records)))
  return path


# tf.io.TFRecordWriter: an example with 'text' (b'written by TensorFlow') and 'n' (int64 7).
WRITTEN = (
  "31000000000000009d8383e90a2f0a0a0a016e12051a030a01070a210a047465787412190a170a1577726974"
  "74656e2062792054656e736f72466c6f77c12cd29e"
)


def test_what_tensorflow_writes_is_read(tmp_path):
  (tmp_path / "a.tfrecord").write_bytes(bytes.fromhex(WRITTEN))
  corpus = Records(str(tmp_path / "a.tfrecord"))
  assert list(corpus.undivided()) == [b"written by TensorFlow"]
  with pytest.raises(CorpusError, match=r"a\.tfrecord, record 0: no tf\.train\.Example with text"):
    list(Records(str(tmp_path / "a.tfrecord"), "n").undivided())


@pytest.mark.parametrize("ending", ["array_record", "tfrecord", "tfrecord.gz"])
def test_every_record_is_in_one_part(tmp_path, ending):
  path = write(tmp_path, ending)
  corpus = Records(str(path))
  expected = [text.encode() for text in TEXTS]
  assert list(corpus.undivided()) == expected
  for size in (1, 100, 10**6):
    found = [text.raw for part in corpus.parts(size) for text in corpus.texts(part)]
    assert found == expected
  if ending == "array_record":
    assert len(corpus.parts(100)) > 3
  assert list(Records(str(path), "missing").undivided()) == [b""] * len(TEXTS)
  whole = path.read_bytes()
  if ending == "tfrecord.gz":
    path.write_bytes(whole[:20] + bytes(200) + whole[220:])  # which zlib itself refuses
    with pytest.raises(CorpusError, match=r"a\.tfrecord\.gz is not a TFRecord file"):
      list(corpus.undivided())
  path.write_bytes(whole[:-9])
  with pytest.raises(CorpusError, match=rf"a\.{ending} (is not a|cannot be read)"):
    list(Records(str(path)).undivided())
