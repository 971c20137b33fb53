"""Joins the processes of a run on several hosts."""

from __future__ import annotations

import argparse
import os

from base.errors import UserError

# How long to wait for the others: hosts of a cluster start minutes apart, persons type faster.
CLUSTER_SECONDS = 300
TYPED_SECONDS = 50
# Timers count no longer, and no cluster has more hosts: each is waited for by its number.
_MOST_SECONDS = 7 * 24 * 3600
_MOST_PROCESSES = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that say how many processes there are and which this is."""
  group = parser.add_argument_group("several hosts")
  group.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes that SLURM, Kubernetes or the TPU's own service names",
  )
  group.add_argument(
    "--coordinator", help="host:port of process 0, if the environment does not provide it"
  )
  group.add_argument("--processes", type=int, help="number of processes")
  group.add_argument("--process", type=int, help="which of them this is, from 0")
  group.add_argument(
    "--join_seconds",
    type=int,
    help=f"how long to wait for the others ({TYPED_SECONDS}; with --distributed {CLUSTER_SECONDS})",
  )


def join(args: argparse.Namespace) -> None:
  """Joins the other processes, before the first use of a device; nothing to do for a single one.

  Raises:
    UserError: the arguments do not say enough, or the others do not come.
  """
  explicit = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
  given = [name for name, value in explicit.items() if value is not None]
  if not given and not args.distributed:
    return
  if given and len(given) < len(explicit):
    missing = ", ".join(f"--{name}" for name in explicit if name not in given)
    raise UserError(f"--{given[0]} needs {missing} too: each process is told all three.")
  if given and not 1 <= args.processes <= _MOST_PROCESSES:
    raise UserError(
      f"--processes={_shown(args.processes)} must be at least 1 and at most {_MOST_PROCESSES}."
    )
  if given and not 0 <= args.process < args.processes:
    raise UserError(f"--process={_shown(args.process)} must be in [0, {args.processes}).")

  seconds = args.join_seconds
  if seconds is None:
    seconds = TYPED_SECONDS if given else CLUSTER_SECONDS
  if not 1 <= seconds <= _MOST_SECONDS:
    raise UserError(
      f"--join_seconds={_shown(seconds)} must be at least 1 and at most {_MOST_SECONDS}, a week."
    )
  if given and not _is_address(args.coordinator):
    raise UserError(
      f"--coordinator={args.coordinator[:80]} is no address. Give host:port of process 0."
    )

  import jax

  from parallel import coordination

  jax.config.update("jax_enable_preemption_service", True)
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    coordination.join(args.coordinator, args.processes, args.process, seconds=seconds)
  except (coordination.HostError, ValueError, RuntimeError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    told = UserError(
      f"could not join the other processes: {reason} Under SLURM, Kubernetes or on "
      "TPU hosts give --distributed alone; elsewhere --coordinator, --processes and --process."
    )
    told.may_pass = getattr(error, "may_pass", False)
    raise told from None


def _shown(number: int) -> str:
  text = str(number)
  return text if len(text) <= 20 else f"{text[:20]}..."


def _is_address(text: str) -> bool:
  host, _, port = text.rpartition(":")
  return bool(host) and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
