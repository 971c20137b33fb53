"""The services from which files are read by fsspec, and their errors in one line."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from base import buckets
from base.errors import UserError

# For each scheme: the extra of pyproject.toml, and the library that it needs.
SCHEMES = {
  "gs": ("gcs", "gcsfs"),
  "s3": ("s3", "s3fs"),
  "hf": ("hub", "huggingface_hub"),
  "https": ("http", "aiohttp"),
  "http": ("http", "aiohttp"),
}


class RemoteError(UserError, ValueError):
  """A file elsewhere that cannot be read now, or not by this account."""


def require(address: str) -> None:
  """Checks that an address can be read here.

  Raises:
    RemoteError: its scheme is unknown, or its library is not installed.
  """
  scheme = address.partition("://")[0]
  if scheme not in SCHEMES:
    known = ", ".join(f"{name}://" for name in SCHEMES)
    raise RemoteError(f"{address!r}: {scheme}:// cannot be read. Give a path, or one of {known}.")
  extra, library = SCHEMES[scheme]
  if importlib.util.find_spec(library) is None:
    raise RemoteError(
      f"{address}: {scheme}:// needs the extra {extra!r}: make install EXTRAS={extra} (or pip"
      f" install {library})."
    )


@contextlib.contextmanager
def told(address: str, *, refused_is_absent: bool = False) -> Iterator[None]:
  """Turns errors of the services' libraries into one line.

  Args:
    address: of a file.
    refused_is_absent: whether a refusal says as little as that there is nothing.

  Raises:
    FileNotFoundError: there is nothing.
    RemoteError: no permission or no answer.
  """
  try:
    with buckets.told(address):
      yield
  except FileNotFoundError:
    raise
  except PermissionError as error:
    if refused_is_absent:
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from None
    raise RemoteError(
      f"{address}: {error.strerror}. Log in with an account that may read it."
    ) from None
  except OSError as error:
    raise RemoteError(
      f"{address} cannot be read: {error.strerror or error}. Check the network and the address.",
      may_pass=True,
    ) from None


@functools.cache
def system(scheme: str) -> Any:
  """Returns fsspec's file system of a scheme, with its library's options set."""
  buckets._prepare()
  import fsspec

  options: dict[str, Any] = {"use_listings_cache": False}
  if scheme.startswith("http"):
    import aiohttp

    # The bytes of the file itself; and a copy of a large file may take long, but not stop.
    options["client_kwargs"] = {
      "auto_decompress": False,
      "headers": {"Accept-Encoding": "identity"},
      "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60),
    }
  return fsspec.filesystem(scheme, **options)


def info(scheme: str, address: str) -> dict[str, Any]:
  """Asks for what a service tells about a file: its size, a checksum, a time.

  Raises:
    FileNotFoundError: there is nothing.
    Exception: the library's own, for `told`.
  """
  try:
    return dict(system(scheme).info(address))
  except FileNotFoundError as error:
    # fsspec's file system of web addresses raises it for every fault.
    cause = error.__cause__
    if cause is not None and getattr(cause, "status", 404) not in (404, 410):
      raise cause from None
    if cause is not None and not hasattr(cause, "status"):
      raise cause from None
    raise
