"""Addresses in buckets: what they may be, and what goes wrong with them, in one line each."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from base import bucket_copies, buckets, paths, small_files
from base.errors import UserError
from tests import bucket_servers

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["gs", "s3"])
def folder(request, monkeypatch):
  bucket_servers.use(monkeypatch)
  found = paths.absolute(f"{request.param}://{bucket_servers.BUCKET}/some/folder")
  yield found
  found.rmtree(missing_ok=True)


@pytest.mark.parametrize(
  ("address", "says"),
  [
    ("az://bucket/x", "az:// is not a scheme that this project writes to"),
    ("file:///tmp/x", "file:// is not a scheme"),
    ("s3:///x", "names no bucket"),
    ("gs://UPPER/x", "names no bucket"),
    ("gs://bucket/a/../b", "which a bucket does not resolve"),
    ("gs://bucket/a//b", "has an empty part"),
    ("s3://bucket/a\nb", "needs a printable name"),
    ("gs://bucket/" + "a" * 900, "of at most 700 bytes"),
  ],
)
def test_wrong_address_is_one_line(address, says):
  with pytest.raises(argparse.ArgumentTypeError, match=says):
    paths.argument(address)
  with pytest.raises(UserError, match=says):
    paths.absolute(address)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_scheme_that_is_not_installed_names_the_extra(scheme, extra, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(argparse.ArgumentTypeError, match=f"make install EXTRAS={extra} "):
    paths.argument(f"{scheme}://bucket/x")


def test_no_such_bucket_is_one_line(folder):
  address = f"{str(folder)[:2]}://no-such-bucket"
  with pytest.raises(UserError, match=f"there is no bucket {address}. Create it") as caught:
    paths.argument(f"{address}/runs")
  assert not caught.value.may_pass


def test_no_permission_is_one_line(monkeypatch):
  bucket_servers.use(monkeypatch)
  place = paths.absolute(f"s3://{bucket_servers.BUCKET}/x")

  def refuse(*args, **options):
    raise PermissionError("Access Denied")

  monkeypatch.setattr(place._fs, "call_s3", refuse)
  with pytest.raises(UserError, match=r"no permission \(Access Denied\). Log in with an account"):
    buckets.require(place)


@pytest.mark.parametrize(
  ("scheme", "address", "says"),
  [
    ("s3", "http://127.0.0.1:9", "s3://bucket cannot be reached: no answer"),
    ("s3", "nonsense", "s3://bucket cannot be used: Invalid endpoint: nonsense. Correct the"),
    ("gs", "http://127.0.0.1:9", "gs://bucket cannot be reached: no answer"),
  ],
)
def test_service_that_does_not_answer_is_one_line(scheme, address, says):
  script = (
    "from base import bucket_paths, paths\n"
    "import asyncio, base.errors\n"
    "bucket_paths._PATIENCE = 0\n"
    "async def soon(seconds): pass\n"
    "asyncio.sleep = soon\n"  # between tries, for half a minute
    f"try: paths.argument('{scheme}://bucket/x')\n"
    "except base.errors.UserError as error: print(error)"
  )
  env = os.environ | {
    "AWS_ENDPOINT_URL": address,
    "STORAGE_EMULATOR_HOST": address,
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "us-east-1",
  }
  found = subprocess.run(
    [sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert found.stdout.startswith(says)
  assert found.stderr.splitlines() in ([f"waiting for an answer from {scheme}://bucket"], [])


def test_files_are_whole_and_folders_come_and_go(folder):
  file = folder / "sub" / "file.json"
  assert small_files.read(file) is None
  assert not folder.exists()
  small_files.replace(file, "first")
  small_files.replace(file, b"second")
  assert small_files.read(file) == b"second"
  assert folder.is_dir()
  assert not folder.is_file()
  with pytest.raises(small_files.NotReadable, match="a folder"):
    small_files.read(folder)
  with pytest.raises(small_files.NotReadable, match="larger than 3 bytes"):
    small_files.read(file, most=3)
  assert file.create(b"third") is False
  assert file.read_bytes() == b"second"
  moved = (folder / "sub").rename(folder / "moved")
  assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["moved/file.json"]
  with pytest.raises(FileExistsError):
    (moved / "file.json").copy(moved / "file.json")
  assert paths.free(moved) == folder / "moved_2"
  assert paths.shown(moved) == str(moved)
  moved.rmtree()
  assert not folder.exists()


def test_folders_are_copied_whole_with_what_makes_them_valid_last(folder, tmp_path, monkeypatch):
  for name in ("a.bin", "manifest.json", "deep/b.bin", "deep/left.out", "deep/empty"):
    file = tmp_path / "here" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("" if name.endswith("empty") else name)
  order = []
  put = type(folder._fs).put
  monkeypatch.setattr(
    folder._fs, "put", lambda files, keys: (order.append(keys), put(folder._fs, files, keys))
  )
  bucket_copies.upload(tmp_path / "here", folder, last=["manifest.json"], without=["left.out"])
  assert order[-1] == [str(folder / "manifest.json")]
  with bucket_copies.local_copy(folder) as copied:
    found = {str(file.relative_to(copied)): file.read_text() for file in copied.rglob("*.*")}
    assert found == {name: name for name in ("a.bin", "manifest.json", "deep/b.bin")}
    assert (copied / "deep/empty").read_bytes() == b""
  assert not copied.exists()


def test_an_error_about_a_copy_names_the_address(folder):
  (folder / "config.json").write_text("{}")
  with pytest.raises(UserError) as caught, bucket_copies.local_copy(folder) as copied:
    raise UserError(f"no tokenizer in {copied}, nor beside {copied}/config.json")
  assert str(caught.value) == f"no tokenizer in {folder}, nor beside {folder}/config.json"


def test_local_paths_import_no_library():
  script = (
    "import sys; from base import paths, small_files; paths.argument('runs/x');"
    "print([m for m in ('etils', 'fsspec', 's3fs', 'gcsfs') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert found.stdout == "[]\n"


@pytest.mark.parametrize("key", ["../../out.txt", "a/../../out.txt", "/tmp/out.txt"])
def test_object_that_would_lie_outside_of_a_copy_is_refused(folder, tmp_path, key):
  (folder / "in.txt").write_bytes(b"in")
  foreign = f"{str(folder).partition('://')[2]}/{key}"
  folder._fs.pipe_file(foreign, b"out")
  try:
    with pytest.raises(UserError, match=r"out\.txt' has an empty part, '\.' or '\.\.'"):
      bucket_copies.download(folder, tmp_path / "one" / "two" / "copy")
    assert not list(tmp_path.iterdir())
    # Removing the folder takes it along.
    folder.rmtree()
    assert not folder._fs.exists(foreign)
  finally:
    with contextlib.suppress(FileNotFoundError):
      folder._fs.rm_file(foreign)
