"""A checkpoint written in parts is one like any other, and is written an array at a time."""

from __future__ import annotations

import gc
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest

from training import checkpoint, checksum, streamed_checkpoint


def arrays():
  random = np.random.default_rng(0)
  for path, kind in (("a/x", np.float32), ("a/y/z", ml_dtypes.bfloat16), ("b", np.float32)):
    yield path, random.standard_normal((16, 24)).astype(kind)


PATHS = [path for path, _ in arrays()]


def abstract():
  tree = {"a": {"x": 0, "y": {"z": 0}}, "b": 0}
  leaves = [jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in arrays()]
  return checkpoint.abstract_like(jax.tree.unflatten(jax.tree.structure(tree), leaves))


@pytest.mark.parametrize("part_bytes", [1, 2**26])
def test_it_is_read_as_it_was_written(tmp_path, monkeypatch, part_bytes):
  monkeypatch.setattr(streamed_checkpoint, "_PART_BYTES", part_bytes)
  streamed_checkpoint.write_parameters(tmp_path, 3, PATHS, arrays(), {})
  assert checkpoint.is_parameters_alone(tmp_path)
  found, step = checkpoint.load_parameters(tmp_path, abstract(), "best")
  assert step == 3
  for leaf, (_, expected) in zip(jax.tree.leaves(found), arrays(), strict=True):
    np.testing.assert_array_equal(leaf, expected)
    assert leaf.dtype == expected.dtype


@pytest.mark.usefixtures("quick_collections")
def test_an_array_is_gone_before_the_next_is_asked_for(tmp_path, monkeypatch):
  monkeypatch.setattr(streamed_checkpoint, "_PART_BYTES", 1)
  alive = []

  def fresh(array):
    copy = array.copy()
    alive.append(weakref.ref(copy))
    return copy

  def watched():
    for path, array in arrays():
      gc.collect()
      assert not [reference for reference in alive if reference() is not None]
      yield path, fresh(array)

  streamed_checkpoint.write_parameters(tmp_path, 0, PATHS, watched(), {})
  assert len(alive) == len(PATHS)


def test_what_ends_early_leaves_no_checkpoint(tmp_path):
  def broken():
    yield next(arrays())
    raise ValueError("damaged")

  with pytest.raises(ValueError, match="damaged"):
    streamed_checkpoint.write_parameters(tmp_path, 0, PATHS, broken(), {})
  assert not checkpoint.available_steps(tmp_path)


@pytest.mark.parametrize("shape", [(), (100,), (7, 13), (3, 5, 11)])
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16, np.uint8])
def test_a_checksum_in_pieces_is_that_of_the_whole(monkeypatch, shape, kind):
  monkeypatch.setattr(checksum, "_PIECE_BYTES", 64)
  array = np.asarray(9 * np.random.default_rng(0).standard_normal(shape)).astype(kind)
  assert checksum.host_checksum(array) == checksum.checksums(array)[0]
