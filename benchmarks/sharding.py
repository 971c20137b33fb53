"""What sharding sends beside the least that it could, and what depth costs to compile.

No TPU is needed.

    python -m benchmarks.sharding              # both tables, for a Griffin on eight v5e
    python -m benchmarks.sharding traffic zero3 model

First table: per strategy the bytes that a device sends in a training step, as the compiled program
says, beside the arithmetic minimum for the strategy (a ring's). Second table: seconds of CPU to
trace and compile a step of 12 and of 40 layers, per model; the least of some runs, interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from benchmarks import absent_tpu

import jax  # isort: skip

from experiment import experiment as experiment_lib
from experiment.describe import show_bytes, table
from kernels import platform
from models.accounting import account
from planning import plan
from planning.hardware import catalogue
from planning.programs import training_step

DEVICES = 8
SIZES = {
  "WIDTH": 512,
  "RNN_WIDTH": 512,
  "HEADS": 8,
  "DEPTH": 3,
  "VOCAB_SIZE": 4096,
  "WINDOW": 64,
  "SEQUENCE_LENGTH": 256,
  "BATCH_SIZE": 8,
  # What they are made of does not matter here, and these compile faster.
  "RECURRENCE_KERNEL": "reference",
  "ATTENTION_KERNEL": "reference",
}
FILES = ("runs/griffin_quickstart.gin", "mesh/data.gin", "precision/bfloat16.gin")
# The least at which 12 layers lie in main memory, as 40 do. Where they fit on the chip (v5e: 128
# MiB) they take less code, copies above all, and compile a quarter sooner.
NARROW = {"VOCAB_SIZE": 1024, "MODEL_SHARDS": 2}
# Blocks that fill no repetition of a model's pattern are compiled beside the loop: Griffin has one
# at 13 and 40.
DEPTHS = {
  "griffin": ((12, 39), (13, 40), (12, 40)),
  "hawk": ((12, 40),),
  "transformer": ((12, 40),),
}
STRATEGIES = {
  "zero0": {"ZERO_STAGE": 0},
  "zero1": {"ZERO_STAGE": 1},
  "zero2": {"ZERO_STAGE": 2},
  "zero3": {"ZERO_STAGE": 3},
  # "save_mixer_outputs", which computes products again, would sum the mixers' output again.
  "model": {"MODEL_SHARDS": DEVICES, "models.backbone.Backbone.remat": "save_dots"},
  "seq": {"SEQUENCE_SHARDS": DEVICES},
}


def build(settings: Mapping[str, int | str], model: str = "griffin") -> experiment_lib.Experiment:
  """The experiment with other macros or parameters."""
  arguments = [f"--gin.{name}={value}" for name, value in {**SIZES, **settings}.items()]
  files = [*FILES, f"models/{model}.gin"]
  # Models have no use for some of the macros.
  return experiment_lib.build(experiment_lib.load(files, arguments, shared=True))


def minimum(strategy: str) -> float:
  """The bytes that a device must send in a step, by arithmetic.

  A ring sends (n - 1) / n of an array to gather or to scatter it, and twice that to sum it.
  """
  experiment = build(STRATEGIES[strategy])
  model, rows, length = experiment.model, experiment.batch_size, experiment.sequence_length
  parameters = account(model, batch_size=rows, length=length).parameters
  ring, sub_blocks = (DEVICES - 1) / DEVICES, 2 * model.depth
  matrices = sum(p.count for p in parameters if not _is_vector(p))
  vectors = sum(p.count for p in parameters if _is_vector(p))
  if strategy in ("zero0", "zero1", "zero2"):
    # The gradient, in float32: summed, or scattered and the new parameters gathered.
    return 2 * ring * 4 * (matrices + vectors)
  if strategy == "zero3":
    # Matrices in bfloat16, gathered for the forward and for the backward pass, the embedding once
    # for both, and their gradients scattered.
    embedding = model.padded_vocab_size * model.width
    return ring * 2 * (3 * matrices - embedding) + 2 * ring * 4 * vectors
  if strategy == "model":
    # A stream of [B, T, D] in bfloat16 per sub-block and direction, for the embedding and the
    # logits; the gradient of key and value; three float32 per token for the loss; the shared head's
    # gradient.
    head, attentions = model.width // SIZES["HEADS"], model.depth // 3
    stream = (2 * sub_blocks + 2) * model.width + attentions * 2 * head
    return 2 * ring * rows * length * (2 * stream + 4 * 3)
  # seq: gradients are summed. Forward and back, per recurrent block three tokens of the convolution
  # and log2(n) times a pair of states; per attention the keys and values of a window, and its
  # segments once.
  attentions = model.depth // 3
  recurrent = model.depth - attentions
  width, head = SIZES["RNN_WIDTH"], model.width // SIZES["HEADS"]
  states = 2 * 2 * width * 4 * (DEVICES.bit_length() - 1)
  halo = 2 * 3 * width * 2
  window = (SIZES["WINDOW"] - 1) * (2 * 2 * head * 2 + 4)
  exchanged = rows * (recurrent * (states + halo) + attentions * window)
  return exchanged + 2 * ring * 4 * (matrices + vectors)


def _is_vector(parameter) -> bool:
  """Whether ZeRO leaves it whole: norms, biases, and the four taps of a convolution."""
  axes = [axis for axis in parameter.axes if axis != "layers"]
  return len(axes) < 2


def traffic(strategies: list[str]) -> None:
  """Prints the first table."""
  hardware = catalogue.hardware(f"v5e-{DEVICES}")
  print("strategy  sent per device  arithmetic minimum  ratio  collectives")
  for strategy in strategies:
    found = plan.plan(build(STRATEGIES[strategy]), hardware)
    sent, least = sum(one.sent for one in found.collectives), minimum(strategy)
    kinds = ", ".join(f"{one.count} {one.kind} ({one.axes})" for one in found.collectives)
    print(
      f"{strategy:8}  {show_bytes(sent):>15}  {show_bytes(least):>18}  {sent / least:5.3f}  "
      f"{kinds}",
      flush=True,
    )


def depths(runs: int) -> None:
  """Prints the second table."""
  devices = absent_tpu.devices("v5e")
  seconds: dict[tuple[str, int], list[float]] = {
    (model, depth): [] for model, pairs in DEPTHS.items() for pair in pairs for depth in pair
  }
  for _ in range(runs):
    for (model, depth), found in seconds.items():
      experiment = build(NARROW | {"DEPTH": depth}, model)
      jax.clear_caches()
      began = time.process_time()
      with platform.targeting("tpu"):
        training_step(experiment, experiment.sharding_plan(devices)).lowered.compile()
      found.append(time.process_time() - began)
  least = {key: min(found) for key, found in seconds.items()}
  rows = [("model", "layers", "seconds of CPU to trace and compile", "ratio")]
  for model, pairs in DEPTHS.items():
    for shallow, deep in pairs:
      before, after = least[model, shallow], least[model, deep]
      both = f"{before:.1f}, {after:.1f}"
      rows.append((model, f"{shallow}, {deep}", both, f"{after / before:.2f}"))
  print(table(rows, right=(1, 2, 3)))


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("table", nargs="?", choices=("both", "traffic", "depths"), default="both")
  parser.add_argument("strategies", nargs="*", default=list(STRATEGIES))
  parser.add_argument(
    "--runs", type=int, default=3, help="compilations per depth (default: %(default)s)"
  )
  args = parser.parse_args()
  if args.table != "depths":
    traffic(args.strategies)
  if args.table != "traffic":
    depths(args.runs)


if __name__ == "__main__":
  main()
