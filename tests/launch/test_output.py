"""Commands with a closed or full output: one line or a quiet end, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A command that prints as it goes, and one whose output waits until Python ends.
FLUSHED = "import sys; [print('é' * 99, flush=True) for _ in range(2000)]; sys.stdout.flush()"
WAITING = "print('é')"
UNBUFFERED = ("", "1")


def run(body, redirect, **environment):
  """Runs a command of this body by bash: its exit status, and what it wrote to stderr."""
  code = (
    f"from launch import command\ndef main(arguments):\n  {body}\n  return 0\ncommand.run(main)"
  )
  done = subprocess.run(
    ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirect}', sys.executable, code],
    cwd=ROOT,
    env={**os.environ, "PYTHONIOENCODING": "", **environment},
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  return done.returncode, done.stderr, done.stdout


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
@pytest.mark.parametrize("body", [FLUSHED, WAITING])
def test_a_full_disk_is_one_line(body, unbuffered):
  status, told, _ = run(body, "> /dev/full", PYTHONUNBUFFERED=unbuffered)
  assert (status, told) == (2, "error: the output cannot be written: No space left on device.\n")


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
def test_a_reader_that_goes_ends_the_command_quietly(unbuffered):
  status, told, shown = run(FLUSHED, "| head -1", PYTHONUNBUFFERED=unbuffered)
  assert (status, told, len(shown)) == (141, "", 100)


def test_a_closed_output_is_no_error():
  assert run(WAITING, ">&-")[:2] == (0, "")


def test_what_the_terminal_cannot_show_is_a_question_mark():
  assert run(WAITING, "", PYTHONIOENCODING="ascii") == (0, "", "?\n")


def test_another_error_of_the_system_is_not_taken_for_one_of_the_output():
  status, told, _ = run("raise OSError(28, 'No space left on device')", "")
  assert status == 2
  assert told.startswith("error: No space left on device.")
  assert "output" not in told


def test_help_to_a_full_disk_leaves_no_traceback():
  done = subprocess.run(
    [sys.executable, "-m", "launch.generate", "--help"],
    cwd=ROOT,
    stdout=open("/dev/full", "w"),  # noqa: SIM115
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  assert "Traceback" not in done.stderr
  assert "Exception ignored" not in done.stderr
