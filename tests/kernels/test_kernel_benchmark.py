"""The benchmark of kernels runs whole on a CPU, at tiny sizes."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import huge_pages, kernel_cases, kernels, matrix_cases
from comparison.speed.recurrences import with_gradient
from kernels import platform


@pytest.mark.parametrize("op", matrix_cases.OPS)
def test_operations_on_heads_are_timed_beside_their_form_in_xla(op, monkeypatch, tmp_path, capsys):
  file = tmp_path / "kernels.json"
  monkeypatch.setattr(huge_pages, "restart_with", lambda module: None)
  monkeypatch.setattr(kernels, "HEADS_ERROR_SHAPE", (1, 20, 2, 16))
  monkeypatch.setattr(kernels, "PRODUCT_SIZES", {True: 64})
  shape = ["--heads_shape", "1", "40", "2", "16", "--repeats", "1", "--no-static"]
  monkeypatch.setattr(sys, "argv", ["kernels", "--op", op, *shape, f"--output={file}"])
  kernels.main()
  ((device, *records),) = [one["records"] for one in json.loads(file.read_text())["measured"]]
  assert device["bytes_per_second"] > 0
  assert device["products_per_second"] > 0
  assert [r["direction"] for r in records] == ["forward", "forward and backward"]
  assert all(r["over_xla"] == 1 for r in records)  # on a CPU there is no other
  assert all(r["max_error"] < 1e-5 for r in records)
  assert records[1]["bytes"] > 2 * records[0]["bytes"]
  assert capsys.readouterr().out.count(op) == 2


def test_operations_of_attention_are_those_of_what_the_window_shows():
  whole = matrix_cases.case("attention", (2, 16, 3, 8), "float32")
  assert whole.flops == 2 * 3 * 4 * 8 * (16 * 17 / 2)
  # q and y have three heads, k and v one.
  assert whole.bytes_of("forward") == 2 * 16 * 8 * 4 * (3 + 3 + 1 + 1)


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize(
  ("run", "arguments_of"),
  [
    (matrix_cases.delta_rule.delta_rule, kernel_cases.delta_arguments),
    (
      matrix_cases.gated_linear_attention.gated_linear_attention,
      kernel_cases.linear_attention_arguments,
    ),
  ],
)
def test_matrix_states_are_lowered_for_gpus(run, arguments_of, decay):
  """The arguments of `benchmarks.compile_gpu`, which needs the compiler of CUDA."""

  def op(*given):
    return run(*given[:-1], reset=given[-1])

  arguments = arguments_of((2, 128, 4, 64), decay, jnp.bfloat16)
  with platform.targeting("gpu"):
    lowered = jax.jit(with_gradient(op)).trace(*arguments).lower(lowering_platforms=("cuda",))
  assert "dot_general" in lowered.as_text()
