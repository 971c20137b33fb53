"""Peak memory of importing and exporting weights of RecurrentGemma 2B's shape.

The weights are random bits, 5.4 GB as bfloat16.

    python -m benchmarks.convert_memory --folder=/tmp/weights --shard_gb=2

Fewer layers (--layers=3) take less time and have the same largest tensor. Needs 17 GB of disk,
and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[1]
CONFIG = {
  "vocab_size": 256_000,
  "hidden_size": 2560,
  "lru_width": 2560,
  "intermediate_size": 15_360,
  "num_hidden_layers": 26,
  "num_attention_heads": 10,
  "num_key_value_heads": 1,
  "attention_window_size": 2048,
  "logits_soft_cap": 30.0,
  "model_type": "recurrent_gemma",
}
PROGRAM = """
import sys
from pathlib import Path
from data import tokenizers
from conversion import conversion, export
from experiment.run_directory import RunDirectory

class LargeBytes(tokenizers.Bytes):
  size = 256_000

conversion._tokenizer = lambda *_: LargeBytes()
RunDirectory.tokenizer = lambda run: LargeBytes()
source, target = map(Path, sys.argv[2:4])
if sys.argv[1] == "import":
  conversion.import_weights(conversion.HUGGING_FACE, source, target, "bytes", [], "benchmark")
else:
  export.export(source, target, "latest", None, int(sys.argv[4]))
"""


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Names and arrays as in Hugging Face's files."""
  from conversion import recurrent_gemma

  block = np.random.default_rng(0).integers(0, 0x3F80, 2**22, dtype=np.uint16)
  for entry in recurrent_gemma.name_table(recurrent_gemma.model_from_hugging_face(config)):
    yield entry.name, np.resize(block, entry.shape).view(ml_dtypes.bfloat16)


def measured(arguments: list[str]) -> tuple[float, int]:
  """CPU seconds and peak bytes of a process that runs PROGRAM."""
  process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise RuntimeError(f"{arguments[0]} ended with status {os.waitstatus_to_exitcode(status)}.")
  return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
  """Writes the files, converts them there and back, and prints what both ways needed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--folder", type=Path, required=True)
  parser.add_argument("--shard_gb", type=float, default=5.0)
  parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
  args = parser.parse_args()
  from conversion import safetensors_files

  config = CONFIG | {"num_hidden_layers": args.layers}
  source, target = args.folder / "source", args.folder / "run"
  source.mkdir(parents=True)
  try:
    safetensors_files.write(source, tensors(config), int(args.shard_gb * 1e9))
    (source / "config.json").write_text(json.dumps(config))
    shard = max(file.stat().st_size for file in source.glob("*.safetensors"))
    largest = 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"]
    print(f"largest tensor {largest / 1e9:.2f} GB, largest file {shard / 1e9:.2f} GB")
    bound = 1.5 * largest + shard
    ways = {"import": (source, target), "export": (target, args.folder / "exported", args.shard_gb)}
    for way, (start, end, *more) in ways.items():
      arguments = [way, str(start), str(end), *(str(int(gb * 1e9)) for gb in more)]
      seconds, peak = measured(arguments)
      print(f"{way}: peak memory {peak / 1e9:.2f} GB, {peak / bound:.2f} of 1.5 tensors and a file")
      print(f"{way}: {seconds:.0f} s of CPU")
  finally:
    shutil.rmtree(args.folder)


if __name__ == "__main__":
  main()
