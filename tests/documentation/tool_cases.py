"""Cases of the pages that plan, compare, convert and check: how each step is tested."""

from __future__ import annotations

import re
import shlex
import signal

from tests.documentation.run_cases import GRIFFIN, SILENT, TRAINED
from tests.documentation.session import Case, Session

SHORT = f"--gin.STEPS=4 --gin.WARMUP_STEPS=2 --gin.BATCH_SIZE=2 --gin.SEQUENCE_LENGTH=64 {SILENT}"
SWEPT = f"{SHORT} --gin.WIDTH=32 --gin.RNN_WIDTH=32 --gin.HEADS=2 --gin.DEPTH=2"
RATES = f"{SWEPT} {GRIFFIN}"
TINY = ["compare/sizes/66k.gin", "WARMUP_STEPS = 2", "BATCH_SIZE = 2"]
STEPS = {"66k": 20, "158k": 21}
MACROS = {
  "MODELS": {
    "Griffin": ["compare/quick_griffin.gin"],
    "MQA Transformer": ["models/transformer.gin"],
  },
  "SEEDS": (0,),
  "TUNING": None,
  "SIZES": {size: [*TINY, f"STEPS = {steps}"] for size, steps in STEPS.items()},
  "ROUNDS": 1,
  "SAMPLES": 1,
  "SAMPLE_LENGTHS": (4, 8),
  "PREFILLS": (0,),
  "TOKENS_BEFORE": (8, 16),
}
CARRIED = {
  "MODELS": {"Griffin": ["compare/quick_griffin.gin"]},
  "SEEDS": (0,),
  "SIZES": {"158k": [*TINY, "SEQUENCE_LENGTH = 64", "STEPS = 20"]},
  "CARRY_WAYS": {"alone": [], "passed": ["train/passed_state.gin", "PASSED_AFTER = 10"]},
  "CARRY_SCORED_LENGTH": 512,
  "CARRY_TOKENS": 1024,
}
COMPARED = shlex.join(f"--gin.{name}={value}" for name, value in MACROS.items())


def stop_and_resume(session: Session, command: str) -> None:
  """Checks that a stopped comparison continues, and trains no run twice."""
  command += " --only=scaling"
  stopped = session.stop(command, signal.SIGTERM, "comparisons/quick/runs/*/metrics.jsonl")
  assert stopped.status != 0
  done = session.type(command)
  assert "comparisons/quick/report/index.html" in done.out


def lower_the_loss(session: Session, command: str) -> None:
  """Checks that the training of an example lowers the loss that it prints."""
  found = re.search(r"rows: (\d+\.\d+) before, (\d+\.\d+) after", session.type(command).out)
  before, after = map(float, found.groups())
  assert after < before


CASES = {
  "README.md": {
    "Compare": [
      Case(
        "python -m launch.compare gin/compare/quick.gin --output=comparisons/quick",
        COMPARED,
        instead=stop_and_resume,
        leaves=("comparisons/quick/report/index.html", "comparisons/quick/report/data.json"),
      ),
    ],
    "Extend": [
      Case("python -m launch.check --model=griffin", "--only=causality,packing", r"\d+ passed in"),
    ],
  },
  "docs/models.md": {
    "Hybrids": [
      Case("my_hybrid.gin"),
      Case(
        "python -m launch.train my_run.gin my_hybrid.gin",
        prints=r"block_2/mixer/z/kernel(.*\n)+.*block_3/mixer/query/kernel",
      ),
    ],
    "Sizes": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/models/xlstm.gin",
        prints=r"MLPs of width [\d,]+, a multiple of \d+; [\d,]+ parameters",
      ),
    ],
    "One learning rate for all widths": [
      Case("my_wide_run.gin"),
      Case(
        "python -m launch.train my_wide_run.gin --describe",
        prints=r"linear_x/kernel .* AdamW, decayed, rate x 0\.5 ",
      ),
    ],
    "Use it as a library": [Case("import jax")],
  },
  "docs/planning.md": {
    "Plan before you rent": [
      Case(
        "python -m launch.plan gin/runs/griffin_quickstart.gin",
        "--gin.WIDTH=256 --gin.RNN_WIDTH=256 --gin.HEADS=8 --gin.DEPTH=1 --gin.MICROBATCHES=1 "
        "--gin.SEQUENCE_LENGTH=128 --gin.WINDOW=64 --gin.RECURRENCE_KERNEL=associative",
        "all-reduce",
      ),
    ],
  },
  "docs/long_rows.md": {
    "Planned": [
      Case(
        "python -m launch.plan gin/runs/griffin_quickstart.gin",
        "--gin.WIDTH=256 --gin.RNN_WIDTH=256 --gin.HEADS=2 --gin.DEPTH=1 --gin.TIME_CHUNK=128 "
        "--gin.SEQUENCE_LENGTH=512 --gin.VOCAB_SIZE=512 --gin.RECURRENCE_KERNEL=associative",
        "tokens per second",
      ),
    ],
    "Learn what documents begin with": [
      Case(
        "python -m launch.train gin/runs/griffin_quickstart.gin gin/train/learned_state.gin",
        RATES,
        TRAINED,
        leaves=("runs/learned/loss.png",),
      ),
    ],
    "What it brings": [
      Case(
        "python -m launch.compare gin/compare/state_carry.gin",
        shlex.join(f"--gin.{name}={value}" for name, value in CARRIED.items()),
        r"Griffin: loss by position after training on rows of 64",
      ),
    ],
  },
  "docs/comparing.md": {
    "Compare models": [
      Case("python -m launch.compare gin/compare/quick.gin", repeats="README.md"),
      Case("python -m launch.compare gin/compare/paper.gin --output=", skipped="needs a pod"),
      Case("python -m launch.compare gin/compare/quick.gin", COMPARED, r"Decode speed\n"),
      Case("python -m launch.compare gin/compare/paper.gin --describe", prints=r"scaling +\d"),
      Case(
        "python -m launch.compare --output=comparisons/quick --export",
        prints=r"\d+ figures, \d+ files in figures",
        leaves=("figures/*.png", "figures/*.tex"),
      ),
    ],
    "Compare runs that exist": [
      Case(
        "python -m launch.compare runs/first runs/hawk",
        "--only=held_out_loss --gin.SCORED_TOKENS=16384",
        "In bits per byte: ",
        leaves=("comparisons/first_hawk/report/index.html",),
      ),
    ],
    "Downstream tasks": [
      Case(
        "python -m launch.compare runs/first runs/hawk --only=downstream",
        skipped="needs copies of published data sets",
      ),
    ],
    "Scaling laws": [
      Case(
        "python -m launch.scaling_laws my_runs.csv",
        "--resamples=20",
        r"my_runs +12 +2 \(2 to 2\)",
        leaves=("laws.html",),
      ),
    ],
    "Sweeps": [
      Case(
        "python -m launch.sweep gin/runs/griffin_quickstart.gin --output=sweeps/rates",
        RATES,
        r"best: \S+ bits per byte held out, with LEARNING_RATE=\S+, SEED=\d",
        leaves=("sweeps/rates/sweep.html", "sweeps/rates/*/checkpoints"),
      ),
      Case(
        "python -m launch.sweep gin/runs/griffin_quickstart.gin --output=sweeps/models",
        f"{SWEPT} --describe",
        r"gin/models/hawk.gin\n\n2 runs",
      ),
      Case("python -m launch.sweep gin/runs/griffin_quickstart.gin", prints="20 runs"),
      Case(
        "python -m launch.sweep gin/runs/griffin_quickstart.gin --output=sweeps/rates",
        RATES,
        "2 jobs in sweeps/rates",
        leaves=("sweeps/rates/jobs.sh",),
      ),
      Case(
        "python -m launch.sweep gin/runs/griffin_quickstart.gin --output=sweeps/rates",
        RATES,
        "not started",
      ),
    ],
  },
  "docs/converting_and_finetuning.md": {
    "Hugging Face in and out": [
      Case(
        "python -m launch.convert recurrentgemma-2b/ runs/gemma",
        prints="is ready",
        leaves=("runs/gemma/config.gin",),
      ),
      Case(
        "python -m launch.convert recurrentgemma-flax/2b runs/flax",
        "--vocabulary=recurrentgemma-2b/tokenizer.model --gin.WINDOW=9",
        "is ready",
        leaves=("runs/flax/config.gin",),
      ),
      Case("python -m launch.generate --run_dir=runs/gemma", "--max_tokens=8", "^The Griffin is"),
      Case(
        "python -m launch.convert runs/gemma exported/",
        prints="is ready",
        leaves=("exported/model.safetensors", "exported/tokenizer.model"),
      ),
    ],
    "Fine-tune": [
      Case("python -m launch.train gin/data/instructions.gin gin/train/lora.gin", SHORT, TRAINED),
      Case(
        "python -m launch.convert runs/tuned exported_tuned/",
        prints="is ready",
        leaves=("exported_tuned/model.safetensors",),
      ),
      Case(
        "python -m launch.convert runs/tuned adapters/ --adapters",
        prints="is ready",
        leaves=("adapters/adapter_config.json", "adapters/adapter_model.safetensors"),
      ),
      Case(
        "python -m launch.convert runs/tuned runs/merged --merge",
        prints="is ready",
        leaves=("runs/merged/config.gin",),
      ),
    ],
  },
  "docs/from_nnx.md": {
    "": [Case("from pathlib import Path", prints=r"\(1, 4, 259\) \(64,\)")],
    "Fine-tune with Tunix": [
      Case(
        "from pathlib import Path", instead=lower_the_loss, leaves=("runs/with_tunix/config.gin",)
      ),
      Case("python -m launch.generate --run_dir=runs/with_tunix", "--max_tokens=8", "^The"),
    ],
    "Quantize with Qwix": [
      Case("from pathlib import Path", prints=r"int8 changes the logits by [0-3]\.\d\d% of"),
    ],
  },
}
MISTAKES = [
  ("python -m launch.convert recurrentgemma-3b/ runs/x", "recurrentgemma-3b"),
  ("python -m launch.convert runs/gemma exported/", "exported"),
  ("python -m launch.convert broken/ runs/x", "broken"),
  ("python -m launch.compare gin/compare/quick.gin --output=comparisons/quick", "--resume=force"),
  ("python -m launch.compare gin/compare/quick.gin --output=x --only=speeed", "speeed"),
  ("python -m launch.plan gin/runs/griffin_quickstart.gin --hardware=v9-8", "v9"),
  ("python -m launch.check --model=grifin", "griffin"),
  ("python -m launch.check --model=griffin --only=causalty", "causality"),
]
