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


@pytest.mark.parametrize(
  ("name", "instructions_decide"), [("v3-8", True), ("v5e-8", False), ("tpu7x-8", True)]
)
def test_a_recurrence_takes_the_longer_of_its_bytes_and_its_instructions(name, instructions_decide):
  hardware = catalogue.hardware(name)
  tile = "bf16[1,4096,2048]{2,1,0}"
  program = text.HloProgram(
    "HloModule test, is_scheduled=true\n\n"
    f"ENTRY %main (x: {tile}, a: {tile}, i: {tile}) -> {tile} {{\n"
    f"  %x = {tile} parameter(0)\n  %a = {tile} parameter(1)\n  %i = {tile} parameter(2)\n"
    f"  ROOT %rg_lru_forward.1 = {tile} custom-call(%x, %a, %i), "
    'custom_call_target="tpu_custom_call"\n}\n'
  )
  found = replay(program, hardware)
  elements = 4096 * 2048
  bundles = kernels.RECURRENCE_BUNDLES[hardware.pace.generation]["rg_lru"][0]
  instructions = elements / 1024 * bundles / hardware.pace.clock
  memory = 8 * elements / (hardware.chip.bandwidth * hardware.pace.bandwidth_share)
  assert (instructions > memory) == instructions_decide
  assert found.seconds == pytest.approx(max(instructions, memory))
  assert not found.unmodelled


@pytest.mark.parametrize(
  ("kernel", "table", "length", "keys", "visited", "has_window"),
  [
    ("fwd", (1, 8, 8), 4096, 4096, 36, False),
    ("dq", (1, 8, 3), 4096, 4096, 21, True),
    ("dkv", (1, 3, 8), 4096, 4096, 21, True),
    # Time split over four devices: a quarter of the queries, and all keys until theirs.
    ("fwd", (1, 2, 8), 1024, 4096, 15, False),
    # A halo of 128 keys: blocks of keys have 128.
    ("fwd", (1, 2, 5), 1024, 1152, 10, True),
  ],
)
def test_the_blocks_that_attention_visits(kernel, table, length, keys, visited, has_window):
  arrays = [("s8", table), ("s8", table), ("bf16", (2, 4, length, 128)), ("bf16", (2, keys, 128))]
  found = kernels.attention_of(arrays, kernel)
  assert found is not None
  assert (found.rows, found.heads, found.channels) == (2, 4, 128)
  assert (found.visited, found.has_window) == (visited, has_window)
  # A single row has no axis of its own, nor has a single key/value head then.
  arrays[2:] = ("bf16", (4, length, 128)), ("bf16", (keys, 128))
  alone = kernels.attention_of(arrays, kernel)
  assert alone == found._replace(rows=1)
