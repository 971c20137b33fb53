"""Checks several models of the zoo in one process, as `python -m launch.check --model=...` checks
one.

    python -m tests.contract.zoo FOLDER griffin hawk:causality,packing ...

A model is followed by the checks to run, all of them by default.

Writes the findings to FOLDER/NAME.json and prints one JSON line per model: its name, the exit
status and what the command printed. The devices must exist before JAX is imported, hence the
process; starting it, and compiling what all models share, are paid once.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys

from launch import check, command

if __name__ == "__main__":
  gc.set_threshold(*command.GARBAGE_THRESHOLDS)  # as `command.run` does
  folder, *names = sys.argv[1:]
  for name, _, only in (argument.partition(":") for argument in names):
    arguments = [f"--model={name}", f"--json={folder}/{name}.json"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
      status = check.main([*arguments, f"--only={only}"] if only else arguments)
    print(json.dumps({"name": name, "status": status, "shown": shown.getvalue()}), flush=True)
    import jax  # after the first check has made its devices

    jax.clear_caches()  # else the programs of all models stay in memory, two gigabytes of them
