"""Lion, Adafactor and Muon: each against its definition, one update of small arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small_models import build, initialize
from training.adafactor import Adafactor
from training.lion import Lion
from training.muon import Muon, is_matrix
from training.optimizer import AdamW

RATE = optax.constant_schedule(0.1)


def update(optimizer, params, gradients):
  transformation = optimizer.transformation()
  state = transformation.init(params)
  for gradient in gradients:
    updates, state = transformation.update(gradient, state, params)
  return updates


@pytest.fixture
def params():
  random = np.random.default_rng(0)
  return {
    "block_0": {"up": {"kernel": jnp.asarray(random.normal(size=(2, 12, 8)), jnp.float32)}},
    "norm": {"scale": jnp.asarray(random.normal(size=8), jnp.float32)},
  }


def like(params, seed):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), jnp.float32), params)


def test_lion_takes_the_sign_of_the_interpolated_momentum(params):
  first, second = like(params, 1), like(params, 2)
  found = update(
    Lion(learning_rate=RATE, clip_norm=None, weight_decay=0.3), params, [first, second]
  )
  momentum = jax.tree.map(lambda g: 0.01 * g, first)
  signs = jax.tree.map(lambda m, g: np.sign(0.9 * m + 0.1 * g), momentum, second)
  kernel, scale = params["block_0"]["up"]["kernel"], signs["norm"]["scale"]
  expected = -0.1 * (signs["block_0"]["up"]["kernel"] + 0.3 * kernel)
  np.testing.assert_allclose(found["block_0"]["up"]["kernel"], expected, rtol=1e-5)
  np.testing.assert_allclose(found["norm"]["scale"], -0.1 * scale, rtol=1e-5)


def test_muon_orthogonalizes_every_matrix_of_a_stack(params):
  gradient = like(params, 1)
  found = update(Muon(learning_rate=RATE, clip_norm=None, weight_decay=0.0), params, [gradient])
  updates = np.asarray(found["block_0"]["up"]["kernel"], np.float64)
  for change, of in zip(updates, gradient["block_0"]["up"]["kernel"], strict=True):
    u, _, v = np.linalg.svd(np.asarray(of, np.float64), full_matrices=False)
    # Five iterations bring the singular values between 0.7 and 1.2, not to 1.
    values = np.linalg.svd(change / (0.1 * 0.2 * np.sqrt(12)), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert np.sum(-change * (u @ v)) / np.linalg.norm(change) / np.linalg.norm(u @ v) > 0.97


def test_muon_leaves_all_but_matrices_to_adamw(params):
  gradient = like(params, 1)
  muon = update(Muon(learning_rate=RATE, clip_norm=None), params, [gradient])
  adamw = update(AdamW(learning_rate=RATE, clip_norm=None), params, [gradient])
  np.testing.assert_allclose(muon["norm"]["scale"], adamw["norm"]["scale"], rtol=1e-6)


def test_which_parameters_of_griffin_are_matrices_of_muon():
  params = initialize(build("griffin"))
  paths = {
    "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  matrices = {path for path in paths if is_matrix(tuple(path.split("/")))}
  assert {path.split("/")[-2] for path in matrices} == {
    "query", "key", "value", "output", "linear_x", "linear_y", "linear_out", "gate", "up", "down",
  }  # fmt: skip
  assert all(part not in path for path in matrices for part in ("rg_lru", "conv1d", "embedding"))


def test_adafactor_keeps_rows_and_columns_in_place_of_matrices(params):
  optimizer = Adafactor(learning_rate=RATE, least_factored=8)
  state = optimizer.transformation().init(params)
  held = sum(leaf.size for leaf in jax.tree.leaves(state))
  assert held < sum(leaf.size for leaf in jax.tree.leaves(params))


def test_adafactor_divides_by_the_factored_second_moment(params):
  optimizer = Adafactor(
    learning_rate=RATE, least_factored=8, weight_decay=0.0, clip_norm=None, update_clip=None
  )
  gradient = like(params, 1)
  found = np.asarray(update(optimizer, params, [gradient])["block_0"]["up"]["kernel"], np.float64)
  squares = np.square(np.asarray(gradient["block_0"]["up"]["kernel"], np.float64))
  rows, columns = squares.mean(axis=2, keepdims=True), squares.mean(axis=1, keepdims=True)
  second = rows * columns / squares.mean(axis=(1, 2), keepdims=True)
  expected = -0.1 * np.asarray(gradient["block_0"]["up"]["kernel"]) / np.sqrt(second)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("optimizer", [AdamW, Lion, Adafactor, Muon])
def test_equal_optimizers_are_one_transformation(optimizer):
  assert optimizer(learning_rate=RATE).transformation() is (
    optimizer(learning_rate=RATE).transformation()
  )
