"""Plans as text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from base.wording import plural
from experiment.describe import show_bytes, table
from planning.hardware import gpu
from planning.record import Plan

_UNITS = {"train": "step", "evaluate": "batch", "prefill": "prefill", "decode": "token"}


def tell(text: str) -> None:
  """Prints a progress line on stderr."""
  print(text, file=sys.stderr, flush=True)


def line(found: Plan) -> str:
  """Formats a plan as one line."""
  memory, roofline = found.memory, found.roofline
  clock = _clock((found.expected.seconds, roofline.seconds))
  return (
    f"{mesh(found.mesh)}, {_choices(found)}: {memory.bytes / 2**30:.2f} of "
    f"{memory.available / 2**30:.0f} GiB, expected {clock(found.expected.seconds)}, "
    f"roofline {clock(roofline.seconds)} ({roofline.limit})"
  )


def side_by_side(plans: Sequence[Plan]) -> str:
  """Formats plans as a table, one row per plan."""
  first = plans[0]
  unit = _UNITS[first.step]
  clock = _clock(time for p in plans for time in (p.expected.seconds, p.roofline.seconds))
  rows = [
    (
      "model",
      "parameters",
      "mesh",
      "choices",
      "memory per device",
      "fits",
      f"expected time per {unit}",
      "tokens/s",
      "MFU",
      "roofline time",
      "limited by",
      "sent per device",
    )
  ]
  rows += [
    (
      found.model,
      f"{found.parameters / 1e9:.3g} B",
      mesh(found.mesh),
      _choices(found),
      show_bytes(found.memory.bytes),
      "yes" if found.memory.fits else "NO",
      clock(found.expected.seconds),
      f"{found.expected.tokens_per_second:,.0f}",
      f"{found.expected.mfu:.1%}",
      clock(found.roofline.seconds),
      found.roofline.limit,
      show_bytes(sum(one.sent for one in found.collectives)),
    )
    for found in plans
  ]
  head = (
    f"{first.hardware} ({first.topology}), {plural(first.devices, 'device')} of "
    f"{show_bytes(first.memory.available)}; "
    f"{first.step}, {plural(first.batch_size, 'row')} of {plural(first.length, 'token')}"
  )
  return f"{head}\n\n{table(rows, right=(1, 4, 6, 7, 8, 9, 11))}"


def one(found: Plan) -> str:
  """Formats a plan in full: memory, collectives, times and XLA's counts."""
  unit, roofline, xla = _UNITS[found.step], found.roofline, found.xla
  clock = _clock((roofline.seconds, found.expected.seconds))
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
    ("compute", clock(roofline.compute_seconds)),
    ("HBM", f"{clock(roofline.hbm_seconds)} ({show_bytes(roofline.hbm_bytes)})"),
    ("interconnect", clock(roofline.interconnect_seconds)),
    (
      "roofline",
      f"{clock(roofline.seconds)} per {unit}, limited by {roofline.limit}",
    ),
    (
      "tokens per second, MFU at the roofline",
      f"{roofline.tokens_per_second:,.0f}, {roofline.mfu:.1%}",
    ),
    ("FLOPs per device, model", f"{roofline.model_flops:.4g}"),
    ("FLOPs per device, compiled matrix products", f"{roofline.counted_flops:.4g}"),
  ]
  for name, ours, theirs in (
    ("FLOPs, loop bodies once: ours / XLA's", xla.once_flops, xla.xla_flops),
    ("bytes accessed, loop bodies once: ours / XLA's", xla.once_bytes, xla.xla_bytes),
  ):
    if theirs is not None:
      times.append((name, f"{ours:.4g} / {theirs:.4g}"))
  if xla.xla_bytes is not None:
    if xla.again_bytes:
      again = "  operands counted twice at async-done, in both"
      times.append((again, f"{xla.again_bytes:.4g}"))
    for name, size in xla.unseen_bytes.items():
      times.append((f"  unknown to XLA, in neither: {name}", f"{size:.4g}"))
  if xla.optimal_seconds is not None:
    times.append(("XLA's optimal_seconds, loop bodies once", clock(xla.optimal_seconds)))
  times.append(("compile time", f"{found.compile_seconds:.1f} s"))
  return "\n\n".join(
    [
      table(head, right=()),
      table(_memory(found), right=(1,)),
      table(sent, right=(2, 3)),
      *_expected(found),
      table(times, right=()),
    ]
  )


def _expected(found: Plan) -> list[str]:
  """Formats the expected time, what it goes to, and the operations that take most of it."""
  expected, unit = found.expected, _UNITS[found.step]
  clock = _clock((expected.seconds, found.roofline.seconds))
  rows = [
    ("expected time", f"{clock(expected.seconds)} per {unit}", ""),
    ("tokens per second", f"{expected.tokens_per_second:,.0f}", ""),
    ("MFU", f"{expected.mfu:.1%}", ""),
  ]
  rows += [
    (f"  {name}", clock(share * expected.seconds), f"{share:.1%}")
    for name, share in expected.shares.items()
  ]
  of_operations = _clock(one.seconds for one in expected.largest)
  largest = [("the largest operations", "runs", "total time", "what", "from")]
  largest += [
    (one.name, f"{one.times:,}", of_operations(one.seconds), one.category, _origin(one.source))
    for one in expected.largest
  ]
  return [table(rows, right=(1, 2)), *_unmodelled(found), table(largest, right=(1, 2))]


def _unmodelled(found: Plan) -> list[str]:
  """Says what has no rule, and how much of the expected time rests on it."""
  expected = found.expected
  # An operation in a loop of unknown length is in the loop's time too.
  share = min(1.0, sum(expected.unmodelled.values()) / expected.seconds)
  if share < 0.0005:
    return []
  return [
    f"not modelled: {', '.join(expected.unmodelled)}; at most {share:.1%} of the expected time. "
    "They count with the least time that they can take: the step may take longer."
  ]


def _origin(source: str) -> str:
  """Shortens JAX's name of an operation to its last parts."""
  return "/".join(source.split("/")[-3:])


def _memory(found: Plan) -> list[tuple[str, str]]:
  memory = found.memory
  over = memory.available - memory.bytes
  held = [
    ("parameters", memory.parameter_bytes),
    ("optimizer state", memory.optimizer_bytes),
    ("carried states" if found.step == "train" else "decode state", memory.state_bytes),
    ("batch", memory.batch_bytes),
    ("results", memory.result_bytes),
  ]
  rows = [(name, show_bytes(size)) for name, size in held if size]
  rows.append(("temporaries", show_bytes(memory.temporary_bytes)))
  if found.step == "train":
    # What the compiler keeps on the chip or computes again, as in small models, is not in HBM.
    elsewhere = memory.activation_bytes > memory.temporary_bytes
    rows.append(
      (
        f"  activations kept for the backward pass{', not all in HBM' if elsewhere else ''}",
        show_bytes(memory.activation_bytes),
      )
    )
    rows.append(("  gradients", show_bytes(memory.gradient_bytes)))
  if memory.host_bytes:
    rows.append(("offloaded to the host", show_bytes(memory.host_bytes)))
  rows += [
    ("total per device", f"{show_bytes(memory.bytes)} of {show_bytes(memory.available)}"),
    (
      "fits" if memory.fits else "DOES NOT FIT",
      f"{show_bytes(abs(over))} {'left' if over >= 0 else 'too much'}",
    ),
  ]
  if memory.share < 1:
    setting = f"{gpu.FRACTION_VARIABLE}={memory.share}"
    rows.append(("JAX's share of the device", f"{setting} (set by the commands)"))
  if found.step != "prefill":
    twice = memory.twice_bytes
    where = "all of it" if not twice else f"all but {show_bytes(twice)}, in memory twice"
    rows.append(("state updated in place", where))
  return rows


def _clock(seconds: Iterable[float]) -> Callable[[float], str]:
  """Returns the format of times that are compared: all in one unit, which suits the longest."""
  longest = max(seconds, default=0.0)
  if longest >= 0.1:
    return lambda time: f"{time:,.4f} s"
  if longest >= 0.01:
    return lambda time: f"{time * 1e3:.3f} ms"
  return lambda time: f"{time * 1e6:,.1f} us"


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
