"""A training in which one host cannot read what another one reads.

Usage: python -m tests.launch.failing_reads STEP ARGUMENTS_OF_LAUNCH_TRAIN
"""

from __future__ import annotations

import sys
from typing import Any

from launch import command, train


def main(step: str, arguments: list[str]) -> int:
  if "--process=1" in arguments:
    from training import checkpoint

    ocp = checkpoint.orbax()
    read = ocp.load_checkpointables

    def load(folder: Any, *args: Any, **kwargs: Any) -> Any:
      found = read(folder, *args, **kwargs)
      if folder.name == step:
        raise ValueError("DATA_LOSS: a chunk is not what was written")
      return found

    ocp.load_checkpointables = load
  return train.main(arguments)


if __name__ == "__main__":
  damaged = sys.argv.pop(1)
  command.run(lambda arguments: main(damaged, list(arguments)))
