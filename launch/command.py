"""What the commands share: arguments, and errors without a traceback."""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

from launch import output

EPILOG = """\
Any --gin.NAME=VALUE sets a macro (--gin.STEPS=200) or a parameter (--gin.models.griffin.griffin.window=64)
in place of the gin files; strings need no quotes."""

COMPILATION_CACHE = "cache/jax"
HUGE_PAGES = "glibc.malloc.hugetlb=1"


class UserError(Exception):
  """Something the user can put right; the message says how."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
  """The parser of the command `python -m launch.<name>`."""
  return argparse.ArgumentParser(
    prog=f"python -m launch.{name}",
    description=description,
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def parse(
  result: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Splits arguments into those of the parser and the `--gin.` bindings.

  `--gin.NAME VALUE` is understood as well as `--gin.NAME=VALUE`.
  """
  bindings: list[str] = []
  rest: list[str] = []
  waiting = iter(arguments)
  for argument in waiting:
    if not argument.startswith("--gin."):
      rest.append(argument)
    elif "=" in argument:
      bindings.append(argument)
    else:
      value = next(waiting, None)
      if value is None:
        result.error(f"{argument} needs a value: {argument}=...")
      bindings.append(f"{argument}={value}")
  return result.parse_args(rest), bindings


def tell_next(*words: object) -> None:
  """Names the command to type next, on stderr; the words are quoted for a shell."""
  print(f"next: {shlex.join(map(str, words))}", file=sys.stderr)


def run(main: Callable[[Sequence[str]], int]) -> None:
  """Runs a command; what the user can put right is one line on stderr and exit status 2."""
  _restart_with_huge_pages()
  _leave_absent_tpu_alone()
  output.prepare()
  if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    # Devices that a CPU plays wait for each other in threads: with one per core, they wait for ever.
    os.environ.setdefault("NPROC", "64")
  # Beside the rows: a run that goes on, or its evaluation, need not wait for the compiler again.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(COMPILATION_CACHE))
  try:
    status = main(sys.argv[1:])
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    status = 130
  except SystemExit as leaving:  # of --help, and of arguments that cannot be understood
    if not isinstance(leaving.code, int | None):
      raise
    status = leaving.code or 0
  except Exception as error:
    status = output.failure(error) if isinstance(error, OSError) else None
    if status is None:
      if not _is_for_the_user(error):
        raise
      print(f"error: {error}", file=sys.stderr)
      status = 2
  sys.exit(output.finish(status))


def _restart_with_huge_pages() -> None:
  """Has glibc take large arrays from huge pages; it reads that when a process starts.

  XLA on the CPU asks for the arrays of every step anew. In pages of 4 KB their first touch takes up to a
  quarter of a small step's time.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _leave_absent_tpu_alone() -> None:
  """Where libtpu is installed to compile with, and no accelerator is here, JAX need not look for one.

  Its search ends in half a page of errors about a TPU that nobody asked for.
  """
  has_tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
  if importlib.util.find_spec("libtpu") and not has_tpu and not entry_points(group="jax_plugins"):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _is_for_the_user(error: Exception) -> bool:
  """Whether the error is of a kind whose message is written for who launched the command."""
  # The modules that define these kinds are slow to import; whoever raised one has imported it.
  kinds = {
    "launch.command": ("UserError",),
    "launch.gin_source": ("ConfigError",),
    "layers.mixer": ("MixerError",),
    "data.files": ("CorpusError",),
    "data.manifest": ("RowFileError",),
    "data.vocabularies": ("VocabularyError",),
    "data.preparation": ("PreparationError",),
    "evaluation.harness": ("HarnessError",),
    "training.checkpoint": ("CheckpointError",),
    "training.loop": ("TrainingError",),
  }
  return any(
    isinstance(error, getattr(sys.modules[module], name))
    for module, names in kinds.items()
    if module in sys.modules
    for name in names
  )
