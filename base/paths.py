"""Paths from the user: made absolute when they are read, and shown as short as possible.

A path may also be an address in a bucket, such as `gs://bucket/runs/first`; see `base.buckets`.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path, PurePath
from typing import cast

from base import buckets, remote_files
from base.errors import UserError


def absolute(text: str | os.PathLike) -> Path:
  """Makes a path absolute, relative to the working directory; `~` is the user's home.

  Raises:
    ValueError: the path is empty or has a NUL character.
    UserError: it is an address of a scheme that is unknown or not installed.
  """
  given = os.fspath(text)
  if buckets.is_address(given):
    return buckets.path(given)
  if not given or "\0" in given:
    raise ValueError(f"{given!r} is not a path")
  return Path(os.path.abspath(os.path.expanduser(given)))


def of(text: str | os.PathLike) -> Path:
  """Makes a path of a text that may be an address in a bucket; leaves paths as they are.

  Raises:
    UserError: it is an address of a scheme that is unknown or not installed.
  """
  if isinstance(text, PurePath):
    return cast(Path, text)
  given = os.fspath(text)
  return buckets.path(given) if buckets.is_address(given) else Path(given)


def readable(text: str | os.PathLike) -> Path:
  """Makes a path of a text that may be any address that can be read; see `base.remote_files`.

  Raises:
    UserError: its scheme is unknown or not installed.
  """
  given = os.fspath(text)
  if given.startswith(("http://", "https://", "hf://")):
    return remote_files.of(given)
  return of(text)


def argument(text: str) -> Path:
  """Type of command-line arguments that are paths, of a file system or in a bucket.

  Raises:
    UserError: the bucket cannot be read; see `base.buckets.require`.
  """
  try:
    path = absolute(text)
  except (ValueError, UserError) as error:
    raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
  if buckets.in_bucket(path):
    buckets.require(path)
  return path


def local_argument(text: str) -> Path:
  """Type of command-line arguments that are paths of a file system only."""
  if buckets.is_address(text):
    raise argparse.ArgumentTypeError(f"{text!r} is an address; give a path of a file system")
  return argument(text)


def output_argument(text: str) -> Path:
  """Type of command-line arguments that are files to write; refuses unwritable ones."""
  path = argument(text)
  if buckets.in_bucket(path):
    return path
  try:
    is_folder = path.is_dir()
  except OSError as error:  # a name that is too long
    raise argparse.ArgumentTypeError(f"{shown(path)}: {error.strerror}") from None
  if is_folder:
    raise argparse.ArgumentTypeError(f"{shown(path)} is a folder; name a file in it")
  above = next(parent for parent in path.parents if parent.exists())
  if not above.is_dir():
    raise argparse.ArgumentTypeError(f"{shown(above)} is a file; name a folder for {path.name}")
  if not os.access(above, os.W_OK):
    raise argparse.ArgumentTypeError(f"{shown(above)} cannot be written to; name another folder")
  return path


def page_argument(text: str) -> Path:
  """Type of command-line arguments that are pages to write: replaces pages alone.

  A page is put in its file's place whole, so that a device would be lost; and `--page=runs.csv` is
  a slip.
  """
  path = output_argument(text)
  if buckets.in_bucket(path) or not os.path.lexists(path):
    return path
  if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
    raise argparse.ArgumentTypeError(f"{shown(path)} is no regular file; name another")
  if path.exists():
    with path.open("rb") as file:
      start = file.read(64).lstrip().lower()
    if start and not start.startswith((b"<!doctype html", b"<html")):
      raise argparse.ArgumentTypeError(f"{shown(path)} exists and is no page; name another file")
  return path


def json_argument(text: str) -> Path:
  """Type of command-line arguments that are JSON files to write: replaces JSON alone.

  A gin file or a text may be named by a slip. A device, such as /dev/stdout, is written to.
  """
  path = output_argument(text)
  if not buckets.in_bucket(path) and path.is_file():
    with path.open("rb") as file:
      start = file.read(64).lstrip()
    if start and not start.startswith((b"{", b"[")):
      raise argparse.ArgumentTypeError(f"{shown(path)} exists and is no JSON; name another file")
  return path


def text_argument(text: str) -> str:
  """Type of command-line arguments that are text to read: 'python', a path, address or pattern."""
  if buckets.is_address(text):
    try:
      remote_files.require(text)
    except UserError as error:
      raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
    return text
  return text if text == "python" else str(argument(text))


def free(path: Path) -> Path:
  """Returns the path, or the first of `path_2`, `path_3` ... that does not exist."""
  candidates = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
  return next(p for p in itertools.chain([path], candidates) if not p.exists())


def shown(path: str | os.PathLike) -> str:
  """Formats a path as a user would type it: relative if it is in the working directory."""
  if buckets.is_address(os.fspath(path)):
    return os.fspath(path)
  try:
    relative = os.path.relpath(path)
  except (OSError, ValueError):  # The working directory was deleted.
    return os.fspath(path)
  return os.fspath(path) if relative.startswith("..") else relative
