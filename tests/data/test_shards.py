"""Rows in several shards are the rows of one file: same order, same bytes, same refusals."""

import json

import numpy as np
import pytest

from data import loader, manifest, packing, rows, shards, tokenizers, verification

LENGTH = 16


def packed(texts):
  """Returns the rows of documents, and their counts."""
  tokenizer = tokenizers.Bytes()
  packer = packing.Packer(tokenizer, LENGTH)
  blocks = [
    b for t in texts for b in packer.add(np.array(tokenizer.encode(t), np.int32), len(t.encode()))
  ]
  blocks.append(packer.finish())
  return packing.PackedRows(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def write(directory, parts):
  """Writes shards: packed rows each, or None for a shard without rows."""
  files, listed = {}, []
  for number, part in enumerate(parts):
    folder = f"shard-{number:05}"
    (directory / folder).mkdir(parents=True)
    writer = rows.RowWriter(directory / folder, tokenizers.Bytes(), LENGTH)
    counts = manifest.Counts()
    if part is not None:
      writer.write(*part)
      targets = int((part.segment_ids > 0).sum())
      counts = manifest.Counts(documents=1, tokens=targets, text_bytes=int(part.row_bytes.sum()))
    found = writer.finish_shard()
    shard = manifest.Shard(folder, found[rows.TOKENS].shape[0], counts)
    files |= {shard.path(name): file for name, file in found.items()}
    listed.append(shard)
  rows.write_manifest(
    directory,
    tokenizers.Bytes(),
    source={"corpus": "test"},
    sequence_length=LENGTH,
    rows=sum(shard.rows for shard in listed),
    counts=manifest.total(shard.counts for shard in listed),
    files=files,
    listed=tuple(listed),
  )
  return directory


@pytest.fixture
def whole():
  return packed([f"document {n} " * (n + 1) for n in range(12)])


@pytest.fixture
def both(tmp_path, whole):
  """The same rows in one shard, and in shards of 5, 0, 1 and the remaining rows."""
  cut = [
    packing.PackedRows(*(array[start:stop] for array in whole))
    for start, stop in ((0, 5), (5, 6), (6, None))
  ]
  one = write(tmp_path / "one", [whole])
  several = write(tmp_path / "several", [cut[0], None, cut[1], cut[2]])
  return rows.RowFiles(one, verify=True), rows.RowFiles(several, verify=True)


def test_batches_and_bytes_do_not_depend_on_the_shards(both, whole):
  one, several = both
  assert len(one) == len(several) == len(whole.tokens) > 40
  for count in (0, 3, 5, 6, 7, len(one), None):
    assert one.text_bytes(count) == several.text_bytes(count)
  assert one.bytes_per_token == several.bytes_per_token
  for options in ({"seed": 3}, {"shuffle": False, "repeat": False}, {"slots": [2, 0]}):
    readers = [loader.batches(opened, 4, **options) for opened in both]
    for _ in range(12):
      first, second = (next(reader) for reader in readers)
      for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    for reader in readers:
      reader.close()


def test_consecutive_rows_are_read_across_shards(both, whole):
  array = both[1].tokens
  assert isinstance(array, shards.ShardedArray)
  np.testing.assert_array_equal(array[3:9], whole.tokens[3:9])
  np.testing.assert_array_equal(array[-2:], whole.tokens[-2:])
  np.testing.assert_array_equal(np.asarray(array), whole.tokens)
  np.testing.assert_array_equal(array[-1], whole.tokens[-1])
  assert array[7:7].shape == (0, LENGTH)
  with pytest.raises(IndexError, match="row 900 of"):
    array[900]


def test_more_files_than_may_be_open_at_once_are_read(tmp_path, whole, monkeypatch):
  monkeypatch.setattr(shards, "_OPEN_FILES", 2)
  parts = [packing.PackedRows(*(a[n : n + 1] for a in whole)) for n in range(len(whole.tokens))]
  opened = rows.RowFiles(write(tmp_path / "a", parts))
  order = np.random.default_rng(0).permutation(len(opened))
  np.testing.assert_array_equal([opened.tokens[n] for n in order], whole.tokens[order])
  assert opened.tokens._opened.cache_info().currsize == 2


def test_a_start_reads_blocks_of_few_of_many_files_and_all_when_asked(both, monkeypatch):
  several = both[1]
  verification.verify(several)  # Reads all, once.
  monkeypatch.setattr(verification, "_SAMPLED_FILES", 3)
  sampled = []
  sample = verification._sample
  monkeypatch.setattr(verification, "_sample", lambda path: sampled.append(path) or sample(path))
  verification.verify(several)
  assert len(sampled) == 3
  read = []
  monkeypatch.setattr(manifest.ArrayFile, "verify", lambda self, path: read.append(path))
  verification.verify(several, completely=True)
  assert len(read) == len(several.manifest.files) == 12


def test_rows_too_many_to_read_at_a_start_are_sampled_and_a_line_says_so(both, monkeypatch, capsys):
  monkeypatch.setattr(verification, "_MOST_BYTES_READ", 10)
  monkeypatch.setattr(manifest.ArrayFile, "verify", None)
  verification.verify(both[1])
  assert "only a sample of 0 GB of rows was checked" in capsys.readouterr().err


def test_a_truncated_file_of_a_shard_is_named(both):
  path = both[1].directory / "shard-00002" / rows.TOKENS
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(manifest.RowFileError, match=r"shard-00002/tokens\.bin is truncated"):
    rows.RowFiles(both[1].directory)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda v: v["shards"].clear(), "shards is .*not a list of objects"),
    (lambda v: v["shards"].pop(), "its shards have 6 rows"),
    (lambda v: v["shards"][0].update(folder="../shard-00000"), "not in a folder shard-00000"),
    (lambda v: v["shards"][0].update(rows=-1), "rows of shard-00000 is -1"),
    (lambda v: v["shards"][0].pop("counts"), "it lacks 'counts'"),
    (lambda v: v["files"].pop("shard-00002/tokens.bin"), "entry for shard-00002/tokens.bin is"),
    (
      lambda v: v["files"].update({"shard-00009/x.bin": v["files"]["shard-00000/tokens.bin"]}),
      "lists .*shard-00009/x.bin",
    ),
    (
      lambda v: v["files"]["shard-00002/tokens.bin"].update(dtype="uint8"),
      "several dtypes, uint16, uint8",
    ),
  ],
)
def test_odd_shards_in_a_manifest_are_one_line(both, change, told):
  path = both[1].directory / "manifest.json"
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))
  with pytest.raises(manifest.RowFileError, match=told) as caught:
    rows.RowFiles(both[1].directory)
  assert "Remove the directory" in str(caught.value)
  assert "\n" not in str(caught.value)
