"""The times of kernels that the replay takes from their instructions."""

from __future__ import annotations

import pytest

from planning.hardware import catalogue
from planning.hlo import text
from planning.replay import kernels
from planning.replay.replay import replay

V5E = catalogue.hardware("v5e-8")


def test_the_delta_rule_takes_its_instructions_where_they_take_longer_than_its_bytes():
  tile = "bf16[1,4,1024,128]{3,2,1,0}"
  call = 'custom-call(%q), custom_call_target="tpu_custom_call"'
  program = text.HloProgram(
    "HloModule test, is_scheduled=true\n\n"
    f"ENTRY %main (q: {tile}) -> {tile} {{\n"
    f"  %q = {tile} parameter(0)\n"
    f"  ROOT %jvp_delta_rule_head_forward_.1 = {tile} {call}\n}}\n"
  )
  found = replay(program, V5E)
  bundles = kernels.DELTA_RULE_BUNDLES["v5e"]["head"][0]
  assert found.seconds == pytest.approx(4 * 128 * bundles / V5E.pace.clock)
  assert not found.unmodelled
