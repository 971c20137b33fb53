"""Rows in a bucket are read whole where that is asked for."""

import pytest

from base import bucket_copies, paths
from data import rows, verification
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
