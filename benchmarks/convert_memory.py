"""Peak memory of taking in weights of RecurrentGemma 2B's shape (random bits, 5.4 GB as bfloat16).

    python -m benchmarks.convert_memory --folder=/tmp/weights --shard_gb=2

Fewer layers (--layers=3) take less time and have the same largest tensor. Needs 11 GB of disk, and
removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
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
IMPORT = """
import sys
from data import tokenizers
from conversion import conversion

class LargeBytes(tokenizers.Bytes):
  size = 256_000

conversion._tokenizer = lambda source, given: LargeBytes()
from pathlib import Path
source, target = map(Path, sys.argv[1:])
conversion.import_weights(conversion.HUGGING_FACE, source, target, "bytes", [], "benchmark")
"""


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Names and arrays as in Hugging Face's files."""
  from conversion import recurrent_gemma

  block = np.random.default_rng(0).integers(0, 0x3F80, 2**22, dtype=np.uint16)
  for entry in recurrent_gemma.name_table(recurrent_gemma.model_from_hugging_face(config)):
    yield entry.name, np.resize(block, entry.shape).view(ml_dtypes.bfloat16)


def main() -> None:
  """Writes the files, takes them in by another process, and prints what that needed."""
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
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORT, str(source), str(target)], cwd=ROOT, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    bound = 1.5 * largest + shard
    print(f"largest tensor {largest / 1e9:.2f} GB, largest file {shard / 1e9:.2f} GB")
    print(f"peak memory {peak / 1e9:.2f} GB, {peak / bound:.2f} of 1.5 tensors and a file")
    print(f"{time.monotonic() - start:.0f} s")
  finally:
    shutil.rmtree(args.folder)


if __name__ == "__main__":
  main()
