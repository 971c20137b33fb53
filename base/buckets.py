"""Paths in buckets: `gs://bucket/folder` and `s3://bucket/folder`.

Nothing here imports a library before the first such path: local paths cost nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from base.errors import UserError

# For each scheme: the extra of pyproject.toml, which is also the name in `make`, and its library.
SCHEMES = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}
_PREFIXES = tuple(f"{scheme}://" for scheme in SCHEMES)
# Modules whose errors are answers of a service.
_SERVICES = {"botocore", "aiobotocore", "google", "gcsfs", "aiohttp", "requests"}
_SERVICES |= {"huggingface_hub", "httpx", "httpcore"}
_NO_ACCESS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_NO_ACCESS |= {"RefreshError", "GatedRepoError"}
_NO_ACCESS_WORDS = ("Forbidden", "Unauthorized", "Anonymous caller")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# Both services' rules, and names of test servers.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# Services take names of 1,024 bytes, and a checkpoint's files have long ones.
_LONGEST_KEY = 700


def in_bucket(path: str | os.PathLike) -> bool:
  """Whether a path lies in a bucket."""
  return os.fspath(path).startswith(_PREFIXES)


def is_address(text: str) -> bool:
  """Whether a text is an address of any scheme rather than a path of a file system."""
  return _ADDRESS.match(text) is not None


def path(text: str) -> Path:
  """Makes a path in a bucket; asks no server.

  It has the methods of `pathlib.Path` that make sense there; see `base.bucket_paths`.

  Raises:
    UserError: the scheme is unknown or its library is not installed, or no bucket is named.
  """
  found = _ADDRESS.match(text)
  scheme, rest = (found[1], found[2]) if found else ("", "")
  if scheme not in SCHEMES:
    raise UserError(
      f"{text!r}: {scheme}:// is not a scheme that this project writes to. Give a path of a file "
      f"system, or an address with {' or '.join(_PREFIXES)}."
    )
  extra, library = SCHEMES[scheme]
  if importlib.util.find_spec(library) is None:
    raise UserError(
      f"{text}: paths with {scheme}:// need the extra {extra!r}: make install EXTRAS={extra} (or "
      f"pip install {library})."
    )
  bucket, _, key = rest.partition("/")
  if not _BUCKET.fullmatch(bucket):
    raise UserError(f"{text!r} names no bucket. Give {scheme}://BUCKET/FOLDER.")
  if "//" in key or any(part in (".", "..") for part in key.split("/")):
    raise UserError(f"{text!r} has an empty part, '.' or '..', which a bucket does not resolve.")
  if not key.isprintable() or len(key.encode(errors="replace")) > _LONGEST_KEY:
    shown = text if len(text) < 80 else f"{text[:77]}..."
    raise UserError(
      f"{shown!r}: a folder in a bucket needs a printable name of at most {_LONGEST_KEY} bytes."
      " Give another one."
    )
  _prepare()
  from base.bucket_paths import BucketPath

  return cast(Path, BucketPath(text.rstrip("/")))


def beside(folder: Path) -> Path:
  """Returns a folder for files that a library appends to: itself, or else the working directory."""
  return Path.cwd() if in_bucket(folder) else folder


def require(place: Path) -> None:
  """Checks that the bucket of a path can be read; one request.

  Raises:
    UserError: there is no such bucket, no permission or no answer.
  """
  from base.bucket_paths import BucketPath

  cast(BucketPath, place).require_bucket()


def _prepare() -> None:
  """Sets the options of the libraries, before they are imported."""
  # etils would use TensorFlow for buckets, because seqio brings it along.
  os.environ.setdefault("EPATH_USE_TF", "false")
  # gcsfs would ask for each bucket's type through another API, with other credentials.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  emulator = os.environ.get("STORAGE_EMULATOR_HOST")
  if emulator:
    # The variable that Google's libraries read, in TensorStore's words.
    os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
    os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
  import logging

  from fsspec.config import conf

  # It prints the traceback of each error, which is told in one line here.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

  for name in ("s3", "gcs", "gs"):
    # TensorStore and other hosts write there too: what was listed before may be old.
    conf.setdefault(name, {}).setdefault("use_listings_cache", False)


@contextlib.contextmanager
def told(place: str | os.PathLike) -> Iterator[None]:
  """Turns errors of the services' libraries into OSErrors of the kinds that files have.

  Raises:
    FileNotFoundError, FileExistsError, PermissionError: as they are named.
    ConnectionError: the service did not answer, or not in time.
    OSError: another answer of the service.
  """
  try:
    yield
  except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
    raise
  except Exception as error:  # botocore, google.auth, aiohttp and gcsfs each have their own
    found = _kind(error, os.fspath(place))
    if found is None:
      raise
    raise found from error


def _kind(error: Exception, place: str) -> OSError | None:
  """Returns the OSError for a library's error; None if it is not of a service."""
  import errno

  name, text = type(error).__name__, " ".join(str(error).split())[:200]
  module = type(error).__module__.partition(".")[0]
  service = module in _SERVICES
  code = str(getattr(error, "code", ""))
  refused = name in _NO_ACCESS or any(words in text for words in _NO_ACCESS_WORDS)
  if isinstance(error, PermissionError) or refused or code in ("401", "403"):
    return PermissionError(errno.EACCES, f"no permission ({text})", place)
  if isinstance(error, TimeoutError | ConnectionError) or "Connect" in name or "Timeout" in name:
    return ConnectionError(errno.ETIMEDOUT, f"no answer ({text or name})", place)
  if isinstance(error, OSError) and error.errno is not None and not service:
    return None
  if service or isinstance(error, OSError):
    return OSError(errno.EIO, text or name, place)
  return None


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
  """Walks a folder of a file system or in a bucket from the top, as `os.walk`; links are passed.

  A caller that removes names from the list of folders keeps them from being listed.
  """
  found: Any = cast(Any, folder).walk() if in_bucket(folder) else os.walk(folder)
  for place, folders, files in found:
    yield place if in_bucket(folder) else Path(place), folders, files


def files_below(folder: Path) -> list[Path]:
  """Lists the objects below a folder in a bucket, at any depth, in the order of their names."""
  return sorted(cast(Any, folder).rglob("*"))
