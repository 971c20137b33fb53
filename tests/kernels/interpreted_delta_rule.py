"""The delta rule's Pallas TPU kernels, run by Pallas' interpreter, under the name `pallas_tpu`.

Models find it on a CPU after `install`.
"""

from __future__ import annotations

from kernels import delta_rule as door
from kernels.delta_rule import pallas_tpu
from kernels.platform import Implementation


def delta_rule(*arguments):
  """See `kernels.delta_rule.delta_rule`."""
  return pallas_tpu.fused(*arguments, interpret=True)


def install() -> None:
  """Makes `pallas_tpu` the interpreted kernels, in this process."""
  door.IMPLEMENTATIONS["pallas_tpu"] = Implementation(__name__)
