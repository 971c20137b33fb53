"""The CPU recurrences beside a plain C loop with OpenMP: same problem, same threads, taken in
turns.

    python -m benchmarks.recurrence_vs_c
    python -m benchmarks.recurrence_vs_c --shape 4 2048 1024 --rounds 15 --output runs/vs_c.json

Needs gcc. The C side fuses everything into one loop over time per row and group of channels, with
vectorised exp and tanh, and writes into memory that it has touched before. For each op and
direction: milliseconds of both (medians of rounds in which they alternate), and their ratio.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from base import paths
from benchmarks import huge_pages
from training import json_files

SOURCE = r"""
#include <math.h>
#include <string.h>

#define CHANNELS 256 /* of one row that a thread takes through time: its state stays in L1 */
#define EACH_BLOCK _Pragma("omp parallel for collapse(2) schedule(static)") \
  for (long b = 0; b < B; b++) for (long first = 0; first < R; first += CHANNELS)
#define EACH_CHANNEL _Pragma("omp simd") for (long r = 0; r < n; r++)

static float sigmoid(float v) { return 1 / (1 + expf(-v)); }
static long count(long first, long R) { return R - first < CHANNELS ? R - first : CHANNELS; }

void linear_scan_forward(long B, long T, long R, const float *x, const float *log_a,
                         const float *h0, const unsigned char *reset, float *h, float *h_last) {
  EACH_BLOCK {
    long n = count(first, R);
    float state[CHANNELS];
    memcpy(state, h0 + b * R + first, n * sizeof(float));
    for (long t = 0; t < T; t++) {
      long at = (b * T + t) * R + first;
      float keep = reset[b * T + t] ? 0 : 1;
      EACH_CHANNEL {
        state[r] = keep * expf(log_a[at + r]) * state[r] + x[at + r];
        h[at + r] = state[r];
      }
    }
    memcpy(h_last + b * R + first, state, n * sizeof(float));
  }
}

void linear_scan_backward(long B, long T, long R, const float *log_a, const float *h0,
                          const unsigned char *reset, const float *h, const float *dh,
                          const float *dh_last, float *dx, float *dlog_a, float *dh0) {
  EACH_BLOCK {
    long n = count(first, R);
    float carried[CHANNELS];
    memcpy(carried, dh_last + b * R + first, n * sizeof(float));
    for (long t = T - 1; t >= 0; t--) {
      long at = (b * T + t) * R + first;
      const float *before = t ? h + at - R : h0 + b * R + first;
      float keep = reset[b * T + t] ? 0 : 1;
      EACH_CHANNEL {
        float a = keep * expf(log_a[at + r]), g = dh[at + r] + carried[r];
        dx[at + r] = g;
        carried[r] = a * g;
        dlog_a[at + r] = carried[r] * before[r];
      }
    }
    memcpy(dh0 + b * R + first, carried, n * sizeof(float));
  }
}

void rg_lru_forward(long B, long T, long R, const float *x, const float *gate_a,
                    const float *gate_x, const float *log_decay, const float *h0,
                    const unsigned char *reset, float *h, float *h_last) {
  EACH_BLOCK {
    long n = count(first, R);
    float state[CHANNELS];
    memcpy(state, h0 + b * R + first, n * sizeof(float));
    for (long t = 0; t < T; t++) {
      long at = (b * T + t) * R + first;
      float keep = reset[b * T + t] ? 0 : 1;
      EACH_CHANNEL {
        float log_a = sigmoid(gate_a[at + r]) * log_decay[first + r];
        float a = expf(log_a);
        float scale = (1 + a) * sqrtf(tanhf(-0.5f * log_a));
        scale = keep * scale + (1 - keep);
        state[r] = keep * a * state[r] + scale * sigmoid(gate_x[at + r]) * x[at + r];
        h[at + r] = state[r];
      }
    }
    memcpy(h_last + b * R + first, state, n * sizeof(float));
  }
}

/* dlog_decay: [B, R], a sum per row. */
void rg_lru_backward(long B, long T, long R, const float *x, const float *gate_a,
                     const float *gate_x, const float *log_decay, const float *h0,
                     const unsigned char *reset, const float *h, const float *dh,
                     const float *dh_last, float *dx, float *dgate_a, float *dgate_x,
                     float *dlog_decay, float *dh0) {
  EACH_BLOCK {
    long n = count(first, R);
    float carried[CHANNELS], sum[CHANNELS];
    memcpy(carried, dh_last + b * R + first, n * sizeof(float));
    memset(sum, 0, sizeof(sum));
    for (long t = T - 1; t >= 0; t--) {
      long at = (b * T + t) * R + first;
      const float *before = t ? h + at - R : h0 + b * R + first;
      float keep = reset[b * T + t] ? 0 : 1;
      EACH_CHANNEL {
        float gate = sigmoid(gate_a[at + r]), in = sigmoid(gate_x[at + r]);
        float log_a = gate * log_decay[first + r];
        float a = expf(log_a), square = tanhf(-0.5f * log_a) * (1 + a) * (1 + a);
        float slope = -2 * a * a / sqrtf(fmaxf(4 * square, 1e-6f));
        float scale = keep * sqrtf(square) + (1 - keep);
        float g = dh[at + r] + carried[r];
        carried[r] = keep * a * g;
        float dlog_a = carried[r] * before[r] + keep * slope * g * in * x[at + r];
        dx[at + r] = g * scale * in;
        dgate_a[at + r] = dlog_a * log_decay[first + r] * gate * (1 - gate);
        dgate_x[at + r] = g * scale * x[at + r] * in * (1 - in);
        sum[r] += dlog_a * gate;
      }
    }
    memcpy(dh0 + b * R + first, carried, n * sizeof(float));
    memcpy(dlog_decay + b * R + first, sum, n * sizeof(float));
  }
}
"""


def build(folder: str) -> ctypes.CDLL:
  """Compiles SOURCE for this machine."""
  source, compiled, library = (
    pathlib.Path(folder, f"scan.{suffix}") for suffix in ("c", "o", "so")
  )
  source.write_text(SOURCE)
  flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
  subprocess.run(["gcc", *flags, "-c", source, "-o", compiled], check=True)
  # Linked without -ffast-math, which would switch off subnormal numbers in the whole process.
  subprocess.run(["gcc", "-shared", "-fopenmp", compiled, "-o", library, "-lm"], check=True)
  return ctypes.CDLL(str(library))


class CLoops:
  """The C functions on NumPy arrays; outputs are allocated once and written again and again."""

  def __init__(self, library, op: str, arguments, reset, cotangents):
    self.library, self.op, self.shape = library, op, arguments[0].shape
    self.arguments, self.reset, self.cotangents = arguments, reset.astype(np.uint8), cotangents
    batch, _, width = self.shape
    self.h, self.h_last = np.zeros(self.shape, np.float32), np.zeros((batch, width), np.float32)
    # log_decay's gradient comes per row.
    shapes = [(batch, width) if a.ndim == 1 else a.shape for a in arguments]
    self.gradients = [np.zeros(shape, np.float32) for shape in shapes]

  def _call(self, name, *arrays):
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    getattr(self.library, f"{self.op}_{name}")(*map(ctypes.c_long, self.shape), *pointers)

  def forward(self):
    self._call("forward", *self.arguments, self.reset, self.h, self.h_last)
    return self.h, self.h_last

  def forward_and_backward(self):
    self.forward()
    given = self.arguments if self.op == "rg_lru" else self.arguments[1:]
    self._call("backward", *given, self.reset, self.h, *self.cotangents, *self.gradients)
    return (self.h, self.h_last), self.gradients


def compare(library, op: str, shape, rounds: int) -> list[dict]:
  """One record per direction."""
  import jax

  from comparison.speed import timing
  from comparison.speed.recurrences import BOTH, FORWARD, bind, problem, with_gradient

  arguments, reset, cotangents = problem(op, shape, np.float32)
  loops = CLoops(library, op, *(jax.tree.map(np.asarray, (arguments, reset, cotangents))))
  forward = jax.jit(bind(op, "cpu"))
  both = jax.jit(with_gradient(bind(op, "cpu")))
  sides = {
    FORWARD: (loops.forward, functools.partial(forward, *arguments, reset)),
    BOTH: (
      loops.forward_and_backward,
      functools.partial(both, *arguments, reset, *cotangents),
    ),
  }
  records = []
  for direction, (in_c, in_jax) in sides.items():
    for a, b in zip(jax.tree.leaves(in_c()), jax.tree.leaves(in_jax()), strict=True):
      a = a.sum(0) if a.ndim > b.ndim else a
      error = np.linalg.norm(a - b) / np.linalg.norm(b)
      assert error < 1e-4, f"{op}: the C loop differs from the kernel by {error:.1e}"
    seconds = timing.medians(timing.interleaved({"c": in_c, "jax": in_jax}, rounds))
    c, kernel = 1e3 * seconds["c"], 1e3 * seconds["jax"]
    records.append(
      {"op": op, "direction": direction, "c_ms": c, "jax_ms": kernel, "ratio": kernel / c}
    )
  return records


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument(
    "--shape", nargs=3, type=int, default=(4, 2048, 1024), metavar=("B", "T", "R")
  )
  parser.add_argument("--rounds", type=int, default=11)
  parser.add_argument("--output", type=paths.json_argument, help="write the records as JSON")
  options = parser.parse_args()
  if not shutil.which("gcc"):
    raise SystemExit("benchmarks.recurrence_vs_c needs gcc, which is not on PATH. Install it.")
  os.environ["JAX_PLATFORMS"] = "cpu"
  huge_pages.restart_with("benchmarks.recurrence_vs_c")
  threads = len(os.sched_getaffinity(0))
  os.environ.setdefault("OMP_NUM_THREADS", str(threads))
  print(f"{list(options.shape)} float32, {os.environ['OMP_NUM_THREADS']} threads")
  with tempfile.TemporaryDirectory() as folder:
    library = build(folder)
    records = []
    for op in ("linear_scan", "rg_lru"):
      for record in compare(library, op, tuple(options.shape), options.rounds):
        records.append(record)
        print(
          f"{op:12} {record['direction']:21} C {record['c_ms']:7.1f} ms  JAX "
          f"{record['jax_ms']:7.1f} ms  ratio {record['ratio']:.2f}",
          flush=True,
        )
  if options.output:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json_files.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
  main()
