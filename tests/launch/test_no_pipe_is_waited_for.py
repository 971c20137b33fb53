"""A pipe or a device in place of a file of a received folder is one line of error, at once."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from base import small_files
from base.errors import UserError
from comparison.results import ResultCache
from conversion import conversion, safetensors_files
from conversion.safetensors_header import check_header
from data import tokenizers
from data.tokenizers import TokenizerError
from experiment import end_tokens


@pytest.fixture
def pipe(tmp_path):
  def make(name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    return tmp_path / name

  return make


def test_a_pipe_a_device_a_folder_and_an_endless_file_are_not_read(tmp_path, pipe):
  with pytest.raises(small_files.NotReadable, match="but a pipe"):
    small_files.read(pipe("pipe"))
  with pytest.raises(small_files.NotReadable, match="a device"):
    small_files.read(small_files.Path("/dev/zero"))
  with pytest.raises(small_files.NotReadable, match="a folder"):
    small_files.read(tmp_path)
  (tmp_path / "large").write_bytes(b"12345")
  with pytest.raises(small_files.NotReadable, match="larger than 4 bytes"):
    small_files.read(tmp_path / "large", most=4)
  assert small_files.read(tmp_path / "large", most=5) == b"12345"
  assert small_files.read(tmp_path / "none") is None
  assert small_files.read(tmp_path / "large" / "none") is None


def test_ids_that_end_a_row(tmp_path, pipe):
  pipe("hugging_face/generation_config.json")
  with pytest.raises(UserError, match="not a regular file but a pipe"):
    end_tokens.stop_ids(tmp_path, SimpleNamespace(init_from=None))


def test_a_tokenizer(tmp_path, pipe):
  pipe("vocabulary.json")
  with pytest.raises(TokenizerError, match=r"vocabulary.json"):
    tokenizers.load(tmp_path)
  with pytest.raises(TokenizerError, match="but a pipe"):
    tokenizers.SentencePiece(str(pipe("x.model"))).size  # noqa: B018


def test_foreign_weights(tmp_path, pipe):
  with pytest.raises(UserError, match="but a pipe"):
    conversion._json(pipe("config.json"))
  with pytest.raises(safetensors_files.TensorFileError, match="but a pipe"):
    safetensors_files._weight_map(pipe("model.safetensors.index.json"))
  with pytest.raises(ValueError, match="but a pipe"):
    check_header(pipe("model.safetensors"))


@pytest.mark.parametrize("content", ["[]", "3", '{"value": 1}', "[" * 100_000, None])
def test_a_cell_that_is_none_is_measured_anew(tmp_path, pipe, content):
  results = ResultCache(tmp_path, "part", lambda key: key)
  assert results.cached("a", lambda: 3) == 3
  (file,) = (tmp_path / "part").iterdir()
  file.unlink()
  if content is None:
    pipe(f"part/{file.name}")
  else:
    file.write_text(content)
  assert ResultCache(tmp_path, "part", lambda key: key).cached("a", lambda: 4) == 4
