"""The replay of compiled programs: what overlaps, what waits, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from kernels.attention import splash
from planning.hardware import catalogue
from planning.hlo import text
from planning.replay import kernels
from planning.replay import timeline as lines
from planning.replay.replay import replay
from tests.planning.compiled_programs import bfloat16, compiled, needs_libtpu

V5E = catalogue.hardware("v5e-8")
# A gibibyte moves in so many seconds.
HBM = 2**30 / (V5E.chip.bandwidth * V5E.pace.bandwidth_share)


def program(entry: str, others: str = "") -> text.HloProgram:
  header = "HloModule test, is_scheduled=true\n\n"
  return text.HloProgram(f"{header}{others}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{entry}\n}}\n")


def product(cycles: int, name: str = "dot.1") -> str:
  config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
  return (
    f"  %{name} = f32[8,8]{{1,0:S(1)}} dot(%a, %a), lhs_contracting_dims={{1}}, "
    f"rhs_contracting_dims={{0}}, {config}"
  )


ARGUMENT = "  %a = f32[8,8]{1,0:S(1)} parameter(0)\n  %p = f32[268435456]{0} parameter(1)\n"
PREFETCH = "  %start.1 = (f32[268435456]{0:S(1)}, f32[268435456]{0}, u32[]) copy-start(%p)\n"
WAIT = "  %done.1 = f32[268435456]{0:S(1)} copy-done(%start.1)\n"


def test_a_product_takes_the_compiler_s_cycles():
  found = replay(program(ARGUMENT + product(1_500_000)), V5E)
  assert found.seconds == pytest.approx(1e-3 * V5E.pace.product_share)
  assert found.shares() == {lines.PRODUCTS: pytest.approx(1.0)}


def test_a_copy_runs_beside_the_core_until_it_is_waited_for():
  short, long = (
    replay(program(ARGUMENT + PREFETCH + product(n) + "\n" + WAIT), V5E)
    for n in (150_000, 150_000_000)
  )
  # The copy takes longer than the short product, and less than the long one.
  assert short.seconds == pytest.approx(HBM)
  assert short.shares()[lines.COPIES] == pytest.approx(1 - 1e-4 * V5E.pace.product_share / HBM)
  assert long.seconds == pytest.approx(0.1 * V5E.pace.product_share)
  assert lines.COPIES not in long.shares()


def test_a_copy_stands_still_while_the_core_is_limited_by_the_memory():
  add = "  %add.1 = f32[268435456]{0} add(%p, %p)\n"
  found = replay(program(ARGUMENT + PREFETCH + add + WAIT), V5E)
  # The core reads the array twice and writes it once.
  assert found.seconds == pytest.approx((3 + 1) * HBM)


UPDATE = """%update (p: f32[8,268435456], u: f32[1,67108864], i: s32[]) -> f32[8,268435456] {
  %p = f32[8,268435456]{1,0:S(5)} parameter(0)
  %u = f32[1,67108864]{1,0} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %d = f32[8,268435456]{1,0:S(5)} dynamic-update-slice(%p, %u, %i, %i)
}
"""


@pytest.mark.parametrize(
  "start",
  [
    "async-start(%h, %u, %i), calls=%update",
    "dynamic-update-slice-start(%h, %u, %i, %i)",
  ],
)
def test_what_goes_to_the_host_takes_the_time_of_the_slice(start):
  results = (
    "((f32[8,268435456]{1,0:S(5)}, f32[1,67108864]{1,0}, s32[]{:T(128)}), "
    "f32[8,268435456]{1,0:S(5)}, u32[]{:S(2)})"
  )
  entry = f"""  %h = f32[8,268435456]{{1,0:S(5)}} parameter(0)
  %u = f32[1,67108864]{{1,0}} parameter(1)
  %i = s32[]{{:T(128)}} parameter(2)
  %start.1 = {results} {start}
  %done.1 = f32[8,268435456]{{1,0:S(5)}} async-done(%start.1)
"""
  found = replay(program(entry, UPDATE), V5E)
  assert found.seconds == pytest.approx(2**28 / V5E.pace.host_link)
  assert found.shares() == {lines.HOST: pytest.approx(1.0)}


@pytest.mark.parametrize(
  ("strategy", "directions", "rounds"),
  [
    # As libtpu writes it: the line break is two characters.
    (r"\nUniDirectionNDRingStrategy{colors:4 phases:2 cores:{4 4},{4 4}", 4, 6),
    (r"\nUniDirection1DRingStrategy{colors:2 phases:1 cores:{16},{16}", 2, 15),
    (r"\nStrategyND{colors:2 phases:2 cores:{4 4},{4 4}", 4, 6),
    (r"\nStrategyRing{colors:1 phases:1 cores:{16}", 2, 15),
    ("", 2, 15),
  ],
)
def test_a_sum_takes_the_rings_that_xla_names(strategy, directions, rounds):
  hardware = catalogue.hardware("v5e-16")
  attributes = f'replica_groups=[1,16]<=[16], to_apply=%sum, "debug":"{strategy}"'
  entry = "  %a = bf16[33554432]{0} parameter(0)\n"
  entry += f"  ROOT %all-reduce.1 = bf16[33554432]{{0}} all-reduce(%a), {attributes}"
  found = replay(program(entry), hardware)
  one_way = hardware.chip.link / 2 * hardware.pace.link_share
  sent = 2 * 15 / 16 * 2**26
  expected = sent / (directions * one_way) + 2 * rounds * hardware.pace.hop
  assert found.seconds == found.network == pytest.approx(expected)


def test_each_end_waits_for_its_own_start():
  """Two gathers in flight: what carries one along does not lead to the other's start."""
  gather = """%begin.N (a: bf16[1048576]) -> (bf16[1048576], bf16[16777216]) {
  %a = bf16[1048576]{0} parameter(0)
  %all-gather.N = bf16[16777216]{0} all-gather(%a), replica_groups=[1,16]<=[16], dimensions={0}
  ROOT %r = (bf16[1048576]{0}, bf16[16777216]{0}) tuple(%a, %all-gather.N)
}
%end.N (a: bf16[16777216]) -> bf16[16777216] {
  ROOT %a = bf16[16777216]{0} parameter(0)
}
"""
  carried = """%async_collective_fusion.1 (a: bf16[16777216], b: f32[8,8]) -> (bf16[16777216], f32[8,8]) {
  %a = bf16[16777216]{0} parameter(0)
  %b = f32[8,8]{1,0:S(1)} parameter(1)
  ROOT %r = (bf16[16777216]{0}, f32[8,8]{1,0:S(1)}) tuple(%a, %b)
}
"""
  entry = """  %a = bf16[1048576]{0} parameter(0)
  %b = f32[8,8]{1,0:S(1)} parameter(1)
  %async-collective-start.1 = (bf16[1048576]{0}, bf16[16777216]{0}) fusion(%a), kind=kCustom, calls=%begin.1
  %async-collective-start.2 = (bf16[1048576]{0}, bf16[16777216]{0}) fusion(%a), kind=kCustom, calls=%begin.2
  %first = bf16[16777216]{0} get-tuple-element(%async-collective-start.1), index=1
  %second = bf16[16777216]{0} get-tuple-element(%async-collective-start.2), index=1
  %fusion.1 = (bf16[16777216]{0}, f32[8,8]{1,0:S(1)}) fusion(%second, %b), kind=kOutput, output_to_operand_aliasing={{0}: (0, {})}, calls=%async_collective_fusion.1
  %on = bf16[16777216]{0} get-tuple-element(%fusion.1), index=0
  %async-collective-done.2 = bf16[16777216]{0} fusion(%on), kind=kCustom, calls=%end.2
  %async-collective-done.1 = bf16[16777216]{0} fusion(%first), kind=kCustom, calls=%end.1
"""
  others = gather.replace(".N", ".1") + gather.replace(".N", ".2") + carried
  found = replay(program(entry, others), catalogue.hardware("v5e-16"))
  (waited,) = (event for event in found.events if event.resource == lines.CORE)
  assert waited.name == "async-collective-done.2"  # the first gather has ended by then
  assert found.seconds == pytest.approx(found.network)


def test_what_a_sparse_core_gathers_takes_the_network_once_its_operands_are_there():
  """Its start only makes ready; a custom call stands for the collective."""
  group = "replica_groups=[1,16]<=[16], dimensions={0}"
  other = f"""%gather (a: bf16[1048576]) -> bf16[16777216] {{
  %a = bf16[1048576]{{0}} parameter(0)
  ROOT %all-gather.1 = bf16[16777216]{{0}} all-gather(%a), {group}
}}
%async (a: bf16[1048576]) -> bf16[16777216] {{
  %a = bf16[1048576]{{0}} parameter(0)
  ROOT %call.1 = bf16[16777216]{{0}} custom-call(%a), called_computations={{%gather}}
}}
"""
  entry = ARGUMENT + "  %b = bf16[1048576]{0} parameter(2)\n"
  entry += "  %start.1 = ((), (), s32[8]{0}) async-start(), calls=%async\n"
  entry += product(15_000_000) + "\n"
  entry += "  %update.1 = ((bf16[1048576]{0}), bf16[16777216]{0}) async-update(%start.1, %b)\n"
  entry += "  ROOT %done.1 = bf16[16777216]{0} async-done(%update.1)"
  direct = "  %b = bf16[1048576]{0} parameter(0)\n"
  direct += f"  ROOT %all-gather.2 = bf16[16777216]{{0}} all-gather(%b), {group}"
  v5e = catalogue.hardware("v5e-16")
  carried = replay(program(entry, other), v5e)
  alone = replay(program(direct), v5e)
  assert carried.network == alone.network == pytest.approx(alone.seconds)
  # The product stands before the update.
  assert carried.seconds == pytest.approx(0.01 * v5e.pace.product_share + alone.seconds)


def test_a_loop_of_unknown_length_is_named():
  body = """%body (t: (f32[8,8])) -> (f32[8,8]) {
  %t = (f32[8,8]{1,0:S(1)}) parameter(0)
  %a = f32[8,8]{1,0:S(1)} get-tuple-element(%t), index=0
PRODUCT
  ROOT %r = (f32[8,8]{1,0:S(1)}) tuple(%dot.1)
}
%condition (t: (f32[8,8])) -> pred[] {
  %t = (f32[8,8]{1,0:S(1)}) parameter(0)
  ROOT %c = pred[] not(%t)
}
""".replace("PRODUCT", product(1_500_000))
  loop = "  %while.1 = (f32[8,8]) while(%a), condition=%condition, body=%body"
  found = replay(program(ARGUMENT + loop, body), V5E)
  assert found.unmodelled == {"while, taken to run once": pytest.approx(found.seconds)}


def test_two_copies_share_the_engine():
  twice = PREFETCH + PREFETCH.replace("start.1", "start.2") + WAIT
  twice += WAIT.replace("done.1", "done.2").replace("start.1", "start.2")
  assert replay(program(ARGUMENT + twice), V5E).seconds == pytest.approx(2 * HBM)


def test_a_loop_s_body_takes_its_time_in_every_turn():
  body = """%body (t: (f32[8,8])) -> (f32[8,8]) {
  %t = (f32[8,8]{1,0:S(1)}) parameter(0)
  %a = f32[8,8]{1,0:S(1)} get-tuple-element(%t), index=0
PRODUCT
  ROOT %r = (f32[8,8]{1,0:S(1)}) tuple(%dot.1)
}
%condition (t: (f32[8,8])) -> pred[] {
  %t = (f32[8,8]{1,0:S(1)}) parameter(0)
  ROOT %c = pred[] constant(true)
}
""".replace("PRODUCT", product(1_500_000))
  loop = "  %while.1 = (f32[8,8]) while(%a), condition=%condition, body=%body, backend_config={"
  loop += '"known_trip_count":{"n":"7"}}'
  found = replay(program(ARGUMENT + loop, body), V5E)
  assert found.seconds == pytest.approx(7e-3 * V5E.pace.product_share)
  (one,) = found.largest(5)
  assert (one.times, one.seconds) == (7, pytest.approx(found.seconds))


def test_the_longest_branch_is_taken():
  branches = "".join(
    f"%branch.{i} (a: f32[8,8]) -> f32[8,8] {{\n  %a = f32[8,8]{{1,0:S(1)}} parameter(0)\n"
    f"{product(cycles)}\n}}\n"
    for i, cycles in enumerate((1_500_000, 3_000_000))
  )
  choice = "  %c = f32[8,8] conditional(%i, %a, %a), branch_computations={%branch.0, %branch.1}"
  found = replay(program(ARGUMENT + choice, branches), V5E)
  assert found.seconds == pytest.approx(2e-3 * V5E.pace.product_share)
  assert len(found.events) == 1


def test_a_kernel_s_metadata_over_several_lines_is_read():
  lines_of_text = ARGUMENT + (
    "  %copy.1 = f32[268435456]{0} copy(%p), frontend_attributes={kernel_metadata={\n"
    '"xprof_metadata":"{}"\n'
    '}}, metadata={op_name="jit(step)/kernel"}, backend_config={"estimated_cycles":"12"}'
  )
  operation = program(lines_of_text).computations["main"]["copy.1"]
  assert (operation.source, operation.cycles) == ("jit(step)/kernel", 12)


def test_a_gpu_s_products_take_their_share_of_the_peak_rate():
  h200 = catalogue.hardware("h200-8")
  entry = "  %a = bf16[8192,8192]{1,0} parameter(0)\n  ROOT %dot.1 = bf16[8192,8192]{1,0} "
  entry += "dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
  least = 2 * 8192**3 / h200.chip.flops
  assert replay(program(entry), h200).seconds == pytest.approx(least / h200.pace.product_share)


def test_a_program_without_a_schedule_is_refused():
  lowered = "HloModule test\n\nENTRY %main (p: f32[8]) -> f32[8] {\n"
  lowered += "  ROOT %p = f32[8]{0} parameter(0)\n}\n"
  with pytest.raises(ValueError, match=r"is not scheduled.*Take the text of the compiled program"):
    replay(text.HloProgram(lowered), V5E)


def test_what_has_no_rule_is_named():
  found = replay(
    program("  %p = f32[268435456]{0} parameter(0)\n  %s = f32[268435456]{0} sort(%p)"), V5E
  )
  assert found.unmodelled == {"sort": pytest.approx(2 * HBM)}


def test_the_trace_is_what_viewers_open():
  found = replay(program(ARGUMENT + PREFETCH + product(150_000) + "\n" + WAIT), V5E)
  events = json.loads(found.trace("a step"))["traceEvents"]
  names = {e["args"]["name"] for e in events if e["ph"] == "M"}
  assert names == {"a step", *lines.RESOURCES}
  timed = {e["name"]: e for e in events if e["ph"] == "X"}
  assert timed.keys() == {"start.1", "dot.1", "done.1"}
  assert timed["start.1"]["dur"] == pytest.approx(1e6 * HBM)
  assert timed["done.1"]["ts"] == pytest.approx(timed["dot.1"]["dur"])


@needs_libtpu
@pytest.mark.parametrize("name", ["v3-8", "v4-8", "v5e-8", "v5p-8", "v6e-8"])
def test_large_products_come_near_the_peak_rate(name):
  found = compiled(name, lambda x, y: jax.nn.gelu(x @ y) @ y, *[bfloat16(4096, 4096)] * 2)
  least = 2 * 2 * 4096**3 / catalogue.hardware(name).chip.flops
  assert least <= found.seconds < 1.35 * least
  assert found.shares()[lines.PRODUCTS] > 0.8


@needs_libtpu
def test_a_device_of_a_tpu7x_multiplies_at_half_of_the_chip_s_rate():
  found = compiled("tpu7x-8", lambda x, y: x @ y, *[bfloat16(4096, 4096)] * 2)
  least = 2 * 4096**3 / (2307e12 / 2)
  assert least <= found.seconds < 1.2 * least


@needs_libtpu
def test_elementwise_work_is_limited_by_the_memory():
  found = compiled("v5e-8", lambda x: x + 1, bfloat16(16384, 16384))
  assert found.seconds == pytest.approx(2 * 2 * 16384**2 / 2**30 * HBM, rel=0.02)
  assert found.shares() == {lines.MEMORY: pytest.approx(1.0)}


@needs_libtpu
def test_a_gather_is_hidden_behind_a_product_or_exposed():
  split = [PartitionSpec("data"), PartitionSpec()]

  def gather(w, x):
    return jax.lax.all_gather(w, "data", tiled=True), x @ x

  shown, hidden = (
    compiled("v5e-16", gather, bfloat16(4096, 4096), bfloat16(n, n), shape=(16,), specs=split)
    for n in (256, 8192)
  )
  hardware = catalogue.hardware("v5e-16")
  sent = 15 / 16 * 2 * 4096**2 / (hardware.chip.link * hardware.pace.link_share)
  least = 2 * 8192**3 / hardware.chip.flops
  assert sent < shown.seconds < 1.5 * sent + 1e-4
  assert shown.shares()[lines.COLLECTIVES] > 0.5
  assert hidden.seconds < 1.2 * least + 1e-4
  assert hidden.shares().get(lines.COLLECTIVES, 0.0) < 0.05


@needs_libtpu
def test_a_sum_over_a_whole_slice_takes_all_axes_of_the_torus():
  """Over 16 x 16, two colours take both axes, in both directions each: twice the rate of a ring."""

  def total(x):
    return jax.lax.psum(x, "data")

  found = compiled("v5e-256", total, bfloat16(4096, 16384), shape=(256,))
  hardware = catalogue.hardware("v5e-256")
  one_ring = 2 * 255 / 256 * 2 * 4096 * 16384 / (hardware.chip.link * hardware.pace.link_share)
  spent = found.shares()[lines.COLLECTIVES] * found.seconds
  assert spent == pytest.approx(one_ring / 2 + 60 * hardware.pace.hop, rel=0.02)


@needs_libtpu
@pytest.mark.parametrize(
  ("rows", "window", "blocks", "bundles"), [(1, None, 36, 994), (2, 1024, 21, 1355)]
)
def test_attention_takes_the_bundles_of_the_blocks_that_it_visits(rows, window, blocks, bundles):
  def attend(q, k, ids):
    return splash.attention(q, k, k, ids, ids, window, 0.1)

  heads, length = 4, 4096
  q, k = bfloat16(rows, length, heads, 128), bfloat16(rows, length, 1, 128)
  found = compiled("v6e-8", attend, q, k, jax.ShapeDtypeStruct((rows, length), jnp.int32))
  kernel = next(o for o in found.largest(20) if o.category == lines.KERNELS)
  # The blocks of 512 x 512, beside the steps of the grid.
  least = rows * heads * blocks * bundles / 1.75e9
  assert least < kernel.seconds < 1.4 * least


@needs_libtpu
def test_the_bundles_of_attention_are_those_of_the_compiler():
  command = [sys.executable, "-m", "benchmarks.attention_bundles", "v6e"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  for kernel, known in kernels.SPLASH_BUNDLES["v6e"].items():
    found = re.search(rf"{kernel} \(([\d, ]+)\)", done.stdout)
    assert found
    # Compilers of other versions schedule a little differently.
    assert [int(n) for n in found[1].split(",")] == pytest.approx(known, rel=0.15)
