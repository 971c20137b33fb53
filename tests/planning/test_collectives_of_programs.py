"""Numbers read from the text of compiled programs, against programs with known numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from planning.hardware import catalogue, gpu
from planning.hlo import bytes_accessed, collectives
from planning.hlo import text as hlo

MESH = {"data": 2, "seq": 1, "model": 4}
PROGRAM = """
HloModule jit_f

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %arg = (s32[], f32[8,128]{{1,0}}) parameter(0)
  %x = f32[8,128]{{1,0}} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %all-reduce.1 = f32[8,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add
  ROOT %out = (s32[], f32[8,128]{{1,0}}) tuple(%i, %all-reduce.1)
}}

ENTRY %main (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %p = (s32[], f32[8,128]{{1,0}}) parameter(0)
  ROOT %while.1 = (s32[], f32[8,128]{{1,0}}) while(%p), condition=%cond, body=%body, backend_config={{"known_trip_count":{{"n":"6"}}}}
}}
"""


# As texts of JAX 0.12 have it: elements of a tuple by their number, and no operation that picks
# them.
NUMBERED = PROGRAM.replace(
  """  %x = f32[8,128]{{1,0}} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
""",
  "",
)
NUMBERED = NUMBERED.replace("(%x)", "(%arg#1)").replace("(%i, ", "(%arg#0, ")


def test_elements_of_elements_by_number():
  text = """
ENTRY %main (p: ((f32[8], s32[]), u32[])) -> f32[8] {
  %p = ((f32[8,2]{1,0:T(8,128)}, /*index=1*/s32[]{:T(128)}), u32[]{:S(8)}) parameter(0)
  ROOT %sum = f32[8,2]{1,0} add(%p#0#0, %p#0#0), metadata={op_name="add"}
}
"""
  operations = hlo.HloProgram(text).computations["main"]
  (inner,) = set(operations["sum"].operands)
  assert operations[inner].result == "f32[8,2]{1,0:T(8,128)}"
  (outer,) = operations[inner].operands
  assert hlo.types(operations[outer].result) == ["f32[8,2]{1,0:T(8,128)}", "s32[]{:T(128)}"]
  assert operations[outer].operands == ("p",)


def test_elements_by_number_are_what_operations_picked():
  old, new = (hlo.HloProgram(text.format(groups="{{0,1}}")) for text in (PROGRAM, NUMBERED))
  assert "#" in NUMBERED
  (summed,) = (o for o in new.computations["body"].values() if o.kind == "all-reduce")
  picked = new.computations["body"][summed.operands[0]]
  assert (picked.kind, picked.result, picked.operands) == (
    "get-tuple-element",
    "f32[8,128]{1,0}",
    ("arg",),
  )
  for options in ({}, {"loops": False}, {"everywhere": True}):
    before, after = (bytes_accessed.traffic(program, **options) for program in (old, new))
    assert before.total == after.total > 0
    assert before.again == after.again


@pytest.mark.parametrize(
  ("groups", "axes", "members"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", ("model",), 4),
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), 2),
    ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
    ("[1,8]<=[8]", ("data", "model"), 8),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",), 2),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1','axis_0'}", ("data", "model"), 8),
    ("mesh['axis_0'=8] {'axis_0':(1)2}", ("data",), 2),
    ("mesh['axis_0'=8] {'axis_0':(2)4}", ("model",), 4),
  ],
)
def test_devices_that_sum_in_a_loop(groups, axes, members):
  (found,) = collectives.collectives(PROGRAM.format(groups=groups), MESH)
  assert (found.kind, found.times, found.axes, found.members) == ("all-reduce", 6, axes, members)
  assert found.arrays == (("f32", (8, 128)),)
  assert found.sent == 6 * 2 * 8 * 128 * 4 * (members - 1) / members


def test_operations_in_loops_are_counted_as_often_as_they_run():
  def f(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

  shapes = (
    jax.ShapeDtypeStruct((16, 32), jnp.float32),
    jax.ShapeDtypeStruct((5, 32, 32), jnp.float32),
  )
  program = hlo.HloProgram(jax.jit(f).lower(*shapes).compile().as_text())
  assert program.flops() == 5 * 2 * 16 * 32 * 32


BESIDE_OTHERS = """
HloModule jit_f, is_scheduled=true

%fused_computation.1 (p: bf16[64,512]) -> (bf16[64,512], bf16[512,512]) {
  %p = bf16[64,512]{1,0} parameter(0)
  %all-gather.1 = bf16[512,512]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %begun = (bf16[64,512]{1,0}, bf16[512,512]{1,0}) custom-call(%p, %all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (q: bf16[64,512], x: bf16[8,128]) -> bf16[8,128] {
  %q = bf16[64,512]{1,0} parameter(0)
  %x = bf16[8,128]{1,0} parameter(1)
  %all-gather.2 = bf16[512,512]{1,0} all-gather(%q), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %beside = bf16[8,128]{1,0} negate(%x)
}

%fused_computation.3 (r: bf16[64,512]) -> bf16[512,512] {
  %r = bf16[64,512]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[512,512]{1,0} all-gather(%r), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (a: bf16[64,512], b: bf16[8,128]) -> bf16[512,512] {
  %a = bf16[64,512]{1,0} parameter(0)
  %b = bf16[8,128]{1,0} parameter(1)
  %async-collective-start.1 = (bf16[64,512]{1,0}, bf16[512,512]{1,0}) fusion(%a), kind=kCustom, calls=%fused_computation.1
  %fusion.2 = bf16[8,128]{1,0} fusion(%a, %b), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %async-collective-done.1 = bf16[512,512]{1,0} fusion(%a), kind=kCustom, calls=%fused_computation.3
}
"""


def test_a_collective_that_runs_beside_others_is_counted_once():
  (found,) = collectives.collectives(BESIDE_OTHERS, {"data": 8, "seq": 1, "model": 1})
  assert (found.kind, found.times, found.axes) == ("all-gather", 1, ("data",))
  assert found.sent == 7 / 8 * 512 * 512 * 2


IN_STEPS = """
HloModule jit_f, is_scheduled=true

%async_computation (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %sum = f32[8,128]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %begin = ((f32[8,128]{1,0}), f32[8,128]{1,0}, u32[]) async-start(%a), calls=%async_computation
  %go-on = ((f32[8,128]{1,0}), f32[8,128]{1,0}, u32[]) async-update(%begin), calls=%async_computation
  ROOT %end = f32[8,128]{1,0} async-done(%go-on), calls=%async_computation
}
"""


def test_an_asynchronous_operation_runs_once():
  (found,) = collectives.collectives(IN_STEPS, {"data": 8, "seq": 1, "model": 1})
  assert (found.kind, found.times) == ("all-reduce", 1)
  moved = bytes_accessed.traffic(hlo.HloProgram(IN_STEPS))
  assert moved.total == 2 * 8 * 128 * 4


COPIES = """
HloModule jit_f, is_scheduled=true

ENTRY %main (a: bf16[3,100]) -> bf16[2,100] {
  %a = bf16[3,100]{1,0:T(8,128)(2,1)} parameter(0)
  %begin = (bf16[3,100]{1,0:T(8,128)(2,1)S(1)}, bf16[3,100]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %on-chip = bf16[3,100]{1,0:T(8,128)(2,1)S(1)} copy-done(%begin)
  %cut = ((bf16[3,100]{1,0:T(8,128)(2,1)}), bf16[2,100]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:100]}
  %part = bf16[2,100]{1,0:T(8,128)(2,1)S(1)} slice-done(%cut)
  ROOT %sum = bf16[2,100]{1,0:T(8,128)(2,1)} negate(%part)
}
"""


def test_bytes_of_main_memory_are_those_of_the_arrays_that_lie_there_padding_included():
  tile = 8 * 128 * 2  # what 3 or 2 rows of 100 fill
  moved = bytes_accessed.traffic(hlo.HloProgram(COPIES))
  assert moved.total == 3 * tile  # read once for each of two copies; the result is written
  everywhere = bytes_accessed.traffic(hlo.HloProgram(COPIES), everywhere=True)
  context = 4
  assert everywhere.total == pytest.approx(6 * tile, abs=context)
  assert everywhere.again == 3 * tile  # the copy's operand again, and both ends


# Kept and taken activations of a loop's turn, as libtpu writes them for TPU7x.
RESHAPED = """
HloModule jit_f, is_scheduled=true

%tiles (kept: bf16[80,8192]) -> bf16[80,8192] {
  %kept = bf16[80,8192]{1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy = bf16[80,8192]{1,0:T(8,128)(2,1)} copy(%kept)
}

%write (kept: bf16[80,2,4096], part: bf16[1,2,4096], i: s32[]) -> bf16[80,8192] {
  %kept = bf16[80,8192]{1,0} parameter(0)
  %cast = bf16[80,2,4096]{2,1,0} bitcast(%kept)
  %part = bf16[1,2,4096]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %update = bf16[80,2,4096]{2,1,0} dynamic-update-slice(%cast, %part, %i, %i, %i)
  ROOT %back = bf16[80,8192]{1,0} bitcast(%update)
}

%take (kept: bf16[80,8192], i: s32[]) -> bf16[1,2,4096] {
  %kept = bf16[80,8192]{1,0} parameter(0)
  %other = bf16[80,8192]{1,0} fusion(%kept), kind=kLoop, calls=%tiles
  %cast = bf16[80,2,4096]{2,1,0} bitcast(%other)
  %i = s32[] parameter(1)
  ROOT %slice = bf16[1,2,4096]{2,1,0} dynamic-slice(%cast, %i, %i, %i), dynamic_slice_sizes={1,2,4096}
}

ENTRY %main (kept: bf16[80,8192], part: bf16[1,2,4096], i: s32[]) -> bf16[1,2,4096] {
  %kept = bf16[80,8192]{1,0} parameter(0)
  %part = bf16[1,2,4096]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %written = bf16[80,8192]{1,0} fusion(%kept, %part, %i), kind=kLoop, calls=%write
  ROOT %taken = bf16[1,2,4096]{2,1,0} fusion(%written, %i), kind=kLoop, calls=%take
}
"""


def test_a_part_of_an_array_of_another_shape_is_moved_alone():
  part, indices = 2 * 8192, 2 * 4
  moved = bytes_accessed.traffic(hlo.HloProgram(RESHAPED))
  assert moved.total == 2 * part + 2 * part + indices


LIBRARY_PRODUCT = """
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (2, {}, may-alias), {1,2}: (0, {}, must-alias) }, entry_computation_layout={(bf16[512,1024]{1,0})->bf16[512,256]{1,0}}

ENTRY %main (a: bf16[512,1024], b: bf16[1024,256]) -> bf16[512,256] {
  %a = bf16[512,1024]{1,0} parameter(0)
  %b = bf16[1024,256]{1,0} parameter(1)
  %product = (bf16[512,256]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = bf16[512,256]{1,0} get-tuple-element(%product), index=0
}
"""


def test_products_of_a_gpu_s_library_are_counted_without_their_workspace():
  program = hlo.HloProgram(LIBRARY_PRODUCT)
  assert program.flops() == 2 * 512 * 1024 * 256
  assert bytes_accessed.traffic(program).total == 2 * (512 * 1024 + 1024 * 256 + 512 * 256)
  assert program.in_place == {(0,), (1, 2)}


@pytest.mark.parametrize(
  ("name", "shape", "devices"),
  [
    ("v5e-256", "v5e:16x16", 256),
    ("v5e-16", "v5e:4x4", 16),
    ("v5p-128", "v5p:4x4x4", 64),
    ("v4-64", "v4:2x4x4", 32),
    ("v6e:2x4", "v6e:2x4", 8),
    ("v3-32", "v3:4x4", 32),
    ("tpu7x-128", "tpu7x:4x4x4", 128),
    ("tpu7x:2x2x1", "tpu7x:2x2x1", 8),
  ],
)
def test_names_of_slices(name, shape, devices):
  found = catalogue.hardware(name)
  assert (found.topology, found.device_count) == (shape, devices)


@pytest.mark.parametrize(("name", "nodes"), [("h200-8", 1), ("h100-64", 8), ("h100-4", 1)])
def test_names_of_gpus(name, nodes):
  found = catalogue.hardware(name)
  assert found.device_count == int(name.partition("-")[2])
  assert found.topology.startswith(f"{nodes} node")


@pytest.mark.parametrize("name", ["tpu7x-128", "v3-32"])
def test_devices_of_a_chip_share_its_links(name):
  found = catalogue.hardware(name)
  whole, of_chips, one_of_each = tuple(range(32)), (0, 1, 2, 3), tuple(range(0, 32, 2))
  assert found.link(whole) == found.link(of_chips) == found.chip.link
  assert found.link(one_of_each) == found.chip.link / 2
  assert catalogue.hardware("v5e-16").link((0, 2, 4)) == catalogue.hardware("v5e-16").chip.link


def test_rings_that_leave_a_node_share_its_network_cards():
  found = catalogue.hardware("h100-64")
  inside, one_of_each, whole = tuple(range(8)), tuple(range(0, 64, 8)), tuple(range(64))
  assert found.link(inside) == found.chip.link
  assert found.link(one_of_each) == gpu.NETWORK
  assert found.link(whole) == 8 * gpu.NETWORK


@pytest.mark.parametrize("name", ["h100", "h200-12", "v5e-100", "v5p-7", "v5p:4x4", "v9-8"])
def test_what_is_no_slice(name):
  with pytest.raises(ValueError, match="hardware '"):
    catalogue.hardware(name)
