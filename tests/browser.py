"""Drives headless Chromium over its DevTools pipe: opens a page, reads it, records its messages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_ARGUMENTS = (
  "--headless=new",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-extensions",
  "--no-first-run",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)


class Browser:
  """A browser with one page; a context manager."""

  def __enter__(self) -> Browser:
    self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    to_browser, self._out = os.pipe()
    self._in, from_browser = os.pipe()

    # Chromium reads commands from file descriptor 3 and answers on 4: a shell lays the pipes there.
    command = [PROGRAM, *_ARGUMENTS, f"--user-data-dir={self._profile.name}", "about:blank"]
    self._process = subprocess.Popen(
      ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command],
      pass_fds=(to_browser, from_browser),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._buffer = b""
    self._number = 0
    self._session: str | None = None
    self.complaints: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")
    return self

  def __exit__(self, *error: object) -> None:
    self._process.terminate()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._in)
    os.close(self._out)
    self._profile.cleanup()

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Sends a command and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._receive()
      if answer.get("id") == self._number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]
      self._note(answer)

  def open(
    self, file: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
  ) -> None:
    """Loads a file at a window size and in a colour scheme."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    self.call("Emulation.setEmulatedMedia", features=features)
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    self.call("Page.navigate", url=file.absolute().as_uri())
    while (event := self._receive()).get("method") != "Page.loadEventFired":
      self._note(event)

  def evaluate(self, expression: str) -> Any:
    """The value of a JavaScript expression, as JSON gives it."""
    answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    if "exceptionDetails" in answer:
      raise RuntimeError(answer["exceptionDetails"])
    return answer["result"].get("value")

  def screenshot(self, file: Path, *, whole: bool = True) -> None:
    """Writes a PNG of the page."""
    answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
    file.write_bytes(base64.b64decode(answer["data"]))

  def _note(self, event: dict[str, Any]) -> None:
    """Records errors of the page, and every request except that for the page itself."""
    parameters = event.get("params", {})
    match event.get("method"):
      case "Runtime.exceptionThrown":
        self.complaints.append(str(parameters["exceptionDetails"]))
      case "Runtime.consoleAPICalled":
        self.complaints.append(str(parameters["args"]))
      case "Log.entryAdded":
        self.complaints.append(parameters["entry"]["text"])
      case "Network.requestWillBeSent" if parameters["type"] != "Document":
        if not parameters["request"]["url"].startswith("data:"):
          self.complaints.append(f"request for {parameters['request']['url']}")

  def _receive(self) -> dict[str, Any]:
    while b"\0" not in self._buffer:
      more = os.read(self._in, 1 << 16)
      if not more:
        raise RuntimeError("the browser has gone")
      self._buffer += more
    message, _, self._buffer = self._buffer.partition(b"\0")
    return json.loads(message)
