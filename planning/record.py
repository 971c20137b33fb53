"""A plan: what one program on some hardware needs of memory, time and network."""

from __future__ import annotations

import dataclasses
from typing import Any

from models import accounting
from planning.replay.timeline import OperationTime, Timeline


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
  """The collectives of one kind along the same mesh axes, summed over one run of the program.

  Attributes:
    kind: such as 'all-reduce'.
    axes: the mesh axes, joined by '+'.
    count: how many run.
    sent: bytes that each device sends.
  """

  kind: str
  axes: str
  count: int
  sent: float


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes that one device holds.

  Attributes:
    parameter_bytes: the parameters; in decoding both copies, if there are two.
    optimizer_bytes, state_bytes, batch_bytes: the program's other arguments: optimizer state,
      decode state or the states that training carries, tokens.
    result_bytes: results that are not aliased to an argument.
    twice_bytes: donated bytes that XLA did not alias, so that old and new are both in memory.
    temporary_bytes: temporary memory of the compiled program at its peak.
    activation_bytes, gradient_bytes: the largest parts of the temporaries in training: what
      autodiff keeps for the backward pass, and gradients in float32. XLA may need less of either:
      not all are alive at the peak.
    host_bytes: host memory for offloaded activations.
    available: memory of a device that a process can use.
    share: that memory as a share of the device's; on GPUs, JAX's memory fraction.
  """

  parameter_bytes: int
  optimizer_bytes: int
  state_bytes: int
  batch_bytes: int
  result_bytes: int
  twice_bytes: int
  temporary_bytes: int
  activation_bytes: int
  gradient_bytes: int
  host_bytes: int
  available: float
  share: float

  @property
  def bytes(self) -> int:
    """Peak memory of a device."""
    held = self.parameter_bytes + self.optimizer_bytes + self.state_bytes + self.batch_bytes
    return held + self.result_bytes + self.temporary_bytes

  @property
  def fits(self) -> bool:
    """Whether the peak fits into a device's memory."""
    return self.bytes <= self.available


@dataclasses.dataclass(frozen=True)
class Roofline:
  """The least time of a program for each resource of a device, and what follows from it.

  Attributes:
    model_flops: FLOPs of the model's matrix products, forward and backward, without recomputation.
    counted_flops: FLOPs of the matrix products in the compiled program, except inside Pallas
      kernels.
    hbm_bytes: bytes that the operations of the compiled program read and write in HBM.
    compute_seconds, hbm_seconds, interconnect_seconds: the least time for each alone.
    peak_flops: FLOP/s of a device.
    tokens: tokens that the program reads or generates, on all devices.
  """

  model_flops: float
  counted_flops: float
  hbm_bytes: float
  compute_seconds: float
  hbm_seconds: float
  interconnect_seconds: float
  peak_flops: float
  tokens: int

  @property
  def seconds(self) -> float:
    """Roofline time: compute, memory and network overlap perfectly."""
    return max(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

  @property
  def cost(self) -> float:
    """Seconds by which a search orders its candidates; see `cost`."""
    return cost(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

  @property
  def limit(self) -> str:
    """The resource that limits the roofline time: compute, HBM or interconnect."""
    times = {
      "compute": self.compute_seconds,
      "HBM": self.hbm_seconds,
      "interconnect": self.interconnect_seconds,
    }
    return max(times, key=lambda name: times[name])

  @property
  def tokens_per_second(self) -> float:
    """Tokens per second of all devices, at the roofline time."""
    return self.tokens / self.seconds

  @property
  def mfu(self) -> float:
    """MFU at the roofline time."""
    return accounting.mfu(self.model_flops, self.peak_flops, self.seconds)


@dataclasses.dataclass(frozen=True)
class Expected:
  """The time of a program by a replay of the compiler's schedule (`planning.replay`).

  Attributes:
    seconds: the time.
    shares: share of the time by `planning.replay.timeline.CATEGORIES`.
    largest: the operations that take most of it.
    unmodelled: seconds of operations that no rule was made for, by opcode.
    model_flops, peak_flops, tokens: see `Roofline`.
  """

  seconds: float
  shares: dict[str, float]
  largest: tuple[OperationTime, ...]
  unmodelled: dict[str, float]
  model_flops: float
  peak_flops: float
  tokens: int

  @property
  def tokens_per_second(self) -> float:
    """Tokens per second of all devices, at the expected time."""
    return self.tokens / self.seconds

  @property
  def mfu(self) -> float:
    """MFU at the expected time."""
    return accounting.mfu(self.model_flops, self.peak_flops, self.seconds)


@dataclasses.dataclass(frozen=True)
class XlaCounts:
  """XLA's own counts of a program beside ours, which they check.

  Attributes:
    once_flops, xla_flops: `Roofline.counted_flops` with each loop body counted once; and XLA's
      count, which does that and adds elementwise operations, or None if XLA has none.
    once_bytes, xla_bytes: bytes read and written in any memory, with each loop body counted once,
      plus `again_bytes` and minus `unseen_bytes`; and XLA's count of the same.
    again_bytes: operands that XLA counts twice, at the end of asynchronous operations.
    unseen_bytes: by name, bytes moved by kernels that report no cost to XLA.
    optimal_seconds: XLA's estimate of the time, loop bodies counted once; None if it has none.
  """

  once_flops: float
  xla_flops: float | None
  once_bytes: float
  xla_bytes: float | None
  again_bytes: float
  unseen_bytes: dict[str, int]
  optimal_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory and time of one program on some hardware; bytes and FLOPs are per device.

  Attributes:
    step: 'train' (one step), 'evaluate' (a batch), 'prefill' (a batch of prompts) or 'decode' (one
      token per prompt).
    hardware, topology: the hardware's name, and how its devices are connected.
    devices: number of devices.
    model: name of the model's file, or of the run.
    parameters: number of parameters.
    mesh: sizes of the mesh axes.
    zero: ZeRO stage. Below 3, prefill and decode split parameters over `model` only.
    remat, grad_accum_steps: as configured; None except in training.
    batch_size, length: rows, and tokens per row.
    collectives: the program's collectives.
    compile_seconds: time to trace and compile.
    memory, roofline, expected, xla: see the classes.
    timeline: the replay of the program; not part of `record`.
  """

  step: str
  hardware: str
  topology: str
  devices: int
  model: str
  parameters: int
  mesh: dict[str, int]
  zero: int
  remat: str | None
  grad_accum_steps: int | None
  batch_size: int
  length: int
  collectives: tuple[CollectiveTotal, ...]
  compile_seconds: float
  memory: Memory
  roofline: Roofline
  expected: Expected
  xla: XlaCounts
  timeline: Timeline | None = dataclasses.field(default=None, repr=False, compare=False)

  def record(self) -> dict[str, Any]:
    """Converts the plan and its derived figures to plain values, in one flat object."""
    values = dataclasses.asdict(dataclasses.replace(self, timeline=None))
    del values["timeline"]
    expected = values.pop("expected")
    for part in ("memory", "roofline", "xla"):
      values |= values.pop(part)
    values |= {name: getattr(self.memory, name) for name in ("bytes", "fits")}
    values |= {
      name: getattr(self.roofline, name) for name in ("seconds", "cost", "tokens_per_second")
    }
    # The keys that files of earlier versions have.
    values["accumulate"] = values.pop("grad_accum_steps")
    values["memory"], values["memory_share"] = values.pop("available"), values.pop("share")
    values |= {"bound": self.roofline.limit, "utilisation": self.roofline.mfu}
    return values | {
      "expected_seconds": self.expected.seconds,
      "expected_tokens_per_second": self.expected.tokens_per_second,
      "expected_utilisation": self.expected.mfu,
      "expected_shares": expected["shares"],
      "largest_operations": expected["largest"],
      "unmodelled_seconds": expected["unmodelled"],
    }


def cost(compute: float, hbm: float, interconnect: float) -> float:
  """Roofline time plus 10% of the rest, in seconds: overlap is never perfect."""
  longest = max(compute, hbm, interconnect)
  return longest + 0.1 * (compute + hbm + interconnect - longest)
