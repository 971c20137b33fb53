"""Joins the processes of a run on several hosts."""

from __future__ import annotations

import argparse
import os

from base.errors import UserError

# How long to wait for the others: hosts of a cluster start minutes apart, typed commands do not.
CLUSTER_SECONDS = 300
TYPED_SECONDS = 50
# Limits of timers and of any cluster.
_MOST_SECONDS = 7 * 24 * 3600
_MOST_PROCESSES = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of a run on several hosts."""
  group = parser.add_argument_group("several hosts")
  group.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes, found by SLURM, Kubernetes or the TPU metadata service",
  )
  group.add_argument(
    "--coordinator", help="host:port of process 0, if the environment does not provide it"
  )
  group.add_argument("--processes", type=int, help="number of processes")
  group.add_argument("--process", type=int, help="index of this process, from 0")
  group.add_argument(
    "--join_seconds",
    type=int,
    help="how long to wait for the other processes "
    f"(default: {TYPED_SECONDS}, with --distributed {CLUSTER_SECONDS})",
  )


def join(args: argparse.Namespace) -> None:
  """Joins the other processes, if there are any; call before the first use of a device.

  Raises:
    UserError: the arguments are incomplete, or the other processes do not join.
  """
  explicit = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
  given = [name for name, value in explicit.items() if value is not None]
  if not given and not args.distributed:
    return
  if given and len(given) < len(explicit):
    missing = ", ".join(f"--{name}" for name in explicit if name not in given)
    raise UserError(f"--{given[0]} needs {missing} too. Give all three to each process.")
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
      f"--coordinator={args.coordinator[:80]} is not an address. Give host:port of process 0."
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
      f"could not join the other processes: {reason} Give only --distributed on SLURM, Kubernetes "
      "or TPU hosts; elsewhere give --coordinator, --processes and --process."
    )
    told.may_pass = getattr(error, "may_pass", False)
    raise told from None


def _shown(number: int) -> str:
  text = str(number)
  return text if len(text) <= 20 else f"{text[:20]}..."


def _is_address(text: str) -> bool:
  host, _, port = text.rpartition(":")
  return bool(host) and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
