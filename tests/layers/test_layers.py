"""Each layer against its formula."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from layers.conv1d import CausalConv1D
from layers.norm import RMSNorm
from layers.parameter import parameter
from layers.rg_lru import RGLRU, BlockDiagonal, uniform_decay
from layers.rotary import rotate
from layers.segments import Segments, positions_in_segments
from parallel import sequence, shards


def normal(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_positions_count_from_the_start_of_each_segment_and_are_zero_on_padding():
  ids = jnp.array([[0, 0, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]])
  expected = [[0, 0, 0, 1, 2, 0, 1, 0, 0], list(range(9))]
  np.testing.assert_array_equal(positions_in_segments(ids), expected)


@pytest.mark.parametrize("zero_centered", [False, True])
def test_rms_norm_gives_rows_of_root_mean_square_one_times_scale(zero_centered):
  x = 7 * normal(0, (3, 5, 64))
  module = RMSNorm(zero_centered=zero_centered)
  params = nn.unbox(module.init(jax.random.key(0), x))
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(module.apply(params, x) ** 2, -1)), 1, rtol=1e-5)
  scale = np.linspace(0.5, 2, 64)
  params = {"params": {"scale": jnp.asarray(scale - zero_centered, jnp.float32)}}
  exact = np.asarray(x, np.float64)
  exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * scale
  np.testing.assert_allclose(module.apply(params, x), exact, rtol=2e-6)


def test_rotary_scores_depend_on_the_distance_alone():
  q, k = normal(1, (1, 1, 1, 16)), normal(2, (1, 1, 1, 16))

  def score(query_position, key_position, fraction):
    turn = lambda x, p: rotate(x, jnp.array([[p]]), fraction=fraction, base=10_000.0)  # noqa: E731
    return float(jnp.sum(turn(q, query_position) * turn(k, key_position)))

  for fraction in (0.5, 1.0):
    near = score(5, 2, fraction)
    assert score(105, 102, fraction) == pytest.approx(near, abs=1e-4)
    assert abs(score(5, 4, fraction) - near) > 1e-3


def test_rotary_leaves_the_rest_of_the_head_alone():
  x = normal(3, (2, 7, 3, 16))
  turned = rotate(x, jnp.arange(14).reshape(2, 7), fraction=0.5, base=10_000.0)
  np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rotary_keeps_the_size_of_heads_of_any_width(size):
  x = normal(3, (1, 4, 2, size))
  turned = rotate(x, jnp.arange(4)[None], fraction=1.0, base=10_000.0)
  norm = lambda array: jnp.linalg.norm(array, axis=-1)  # noqa: E731
  np.testing.assert_allclose(norm(turned), norm(x), rtol=1e-5)
  if size % 2:
    np.testing.assert_array_equal(turned[..., -1], x[..., -1])


@pytest.mark.parametrize(
  ("channels", "fraction", "rotated"), [(7, 1.0, 6), (1, 1.0, 0), (7, 0.99, 6), (10, 0.5, 6)]
)
def test_rotary_turns_pairs_of_a_head_of_any_size(channels, fraction, rotated):
  x = normal(3, (1, 2, 1, channels))
  turned = rotate(x, jnp.array([[0, 5]]), fraction=fraction, base=10.0)
  assert turned.shape == x.shape
  np.testing.assert_array_equal(turned[:, 0], x[:, 0])
  differs = np.asarray(turned[0, 1, 0] != x[0, 1, 0])
  np.testing.assert_array_equal(differs, np.arange(channels) < rotated)
  np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(x), rtol=1e-5)


def test_convolution_equals_its_sum_within_segments():
  x = normal(4, (2, 9, 6))
  positions = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 0, 0, 1, 2, 3, 4, 5]])
  module = CausalConv1D(conv_width=4)
  params = nn.unbox(module.init(jax.random.key(5), x, positions))
  y, history = module.apply(params, x, positions)
  kernel, bias = params["params"]["kernel"], params["params"]["bias"]
  for row in range(2):
    for t in range(9):
      expected = bias + sum(
        kernel[lag] * x[row, t - lag] for lag in range(4) if lag <= positions[row, t]
      )
      np.testing.assert_allclose(y[row, t], expected, atol=1e-6)
  np.testing.assert_array_equal(history, x[:, -3:])


def test_a_convolution_of_one_token_needs_no_other_device():
  x, positions = normal(4, (2, 9, 6)), jnp.tile(jnp.arange(9), (2, 1))
  region = shards.Region(table=((sequence.AXIS, ("seq",)),), sizes=(("seq", 2),))
  module = CausalConv1D(conv_width=1)
  with shards.per_device(region):
    (y, history), params = module.init_with_output(jax.random.key(5), x, positions)
  np.testing.assert_allclose(y, x * nn.unbox(params)["params"]["kernel"][0], atol=1e-6)
  assert history.shape == (2, 0, 6)


def test_block_diagonal_equals_the_full_matrix():
  x = normal(6, (2, 5, 12))
  module = BlockDiagonal(3)
  params = nn.unbox(module.init(jax.random.key(7), x))
  full = jax.scipy.linalg.block_diag(*params["params"]["kernel"])
  np.testing.assert_allclose(module.apply(params, x), x @ full, atol=1e-5)


def test_blocks_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match="5 gate blocks do not divide the RNN width 12"):
    BlockDiagonal(5).init(jax.random.key(0), jnp.zeros((1, 1, 12)))


def test_decay_starts_uniform_between_its_bounds():
  a_param = uniform_decay(0.9, 0.999)(jax.random.key(8), (20_000,))
  decay = np.sort(np.exp(-8 * np.log1p(np.exp(np.asarray(a_param, np.float64)))))
  assert decay[0] >= 0.9 - 1e-6
  assert decay[-1] <= 0.999 + 1e-6
  # Kolmogorov-Smirnov: the largest gap to the uniform distribution, at the 0.1% level.
  gap = np.abs((decay - 0.9) / 0.099 - np.linspace(0, 1, decay.size)).max()
  assert gap < 1.95 / np.sqrt(decay.size)


def test_rg_lru_equals_equations_1_to_4_in_float64():
  x = normal(9, (2, 21, 8))
  ids = jnp.ones((2, 21), jnp.int32).at[1, 7:].set(2)
  segments = Segments(ids, positions_in_segments(ids))
  module = RGLRU(blocks=2)
  params = nn.unbox(module.init(jax.random.key(10), x, segments))
  h, h_last = module.apply(params, x, segments)

  tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
  sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
  full = {name: jax.scipy.linalg.block_diag(*tree[name]["kernel"]) for name in ("gate_a", "gate_x")}
  u = np.asarray(x, np.float64)
  r = sigmoid(u @ np.asarray(full["gate_a"], np.float64) + tree["gate_a"]["bias"])
  i = sigmoid(u @ np.asarray(full["gate_x"], np.float64) + tree["gate_x"]["bias"])
  a = sigmoid(-tree["a_param"]) ** (8 * r)  # sigmoid(Lambda)^(c r), Lambda = -a_param
  a = np.where(np.asarray(segments.starts)[..., None], 0, a)
  state, expected = np.zeros((2, 8)), []
  for t in range(21):
    state = a[:, t] * state + np.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
    expected.append(state)
  np.testing.assert_allclose(h, np.stack(expected, 1), atol=2e-6)
  np.testing.assert_allclose(h_last, expected[-1], atol=2e-6)


def test_two_parameters_of_one_name_are_refused():
  """Else they would be one array."""

  class Twice(nn.Module):
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
      for _ in range(2):
        x *= parameter(self, "scale", nn.initializers.ones, ("embed",), x.shape[-1:])
      return x

  with pytest.raises(errors.NameInUseError, match="scale"):
    jax.eval_shape(Twice().init, jax.random.key(0), jnp.ones((1, 3)))
