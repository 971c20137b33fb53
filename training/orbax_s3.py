"""Lets Orbax write to `s3://`.

Orbax 0.12 writes to `gs://` by TensorStore's driver. It names `s3://` among its remote prefixes,
and TensorStore has a driver for it, but Orbax makes no description of such a store. The functions
here make one. With it, S3 is treated as GCS is: arrays by TensorStore, and a file that marks the
end of a save in place of a rename. A test saves and restores with them: it fails if a version of
Orbax has other functions.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

_PREFIX = "s3://"


@functools.cache
def enable() -> None:
  """Replaces Orbax's functions that tell stores apart, for the whole process."""
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils

  is_gcs, gcs_store = gcs_utils.is_gcs_path, gcs_utils.get_kvstore_for_gcs
  uses_driver, normalized = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path

  def is_in_bucket(path: pathlib.PurePosixPath) -> bool:
    return path.as_posix().startswith(_PREFIX) or is_gcs(path)

  def store(path: str) -> dict[str, Any]:
    return _store(path) if path.startswith(_PREFIX) else gcs_store(path)

  def uses_driver_of_bucket(directory: str) -> bool:
    return directory.startswith(_PREFIX) or uses_driver(directory)

  def normalized_in_bucket(path: str) -> str:
    if path.startswith(_PREFIX):
      return _PREFIX + os.path.normpath(path.removeprefix(_PREFIX))
    return normalized(path)

  gcs_utils.is_gcs_path = is_in_bucket
  gcs_utils.get_kvstore_for_gcs = store
  tensorstore_utils._use_gcs_driver = uses_driver_of_bucket
  tensorstore_utils._normalize_path = normalized_in_bucket


def _store(path: str) -> dict[str, Any]:
  """Describes a place in S3 for TensorStore, with the settings of AWS's own environment."""
  bucket, _, key = path.removeprefix(_PREFIX).partition("/")
  found: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
  endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
  region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
  if endpoint:
    found["endpoint"] = endpoint.rstrip("/")
  if region or endpoint:
    # TensorStore would ask AWS for it, also of a bucket elsewhere.
    found["aws_region"] = region or "us-east-1"
  if "AWS_ACCESS_KEY_ID" in os.environ:
    # Else it logs that there is no ~/.aws/config.
    found["aws_credentials"] = {"type": "environment"}
  return found
