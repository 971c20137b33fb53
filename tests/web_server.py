"""A web server on this machine, for tests: files of a folder, with ranges or without."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Plain(http.server.SimpleHTTPRequestHandler):
  """Sends whole files, whatever range is asked for."""

  requests: list[tuple[str, str]]

  def log_message(self, *arguments: Any) -> None:
    """Prints nothing."""

  def is_refused(self) -> bool:
    """Whether it lies in a folder `secret`, or is asked for unsigned in a folder `signed`."""
    unsigned = "/signed/" in self.path and "?signature=" not in self.path
    return unsigned or "/secret/" in self.path

  def send_head(self) -> Any:
    """Refuses some files, whether they exist or not, as object stores do."""
    self.requests.append((self.path, self.headers.get("Range", "")))
    if self.is_refused():
      self.send_error(403)
      return None
    return super().send_head()


class _WithRanges(_Plain):
  """Sends ranges, and tags by content."""

  def do_GET(self) -> None:
    """Answers with status 206 where a range is asked for."""
    path, found = Path(self.translate_path(self.path)), self.headers.get("Range")
    if not found or not path.is_file() or self.is_refused():
      super().do_GET()
      return
    self.requests.append((self.path, found))
    first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", found).groups())
    content = path.read_bytes()
    part = content[first : last + 1]
    self.send_response(206)
    self.send_header("Content-Length", str(len(part)))
    self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
    self.end_headers()
    self.wfile.write(part)


class _WithoutSizes(_Plain):
  """Tells no sizes: a file ends where the connection does."""

  def send_header(self, keyword: str, value: str) -> None:
    """Sends others than the size."""
    if keyword != "Content-Length":
      super().send_header(keyword, value)


@contextlib.contextmanager
def serving(
  folder: Path, *, ranges: bool, sizes: bool = True
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
  """Yields the address of the folder, and a list to which paths and ranges are appended."""
  base = _WithRanges if ranges else _Plain if sizes else _WithoutSizes
  kind = type("Handler", (base,), {"requests": []})
  handler = functools.partial(kind, directory=str(folder))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}", kind.requests
    finally:
      server.shutdown()
