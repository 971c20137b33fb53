"""A user's shell in a clean copy of the checkout."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from launch import quick_compilation
from tests import preparations
from tests.documentation import pages
from tests.documentation.pages import ROOT, Step

SECONDS = 900
# Commands with these beginnings change the shell: they are repeated before each later command.
REMEMBERED = ("source ", "export ", "unset ")
# Pages set XLA_FLAGS and take it back: without these a training compiles for half a minute.
QUICK = f'export XLA_FLAGS="${{XLA_FLAGS:-}} {" ".join(quick_compilation.FLAGS)}"'
# The page's own path, and behind it that of the tests.
HOOKED = f'export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{preparations.HOOK}"'


class Done(NamedTuple):
  """The result of a command: its exit status, and what it printed."""

  status: int
  out: str
  err: str


class Case(NamedTuple):
  """How one step of a page is tested.

  Attributes:
    starts: how the step's text starts (of a file: its name).
    more: arguments that are appended, to make it small.
    prints: a regular expression found in what it prints, stdout or stderr.
    leaves: files and folders that it leaves; patterns from the copy's root.
    instead: what is done with the command in place of running it once.
    skipped: the reason why it is not run.
    repeats: an earlier page that has the same step, where it was run.
  """

  starts: str
  more: str = ""
  prints: str = ""
  leaves: tuple[str, ...] = ()
  instead: Callable[[Session, str], None] | None = None
  skipped: str = ""
  repeats: str = ""


class Session:
  """Types commands in a copy of the files that git would hand out."""

  def __init__(self, folder: Path):
    self.folder = folder
    self._remembered: list[str] = []
    self._started: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(
      ["git", "ls-files", "-co", "--exclude-standard", "-z"],
      cwd=ROOT,
      capture_output=True,
      check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
      source, target = ROOT / name, folder / name
      if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    self._install()

  def _install(self) -> None:
    """Makes an environment as `make install` does, with the packages of the current one."""
    venv = self.folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for packages in venv.glob("lib/python*/site-packages"):
      packages.rmdir()
      packages.symlink_to(Path(sys.prefix) / packages.relative_to(venv))
    for stamp in (".installed", ".installed-test"):
      (venv / stamp).touch()

  def environment(self, command: str) -> dict[str, str]:
    """Returns the variables of a shell for a command, with those that make JAX compile quickly.

    The first command of each name (`launch.train`) starts as users start it, all later ones are
    forks of a process that has imported the libraries.
    """
    kept = {
      k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "VIRTUAL"))
    }
    names = set(re.findall(r"launch\.\w+", command))
    forked = preparations.forked() if names <= self._started else {}
    self._started |= names
    return {**kept, **forked, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

  def start(self, command: str) -> subprocess.Popen:
    """Starts a command, in a process group of its own."""
    return subprocess.Popen(
      ["bash", "-c", "\n".join(["set -e", *self._remembered, QUICK, HOOKED, command])],
      cwd=self.folder,
      env=self.environment(command),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      text=True,
      encoding="utf-8",
    )

  def type(self, command: str, status: int | None = 0) -> Done:
    """Runs a command to its end, and checks its exit status.

    No command of a user may end in a traceback, whatever its status.
    """
    process = self.start(command)
    try:
      out, err = process.communicate(timeout=SECONDS)
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    shown = f"$ {command}\n{out[-3000:]}\n{err[-3000:]}\nexit status {process.returncode}"
    assert "Traceback" not in out + err, shown
    assert status is None or process.returncode == status, shown
    if command.startswith(REMEMBERED):
      self._remembered.append(command)
    return Done(process.returncode, out, err)

  def stop(self, command: str, how: signal.Signals, reached: str) -> Done:
    """Starts a command and sends its processes a signal as soon as a path exists."""
    process = self.start(command)
    deadline = time.monotonic() + SECONDS
    try:
      while not any(self.folder.glob(reached)):
        assert process.poll() is None, f"$ {command}\nended: {process.communicate()}"
        assert time.monotonic() < deadline, f"{reached} did not appear"
        time.sleep(0.02)
      os.killpg(process.pid, how)
      out, err = process.communicate(timeout=SECONDS)
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in out + err, err
    return Done(process.returncode, out, err)

  def mistake(self, command: str, says: str) -> None:
    """Runs a command that must fail with one line of error."""
    done = self.type(command, status=2)
    assert len([line for line in done.err.splitlines() if "error: " in line]) == 1, done.err
    assert re.search(says, done.err), done.err

  def play(self, step: Step | None, case: Case | None) -> None:
    """Does a step of a page, and checks what it prints and leaves.

    Raises:
      AssertionError: the step has no case, the case no step, or they are of different commands.
    """
    assert step is not None, f"the page no longer says {case.starts!r}: drop the case"
    name = step.name or step.text
    assert case is not None, f"the page also says {name!r}: add a case"
    assert name.startswith(case.starts), f"the page says {name!r}, the case {case.starts!r}"
    if case.repeats:
      assert step.text in pages.typed_on(case.repeats), f"{case.repeats} does not say {name!r}"
      pytest.skip(f"was run on {case.repeats}")
    if case.skipped:
      pytest.skip(case.skipped)
    if step.kind == "file":
      (self.folder / step.name).write_text(step.text, encoding="utf-8")
      return
    bare = step.text.removesuffix(")")  # of a subshell: the arguments belong inside
    command = f"{bare} {case.more}".strip() + step.text[len(bare) :]
    if step.kind == "python":
      (self.folder / "example.py").write_text(step.text, encoding="utf-8")
      command = "python example.py"
    if case.instead is not None:
      case.instead(self, command)
    else:
      done = self.type(command)
      assert re.search(case.prints, done.out + done.err), f"{command}\n{done.out}\n{done.err}"
    for pattern in case.leaves:
      assert any(self.folder.glob(pattern)), f"$ {command}\nleft no {pattern}"
