"""Joins the processes of a run on several hosts."""

from __future__ import annotations

import argparse
import os
import sys
import time

from launch.command import UserError

# A process that is silent for so long has died: the others end too, and say which it was.
HEARTBEAT_SECONDS = 30
JOINING_SECONDS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that say how many processes there are and which this is."""
  group = parser.add_argument_group("several hosts")
  group.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes that SLURM, Kubernetes or the TPU's own service names",
  )
  group.add_argument("--coordinator", help="host:port of process 0, where none of these tells")
  group.add_argument("--processes", type=int, help="number of processes")
  group.add_argument("--process", type=int, help="which of them this is, from 0")


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
  if given and not 0 <= args.process < args.processes:
    raise UserError(f"--process={args.process} must be in [0, {args.processes}).")

  import jax

  jax.config.update("jax_enable_preemption_service", True)
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      coordinator_address=args.coordinator,
      num_processes=args.processes,
      process_id=args.process,
      initialization_timeout=JOINING_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"could not join the other processes: {str(error).splitlines()[0]}. Under SLURM, Kubernetes or on "
      "TPU hosts give --distributed alone; elsewhere --coordinator, --processes and --process."
    ) from None


def wait_for_name_of_dead() -> None:
  """After a failed collective: gives JAX's coordination service the time to say which process died.

  It then ends this process, with the number of the dead one; a collective that fails knows an address at
  best.
  """
  import jax

  if jax.process_count() > 1:
    print("error: an exchange with another process failed; finding out which", file=sys.stderr)
    sys.stderr.flush()
    time.sleep(HEARTBEAT_SECONDS + 5)
