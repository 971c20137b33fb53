"""Row files are read as written; if they changed, the error says what is wrong."""

import itertools
import json

import numpy as np
import pytest

from data import manifest, mixture, packing, rows, tokenizers

LENGTH = 16


def write(
  directory, texts=("hello world", "second document", "x" * 50), length=LENGTH, extra_ids=0
):
  """Packs texts into row files."""
  tokenizer = tokenizers.Bytes(extra_ids)
  directory.mkdir(exist_ok=True)
  packer = packing.Packer(tokenizer, length)
  writer = rows.RowWriter(directory, tokenizer, length)
  for text in texts:
    for block in packer.add(np.array(tokenizer.encode(text)), len(text.encode())):
      writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({"corpus": "test"}, packer.counts)
  return directory


def write_masked(directory, documents, length=LENGTH):
  """Packs (text, characters of it that are a prompt) into row files with a loss mask."""
  tokenizer = tokenizers.Bytes()
  directory.mkdir(exist_ok=True)
  packer = packing.Packer(tokenizer, length)
  writer = rows.RowWriter(directory, tokenizer, length, masked=True)
  for text, prompt in documents:
    tokens = np.array(tokenizer.encode(text))
    mask = np.arange(len(tokens)) >= prompt
    for block in packer.add(tokens, len(text), loss_mask=mask):
      writer.write(*block)
  writer.write(*packer.finish())
  writer.finish({"corpus": "test"}, packer.counts)
  return directory


def edit(directory, **values):
  path = directory / "manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_rows_come_back(tmp_path):
  opened = rows.RowFiles(write(tmp_path / "a"), verify=True)
  assert len(opened) == 5
  assert opened.sequence_length == LENGTH
  assert opened.tokens.dtype == opened.segment_ids.dtype == np.uint16
  text = opened.tokens[opened.segment_ids > 0]
  assert opened.tokenizer.decode(text) == "hello world"
  assert (text == 1).sum() == 3
  assert opened.text_bytes() == 11 + 15 + 50
  assert opened.text_bytes(1) == 11 + 4
  assert opened.bytes_per_token == 76 / 79
  assert opened.manifest.source == {"corpus": "test"}


def test_equal_text_gives_equal_files_and_other_text_gives_others(tmp_path):
  first, again = (rows.RowFiles(write(tmp_path / name)) for name in "ab")
  other = rows.RowFiles(write(tmp_path / "c", texts=["hello worle"]))
  assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", [rows.TOKENS, rows.SEGMENT_IDS, rows.ROW_BYTES])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path, name):
  path = write(tmp_path / "a") / name
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  expected = (
    rf"{name} is truncated: it has {len(content) - 1} bytes, .* expects {len(content)} .*Remove"
  )
  with pytest.raises(manifest.RowFileError, match=expected):
    rows.RowFiles(tmp_path / "a")
  path.write_bytes(content + b"\0")
  with pytest.raises(manifest.RowFileError, match=f"{name} is too long"):
    rows.RowFiles(tmp_path / "a")
  path.unlink()
  with pytest.raises(manifest.RowFileError, match=f"{name} is missing"):
    rows.RowFiles(tmp_path / "a")


def test_a_changed_byte_is_found_by_verification(tmp_path):
  path = write(tmp_path / "a") / rows.TOKENS
  content = bytearray(path.read_bytes())
  content[4] ^= 1
  path.write_bytes(content)
  rows.RowFiles(tmp_path / "a")
  with pytest.raises(manifest.RowFileError, match=r"tokens\.bin has sha256 .* expects .* changed"):
    rows.RowFiles(tmp_path / "a", verify=True)


def test_another_tokenizer_or_length_is_refused(tmp_path):
  opened = rows.RowFiles(write(tmp_path / "a"))
  assert opened.check(tokenizers.Bytes(), LENGTH) is opened
  with pytest.raises(manifest.RowFileError, match=r"packed with the tokenizer .*259.*not .*264"):
    opened.check(tokenizers.Bytes(extra_ids=5), LENGTH)
  with pytest.raises(manifest.RowFileError, match="has rows of 16 tokens, not 32"):
    opened.check(tokenizers.Bytes(), 32)


def test_an_unknown_version_is_refused(tmp_path):
  edit(write(tmp_path / "a"), version=7)
  with pytest.raises(manifest.RowFileError, match=r"format version 7; this version reads 1 and 2"):
    rows.RowFiles(tmp_path / "a")


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "is not valid JSON"),
    ("[]", "is not a manifest of packed rows"),
    ('{"format": "packed rows", "version": 1}', "is incomplete or damaged"),
  ],
)
def test_a_damaged_manifest_is_named(tmp_path, content, message):
  (write(tmp_path / "a") / "manifest.json").write_text(content)
  with pytest.raises(manifest.RowFileError, match=rf"manifest\.json {message}"):
    rows.RowFiles(tmp_path / "a")


@pytest.mark.parametrize(
  "values",
  [
    {"rows": -1},
    {"rows": 0},
    {"rows": 5.0},
    {"rows": True},
    {"rows": "5"},
    {"rows": None},
    {"rows": float("nan")},
    {"rows": float("inf")},
    {"rows": 10**400},
    {"sequence_length": 0},
    {"sequence_length": [16]},
    {"counts": []},
    {"counts": {"tokens": -5}},
    {"counts": {"tokens": float("nan")}},
    {"counts": {"tokens": 5, "unscored_tokens": 5}},
    {"counts": {"nonsense": 5}},
    {"counts": {}},
    {"source": "text"},
    {"vocabulary": None},
    {"files": []},
    {"files": {"tokens.bin": {}}},
    {"files": {"tokens.bin": None}},
    {"files": {"../tokens.bin": {"dtype": "uint16", "shape": [5, 16], "sha256": "0"}}},
    {"files": {"tokens.bin": {"dtype": "object", "shape": [5, 16], "sha256": "0"}}},
    {"files": {"tokens.bin": {"dtype": ["uint16"], "shape": [5, 16], "sha256": "0"}}},
    {"files": {"tokens.bin": {"dtype": "uint16", "shape": 5, "sha256": "0"}}},
    {"files": {"tokens.bin": {"dtype": "uint16", "shape": [-5, 16], "sha256": "0"}}},
    {"files": {"tokens.bin": {"dtype": "uint16", "shape": [5, 16], "sha256": 0}}},
    {"files": {"tokens.bin": {"dtype": "uint16", "shape": [5, 16]}}},
    {"version": [1]},
    {"version": "x" * 5000},
    {"files": {"x" * 5000: {"dtype": "uint16", "shape": [5, 16], "sha256": "0"}}},
  ],
)
def test_odd_values_in_a_manifest_are_one_line(tmp_path, values):
  edit(write(tmp_path / "a"), **values)
  with pytest.raises(manifest.RowFileError) as caught:
    rows.RowFiles(tmp_path / "a")
  assert str(tmp_path / "a") in str(caught.value)
  assert "Remove the directory" in str(caught.value)
  assert len(str(caught.value)) < 500
  assert "\n" not in str(caught.value)


def test_a_manifest_that_contradicts_itself_is_refused(tmp_path):
  edit(write(tmp_path / "a"), rows=4)
  with pytest.raises(
    manifest.RowFileError, match=r"entry for tokens\.bin .* expected shape \(4, 16\)"
  ):
    rows.RowFiles(tmp_path / "a")


def test_a_loss_mask_comes_back_and_bytes_are_counted_in_the_loss_alone(tmp_path):
  documents = [("question: answer", 10), ("what? so", 6)]
  opened = rows.RowFiles(write_masked(tmp_path / "a", documents), verify=True)
  text = opened.tokens[opened.loss_mask > 0]
  ends = np.flatnonzero(text == 1)
  parts = [text[a:b] for a, b in itertools.pairwise([0, *(ends + 1)])]
  assert [opened.tokenizer.decode(part) for part in parts] == ["answer", "so"]
  assert opened.text_bytes() == 8
  assert opened.counts.text_bytes == 24
  assert opened.counts.unscored_tokens == opened.counts.unscored_bytes == 16
  assert opened.bytes_per_token == 8 / 10


def test_row_files_without_a_mask_read_as_before(tmp_path):
  opened = rows.RowFiles(write(tmp_path / "a"))
  assert opened.loss_mask is None
  assert rows.LOSS_MASK not in opened.manifest.files
  path = tmp_path / "a" / "manifest.json"
  values = json.loads(path.read_text())
  del values["counts"]["unscored_tokens"], values["counts"]["unscored_bytes"]
  path.write_text(json.dumps(values))
  assert rows.RowFiles(tmp_path / "a").bytes_per_token == opened.bytes_per_token


def test_a_mask_is_not_dropped_by_files_that_keep_none(tmp_path):
  packer = packing.Packer(tokenizers.Bytes(), LENGTH)
  assert not list(packer.add(np.array([5, 6]), 2, loss_mask=np.array([False, True])))
  writer = rows.RowWriter(tmp_path, tokenizers.Bytes(), LENGTH)
  with pytest.raises(ValueError, match=r"documents have loss masks.*masked=True"):
    writer.write(*packer.finish())


def test_a_directory_without_rows_is_named(tmp_path):
  with pytest.raises(manifest.RowFileError, match="has no row files"):
    rows.RowFiles(tmp_path)


def test_types_are_as_small_as_the_ids_allow(tmp_path):
  assert [rows.token_dtype(n) for n in (259, 2**16, 2**16 + 1)] == ["uint16", "uint16", "int32"]
  assert [rows.segment_dtype(n) for n in (512, 2**16 - 1, 2**16)] == ["uint16", "uint16", "int32"]
  large = rows.RowFiles(write(tmp_path / "a", extra_ids=2**16))
  assert large.tokens.dtype == np.int32
  assert large.tokens[0, 0] == ord("h") + 3


def test_mixtures_need_one_tokenizer_and_one_length(tmp_path):
  first = rows.RowFiles(write(tmp_path / "a"))
  longer = rows.RowFiles(write(tmp_path / "b", length=32))
  larger = rows.RowFiles(write(tmp_path / "c", extra_ids=1))
  with pytest.raises(manifest.RowFileError, match=r"cannot be mixed: their rows hold 32 and 16"):
    mixture.MixedRows([first, longer], [1, 1])
  with pytest.raises(manifest.RowFileError, match=r"cannot be mixed: their tokenizers are"):
    mixture.MixedRows([first, larger], [1, 1])
  for weights in ([1], [1, 0], [1, -1]):
    with pytest.raises(ValueError, match="must be one positive number for each of 2 components"):
      mixture.MixedRows([first, first], weights)


def test_a_mixture_counts_bytes_by_weight_and_in_sequence(tmp_path):
  first = rows.RowFiles(write(tmp_path / "a"))
  second = rows.RowFiles(write(tmp_path / "b", texts=["é" * 30]))
  mixed = mixture.MixedRows([first, second], [1, 3])
  assert mixed.weights == (0.25, 0.75)
  assert len(mixed) == len(first) + len(second)
  assert mixed.text_bytes() == 76 + 60
  assert mixed.text_bytes(len(first) + 1) == 76 + 16
  assert mixed.bytes_per_token == pytest.approx(0.25 * 76 / 79 + 0.75 * 60 / 61)
