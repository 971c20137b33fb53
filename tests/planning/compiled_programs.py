"""Compiles functions for TPUs that need not be attached, and replays them."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planning import plan as planning
from planning.hardware import catalogue
from planning.replay.replay import replay

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)


def compiled(name: str, function, *arguments, shape=None, axes=("data",), specs=None, options=None):
  """Compiles a function for a slice, with XLA's `options`, and replays it."""
  hardware = catalogue.hardware(name)
  devices = np.array(hardware.devices if shape else hardware.devices[:1]).reshape(shape or (1,))
  mesh = Mesh(devices, axes)
  specs = specs or [PartitionSpec()] * len(arguments)
  placed = [
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
    for a, spec in zip(arguments, specs, strict=True)
  ]
  if shape:
    function = jax.shard_map(
      function, mesh=mesh, in_specs=tuple(specs), out_specs=PartitionSpec(), check_vma=False
    )
  _, parsed = planning.compile_program(
    jax.jit(function, compiler_options=options).lower(*placed), "tpu"
  )
  return replay(parsed, hardware)


def bfloat16(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
