"""Shared code of the commands: argument parsing, and errors without a traceback."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import glob
import importlib.util
import os
import re
import shlex
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import NoReturn

from base import commands
from base.errors import UserError
from base.wording import near
from launch import failures, output
from planning.hardware import gpu

EPILOG = """\
--gin.NAME=VALUE overrides a macro (--gin.STEPS=200) or a parameter
(--gin.models.griffin.griffin.window=64) of the gin files; strings need no quotes.
Files and options may come in any order."""


COMPILATION_CACHE = "cache/jax"
# Exit statuses, repeated in `launch.train --help` and the files of launch/cluster/.
FAILED = 1
USER_ERROR = 2
# SIGTERM, after a save: sysexits' EX_TEMPFAIL, for schedulers to start the command again.
PREEMPTED = 75
# Ctrl-C, the status that shells use.
INTERRUPTED = 130
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# Python's own are (700, 10, 10). Tracing makes many objects that stay: collecting that often took
# 7% of a command's CPU time before its first step.
GARBAGE_THRESHOLDS = (10_000, 10, 10)


class Parser(argparse.ArgumentParser):
  """Argument parser with one-line errors.

  Attributes:
    takes_bindings: whether the command accepts `--gin.` arguments.
  """

  takes_bindings = True

  def error(self, message: str) -> NoReturn:
    """Prints the message and ends the command."""
    message = message if message.endswith((".", "?")) else f"{message}."
    line = f"error: {message} {self.prog} --help lists all options."
    self.exit(2, failures.clipped(line) + "\n")


def parser(name: str, description: str, *, takes_bindings: bool = True) -> Parser:
  """Makes the parser of the command `launch.<name>`."""
  result = Parser(
    prog=commands.line(name),
    description=description,
    epilog=EPILOG if takes_bindings else None,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  result.takes_bindings = takes_bindings
  return result


def parse(result: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Splits arguments into parsed options and `--gin.` bindings, in any order.

  `--gin.NAME VALUE` works like `--gin.NAME=VALUE`. An unknown option, or an option with one value
  that is given twice, ends the command.
  """
  bindings: list[str] = []
  rest: list[str] = []
  waiting = iter(arguments)
  for argument in waiting:
    if re.match(r"-?gin\.[\w./]+=", argument):
      meant = f"; did you mean --{argument.lstrip('-')}?" if result.takes_bindings else ""
      result.error(f"neither an option nor a file: {argument}{meant}")
    elif not argument.startswith("--gin.") or not result.takes_bindings:
      rest.append(argument)
    elif "=" in argument:
      bindings.append(argument)
    else:
      value = next(waiting, None)
      if value is None or re.match(r"--[A-Za-z]", value):  # -1 and -inf are values
        result.error(f"{argument} needs a value: {argument}=...")
      bindings.append(f"{argument}={value}")
  _check_options(result, rest)
  return result.parse_intermixed_args(rest), bindings


def tell_next(*words: object) -> None:
  """Prints the command to type next on stderr, quoted for a shell."""
  print(f"next: {shlex.join(map(str, words))}", file=sys.stderr)


def refuse(result: Parser, args: argparse.Namespace, names: Sequence[str], reason: str) -> None:
  """Ends the command if any of these options is given; `reason` says why it has no effect."""
  for name in names:
    if getattr(args, name) != result.get_default(name):
      result.error(f"--{name} has no effect {reason}")


def _check_options(result: Parser, arguments: Sequence[str]) -> None:
  """Ends the command at an unknown option, or one with one value that is given twice."""
  known = result._option_string_actions
  given: Counter[str] = Counter()
  before = None
  for argument in arguments:
    if argument == "--":
      break
    name, equals, value = argument.partition("=")
    if name in known:
      if isinstance(known[name], argparse._StoreAction):
        given[name] += 1
      before = None if equals else known[name]
    elif re.fullmatch(r"--?[A-Za-z][\w.-]*", name):
      if before is not None and before.nargs != 0:
        option = before.option_strings[0]
        result.error(
          f"{option} needs a value; write a value that starts with - as {option}={argument}"
        )
      result.error(f"unknown option: {name}{_near_option(result, name, value)}")
    else:
      if (before is None or before.nargs == 0) and not result._get_positional_actions():
        result.error(_misplaced(result, argument))
      before = None
  for name, count in given.items():
    if count > 1:
      result.error(f"{name} is given {count} times; it takes one value")


def _misplaced(result: Parser, argument: str) -> str:
  """Describes a bare argument of a command that takes options only."""
  known = result._option_string_actions
  if "--run_dir" in known and argument.endswith(".gin"):
    text = f", or name other text with --data={argument}" if "--data" in known else ""
    return f"{argument} is not needed: the run has its own configuration. Leave it out{text}."
  if "--run_dir" in known and os.path.isdir(argument):
    return f"{argument} stands without an option; did you mean --run_dir={argument}?"
  return f"neither an option nor the value of one: {argument}. Put a value with spaces in quotes."


def _near_option(result: Parser, name: str, value: str) -> str:
  """Suggests an option for an unknown one, as the end of an error message."""
  from config import source  # imports gin, which only errors need here

  bare = name.lstrip("-")
  options = [o.lstrip("-") for o in result._option_string_actions if o.startswith("--")]
  macros = sorted(source.macros_mentioned()) if result.takes_bindings else []
  shown = f"={value}" if value else "=VALUE"
  # A slip of one letter, such as --models for --model, before the macro of that name.
  if slips := difflib.get_close_matches(bare, options, n=1, cutoff=0.9):
    return f"; did you mean --{slips[0]}?"
  if bare.upper() in macros and bare not in options:
    return f"; did you mean --gin.{bare.upper()}{shown}?"
  if result.takes_bindings and (bare == "gin" or "." in bare):
    return "; a binding has the form --gin.NAME=VALUE"
  # An option that differs only in - and _ comes first; options come before macros.
  written = {option.replace("_", ""): option for option in options}
  for wanted in (bare.replace("-", "").replace("_", ""), bare.replace("-", "_")):
    if wanted in written:
      return f"; did you mean --{written[wanted]}?"
  if bare.isupper() and macros:
    return _with_binding(near(bare, macros), shown)
  return near(bare, options).replace("did you mean ", "did you mean --")


def _with_binding(suggested: str, value: str) -> str:
  return re.sub(r"did you mean ([\w.]+)\?", rf"did you mean --gin.\1{value}?", suggested)


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
  """Runs a command; a user's error becomes one line on stderr and exit status 2."""
  _open_streams()
  try:
    os.getcwd()
  except OSError as error:
    reason = f"the working directory cannot be used ({error.strerror}). Change to another one."
    sys.exit(_tell_error(reason))
  _restart_with_huge_pages()
  _leave_absent_tpu_alone()
  _leave_types_alone()
  gc.set_threshold(*GARBAGE_THRESHOLDS)
  output.prepare()
  gpu.take_memory()
  if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    # Simulated CPU devices wait for each other in threads: with one per core, they wait for
    # ever.
    os.environ.setdefault("NPROC", "64")
  # Kept next to the rows: a continued run or its evaluation does not compile again.
  if _is_writable(COMPILATION_CACHE):
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(COMPILATION_CACHE))
  reason = ""
  try:
    status = main(sys.argv[1:])
  except KeyboardInterrupt as stopped:
    status, reason = INTERRUPTED, str(stopped) or "interrupted"
    # A terminal's line has the ^C, and may have a live line of progress.
    print(f"\n{reason}" if sys.stderr.isatty() else reason, file=sys.stderr)
  except SystemExit as leaving:  # by --help, and by invalid arguments
    if not isinstance(leaving.code, int | None) and not _is_joined():
      raise
    status = (leaving.code or 0) if isinstance(leaving.code, int | None) else 1
    reason = f"exited with {leaving.code}"
  except Exception as error:
    _wait_for_verdict(error)
    if _is_joined():
      sys.modules["parallel.coordination"].claim_end()
    status = output.failure(error) if isinstance(error, OSError) else None
    reason = f"{type(error).__name__}: {error}"
    if status is None:
      line = str(error) if isinstance(error, UserError) else failures.of_system(error)
      if line is None and not _is_joined():
        raise
      if line is not None:
        _tell_error(line)
        status, reason = FAILED if failures.may_pass(error) else USER_ERROR, line
      else:
        traceback.print_exc()
        status = FAILED
  if reason and status and _is_joined():
    end_with_others(reason, status)
  sys.exit(output.finish(status))


def _tell_error(message: str) -> int:
  """Prints the error; returns the exit status."""
  print(failures.clipped(f"error: {message}"), file=sys.stderr)
  return USER_ERROR


def _open_streams() -> None:
  """Opens closed streams (`>&-`) on /dev/null.

  Else the first opened file would get a closed stream's number, and everything that is printed.
  """
  for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
    try:
      os.fstat(descriptor)
    except OSError:
      null = os.open(os.devnull, os.O_RDWR)
      if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
      os.set_inheritable(descriptor, True)
    if getattr(sys, name) is None:
      stream = open(descriptor, "w" if descriptor else "r", encoding="utf-8")  # noqa: SIM115
      setattr(sys, name, stream)


def _leave_types_alone() -> None:
  """Turns off JAX's 64-bit switch, which would change the dtypes of a configuration."""
  if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on", "t", "y"):
    print("JAX_ENABLE_X64 is ignored: the configuration sets the model's dtypes", file=sys.stderr)
    os.environ["JAX_ENABLE_X64"] = "0"


def status_of_stop(by: signal.Signals) -> int:
  """Returns the exit status of a command that a signal stopped after a save."""
  return INTERRUPTED if by == signal.SIGINT else PREEMPTED


def _is_joined() -> bool:
  """Whether this is one of several processes; joining them has imported the module."""
  coordination = sys.modules.get("parallel.coordination")
  return coordination is not None and coordination.is_joined()


def _wait_for_verdict(error: Exception) -> None:
  """After a failed exchange with another process, names the process that died and ends."""
  if _is_joined():
    from jax.errors import JaxRuntimeError

    if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
      print("communication with another process failed; finding out which", file=sys.stderr)
      sys.stderr.flush()
      sys.modules["parallel.coordination"].wait_for_verdict()


def end_with_others(reason: str, status: int) -> None:
  """Ends this process and, with its reason, the others, which would wait for it."""
  line = " ".join(reason.split())
  sys.modules["parallel.coordination"].announce(line[:400], status)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _is_writable(folder: str) -> bool:
  """Whether a folder, or the first that exists above it, can be written: else JAX warns of each."""
  while not os.path.exists(folder):
    folder = os.path.dirname(folder) or "."
  return os.access(folder, os.W_OK | os.X_OK)


def _restart_with_huge_pages() -> None:
  """Restarts the process so that glibc allocates large arrays in huge pages.

  XLA on the CPU allocates the arrays of every step anew. In pages of 4 KB their first touch takes
  up to a quarter of a small step's time.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
    # Python may not know its own file, or may not be allowed to start it again.
    if sys.executable:
      with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _leave_absent_tpu_alone() -> None:
  """Keeps JAX off the TPU if libtpu is installed and no accelerator is attached.

  JAX's search would print half a page of errors about a TPU.
  """
  has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
  if importlib.util.find_spec("libtpu") and not has_tpu and not entry_points(group="jax_plugins"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
