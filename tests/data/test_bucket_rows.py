"""Rows in a bucket are read whole where that is asked for."""

import pytest

from base import bucket_copies, paths
from data import corpora, preparation, prepare, rows, verification
from data.dataset import TextDataset
from data.tokenizers import Bytes
from tests import bucket_servers
from tests.data.test_rows import write


def test_a_complete_verification_finds_a_damaged_object(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  bucket_servers.use(monkeypatch)
  local = write(tmp_path / "rows", ["some text"] * 50)
  target = paths.absolute(f"s3://{bucket_servers.BUCKET}/rows")
  bucket_copies.upload(local, target, last=["manifest.json"])
  opened = rows.RowFiles(target)
  assert verification.verify(opened, completely=True) is opened
  contents = (target / "row_bytes.bin").read_bytes()
  (target / "row_bytes.bin").write_bytes(contents[:-1] + b"\7")
  verification.verify(opened)  # Only ids of a few rows.
  with pytest.raises(rows.RowFileError, match=r"row_bytes\.bin has sha256 .* changed after"):
    verification.verify(opened, completely=True)


def test_a_kill_before_or_after_the_upload_leaves_no_rows_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  bucket_servers.use(monkeypatch)
  (tmp_path / "a.txt").write_text("some text " * 50)
  cache = f"s3://{bucket_servers.BUCKET}/killed"
  dataset = TextDataset(corpora.TextFiles("a.txt"), Bytes(), 32, cache_dir=cache)
  upload = bucket_copies.upload
  with monkeypatch.context() as patch:
    patch.setattr(bucket_copies, "upload", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare.prepare(dataset, lambda event: None)
  made = preparation.local_rows(dataset)
  assert (made / "manifest.json").is_file()
  upload(made, dataset.cache_path, last=["manifest.json"])  # by another machine
  with preparation.upload_lock(made).open("a") as file:
    preparation.fcntl.flock(file, preparation.fcntl.LOCK_EX)
    preparation.prepare([dataset])
    assert made.is_dir()  # another process is at it
  preparation.prepare([dataset])
  assert not made.exists()
