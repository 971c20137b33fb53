"""Plans as text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from base.wording import plural
from experiment.describe import show_bytes, table
from planning.hardware import gpu
from planning.plan import Plan

_UNITS = {"train": "step", "prefill": "prefill", "decode": "token"}


def tell(text: str) -> None:
  """Prints a progress line on stderr."""
  print(text, file=sys.stderr, flush=True)


def line(found: Plan) -> str:
  """Formats a plan as one line."""
  return (
    f"{mesh(found.mesh)}, {_choices(found)}: {found.bytes / 2**30:.2f} of "
    f"{found.memory / 2**30:.0f} GiB, {found.seconds:.3f} s ({found.roofline})"
  )


def side_by_side(plans: Sequence[Plan]) -> str:
  """Formats plans as a table, one row per plan."""
  first = plans[0]
  unit = _UNITS[first.step]
  rows = [
    (
      "model",
      "parameters",
      "mesh",
      "choices",
      "memory per device",
      "fits",
      f"s per {unit}",
      "limited by",
      "sent per device",
      "tokens/s",
      "MFU",
    )
  ]
  rows += [
    (
      found.model,
      f"{found.parameters / 1e9:.3g} B",
      mesh(found.mesh),
      _choices(found),
      show_bytes(found.bytes),
      "yes" if found.fits else "NO",
      f"{found.seconds:.4f}",
      found.roofline,
      show_bytes(sum(one.sent for one in found.collectives)),
      f"{found.tokens_per_second:,.0f}",
      f"{found.mfu:.1%}",
    )
    for found in plans
  ]
  head = (
    f"{first.hardware} ({first.topology}), {plural(first.devices, 'device')} of "
    f"{show_bytes(first.memory)}; "
    f"{first.step}, {plural(first.batch_size, 'row')} of {plural(first.length, 'token')}"
  )
  return f"{head}\n\n{table(rows, right=(1, 4, 6, 8, 9, 10))}"


def one(found: Plan) -> str:
  """Formats a plan in full: memory, collectives, times and XLA's counts."""
  unit = _UNITS[found.step]
  head = [
    ("hardware", f"{found.hardware} ({found.topology}), {plural(found.devices, 'device')}"),
    ("program", found.step),
    ("mesh", mesh(found.mesh)),
    ("choices", _choices(found)),
    ("batch", f"{plural(found.batch_size, 'row')} of {plural(found.length, 'token')}"),
  ]
  sent = [("collective", "mesh axis", "count", "bytes sent per device")]
  sent += [
    (one.kind, one.axes or "-", f"{one.count:,}", show_bytes(one.sent)) for one in found.collectives
  ]
  times = [
    ("compute", _duration(found.compute_seconds)),
    ("HBM", f"{_duration(found.hbm_seconds)} ({show_bytes(found.hbm_bytes)})"),
    ("interconnect", _duration(found.interconnect_seconds)),
    ("roofline", f"{_duration(found.seconds)} per {unit}, limited by {found.roofline}"),
    ("tokens per second", f"{found.tokens_per_second:,.0f}"),
    ("MFU", f"{found.mfu:.1%}"),
    ("FLOPs per device, model", f"{found.model_flops:.4g}"),
    ("FLOPs per device, compiled matrix products", f"{found.counted_flops:.4g}"),
  ]
  for name, ours, theirs in (
    ("FLOPs, loop bodies once: ours / XLA's", found.once_flops, found.xla_flops),
    ("bytes accessed, loop bodies once: ours / XLA's", found.once_bytes, found.xla_bytes),
  ):
    if theirs is not None:
      times.append((name, f"{ours:.4g} / {theirs:.4g}"))
  if found.xla_bytes is not None:
    if found.again_bytes:
      again = "  operands counted twice at async-done, in both"
      times.append((again, f"{found.again_bytes:.4g}"))
    for name, size in found.unseen_bytes.items():
      times.append((f"  unknown to XLA, in neither: {name}", f"{size:.4g}"))
  if found.optimal_seconds is not None:
    times.append(("XLA's optimal_seconds, loop bodies once", _duration(found.optimal_seconds)))
  times.append(("compile time", f"{found.compile_seconds:.1f} s"))
  return "\n\n".join(
    [
      table(head, right=()),
      table(_memory(found), right=(1,)),
      table(sent, right=(2, 3)),
      table(times, right=()),
    ]
  )


def _memory(found: Plan) -> list[tuple[str, str]]:
  over = found.memory - found.bytes
  held = [
    ("parameters", found.parameter_bytes),
    ("optimizer state", found.optimizer_bytes),
    ("decode state", found.state_bytes),
    ("batch", found.batch_bytes),
    ("results", found.result_bytes),
  ]
  rows = [(name, show_bytes(size)) for name, size in held if size]
  rows.append(("temporaries", show_bytes(found.temporary_bytes)))
  if found.step == "train":
    rows.append(("  activations kept for the backward pass", show_bytes(found.activation_bytes)))
    rows.append(("  gradients", show_bytes(found.gradient_bytes)))
  if found.host_bytes:
    rows.append(("offloaded to the host", show_bytes(found.host_bytes)))
  rows += [
    ("total per device", f"{show_bytes(found.bytes)} of {show_bytes(found.memory)}"),
    (
      "fits" if found.fits else "DOES NOT FIT",
      f"{show_bytes(abs(over))} {'left' if over >= 0 else 'too much'}",
    ),
  ]
  if found.memory_share < 1:
    setting = f"{gpu.FRACTION_VARIABLE}={found.memory_share}"
    rows.append(("JAX's share of the device", f"{setting} (set by the commands)"))
  if found.step != "prefill":
    twice = found.twice_bytes
    where = "all of it" if not twice else f"all but {show_bytes(twice)}, in memory twice"
    rows.append(("state updated in place", where))
  return rows


def _duration(seconds: float) -> str:
  """Formats a time; short ones in microseconds, since steps of small models take those."""
  return f"{seconds:.4f} s" if seconds >= 0.01 else f"{seconds * 1e6:,.1f} us"


def mesh(sizes: dict[str, int]) -> str:
  """Formats the axes of a mesh."""
  return " x ".join(f"{name}={size}" for name, size in sizes.items())


def choices(zero: int, remat: str, grad_accum_steps: int) -> str:
  """Formats ZeRO stage, remat policy and microbatches."""
  pieces = plural(grad_accum_steps, "microbatch", "microbatches")
  return f"ZeRO {zero}, remat {remat}, {pieces}"


def _choices(found: Plan) -> str:
  if found.remat is None or found.grad_accum_steps is None:
    return "-"  # No training.
  return choices(found.zero, found.remat, found.grad_accum_steps)
