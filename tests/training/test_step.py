"""One optimizer step: loss, accumulation, skipping, weight decay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.loader import batch_of_rows
from tests.small_models import VOCAB_SIZE, build, initialize
from training import losses
from training import optimizer as optimizer_lib
from training import step as step_lib


def make_batch(seed: int = 0, rows: int = 4, length: int = 24) -> dict:
  random = np.random.default_rng(seed)
  tokens = random.integers(0, VOCAB_SIZE, (rows, length))
  # Row r has r * 5 tokens of padding: microbatches differ in their number of targets.
  ids = np.where(np.arange(length) < length - 5 * np.arange(rows)[:, None], 1, 0)
  return batch_of_rows(tokens, ids, bos_id=0)


SGD = optax.sgd(1.0)


@pytest.fixture(scope="module")
def model():
  return build("hawk", depth=1)


def initial(model, transformation=SGD, options=None):
  options = options or step_lib.StepOptions()
  return jax.jit(lambda: step_lib.initial_state(model, transformation, options, seed=0))()


def one_step(model, options=None, transformation=SGD, batch=None, state=None):
  options = options or step_lib.StepOptions()
  if state is None:
    state = initial(model, transformation, options)
  step = jax.jit(step_lib.make_train_step(model, transformation, options))
  return step(state, batch or make_batch())


@pytest.fixture(scope="module")
def plain(model):
  """A step with default options."""
  return one_step(model)


def assert_trees_close(found, expected, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def test_loss_is_the_mean_over_targets_that_count(model, plain):
  batch, (_, metrics) = make_batch(), plain
  params = initial(model).params
  logits, _ = jax.jit(model.apply)(
    {"params": params},
    batch["inputs"],
    segment_ids=batch["segment_ids"],
    positions=batch["positions"],
  )
  log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
  nll = -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
  expected = (nll * batch["loss_weights"]).sum() / batch["loss_weights"].sum()
  assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
  assert metrics["targets"] == batch["loss_weights"].sum()


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulated_microbatches_equal_the_whole_batch(model, plain, pieces):
  whole, expected = plain
  cut, found = one_step(model, step_lib.StepOptions(grad_accum_steps=pieces))
  assert found["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
  assert_trees_close(cut.params, whole.params, atol=2e-5)


def test_microbatches_must_divide_the_batch(model):
  with pytest.raises(ValueError, match="grad_accum_steps=3 does not divide the batch of 4 rows"):
    one_step(model, step_lib.StepOptions(grad_accum_steps=3))


def test_large_logits_are_computed_in_pieces_with_equal_results(model, plain):
  whole, expected = plain
  five_steps = 4 * VOCAB_SIZE * 4 * 5
  pieces, found = one_step(model, step_lib.StepOptions(max_logit_bytes=five_steps))
  assert found["loss"] == pytest.approx(float(expected["loss"]), rel=1e-6)
  assert_trees_close(pieces.params, whole.params, atol=1e-5)


@pytest.mark.parametrize(
  ("length", "least", "expected"),
  [
    (512, 1, (1, 512)),
    (512, 3, (4, 128)),
    (4093, 3, (3, 1365)),
    (4093, 5000, (4093, 1)),
    (2 * 4093, 8, (8, 1024)),
    (17, 8, (6, 3)),
    (1, 7, (1, 1)),
  ],
)
def test_pieces_are_about_as_many_as_are_needed(length, least, expected):
  pieces, size = losses._pieces(length, least)
  assert (pieces, size) == expected
  assert pieces * size >= length > (pieces - 1) * size


def test_a_row_of_prime_length_is_computed_in_few_pieces_with_equal_results(model):
  batch = make_batch(length=31)
  params = initialize(model)

  def loss(params, limit):
    nll, z = losses.token_losses(model, params, batch, max_logit_bytes=limit)
    return jnp.sum(nll) + jnp.sum(z), (nll, z)

  def differentiate(limit):
    return jax.jit(jax.value_and_grad(functools.partial(loss, limit=limit), has_aux=True))(params)

  (_, whole), expected = differentiate(losses.MAX_LOGIT_BYTES)
  seven_steps = 4 * VOCAB_SIZE * 4 * 7
  text = str(jax.make_jaxpr(lambda params: loss(params, seven_steps)[0])(params))
  assert f"f32[4,7,{VOCAB_SIZE}]" in text
  assert f"f32[4,1,{VOCAB_SIZE}]" not in text
  (_, found), gradient = differentiate(seven_steps)
  assert_trees_close(found, whole, atol=1e-5)
  assert_trees_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_z_loss_pulls_the_softmax_s_sum_to_one_and_is_not_told_as_loss(model, plain):
  unpulled, told = plain
  pulled, also_told = one_step(model, step_lib.StepOptions(z_loss=0.1))
  assert also_told["loss"] == told["loss"]

  @jax.jit
  def mean_square_log_sum(params):
    return jnp.sum(losses.token_losses(model, params, make_batch())[1])

  assert mean_square_log_sum(pulled.params) < mean_square_log_sum(unpulled.params)


def poisoned(state):
  broken = jax.tree.map(lambda x: x, state.params)
  broken["final_norm"]["scale"] = broken["final_norm"]["scale"].at[0].set(jnp.nan)
  return state._replace(params=broken)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(model):
  adam = optimizer_lib.AdamW(learning_rate=optax.constant_schedule(1e-2)).transformation()
  state = poisoned(initial(model, adam))
  after, metrics = one_step(model, transformation=adam, state=state)
  assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)
  assert int(after.step) == 1
  assert_trees_close((after.params, after.opt_state), (state.params, state.opt_state), rtol=0)


def test_a_spike_is_skipped_once_the_window_is_full_and_then_the_run_goes_on(model):
  options = step_lib.StepOptions(spike_window=4, spike_factor=3.0)
  sgd = optax.sgd(1e-4)
  state = initial(model, sgd, options)
  step = jax.jit(step_lib.make_train_step(model, sgd, options))
  batch = make_batch()
  for _ in range(4):
    state, metrics = step(state, batch)
  norm = float(metrics["grad_norm"])
  state = state._replace(spike_detector=state.spike_detector._replace(norms=jnp.full(4, norm / 10)))
  before = state
  state, metrics = step(state, batch)
  assert int(metrics["skipped_in_a_row"]) == 1
  assert_trees_close(state.params, before.params, rtol=0)
  state = state._replace(spike_detector=state.spike_detector._replace(norms=jnp.full(4, norm)))
  state, metrics = step(state, batch)
  assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 0)


def test_no_step_is_called_a_spike_before_the_window_is_full(plain):
  _, metrics = plain
  assert int(metrics["skipped"]) == 0  # the window's norms are all zero


def test_bfloat16_parameters_have_float32_optimizer_state():
  model = build("hawk", depth=1, dtype="bfloat16", param_dtype="bfloat16")
  adam = optimizer_lib.AdamW(learning_rate=optax.constant_schedule(1e-2)).transformation()
  state, metrics = one_step(model, transformation=adam)
  kinds = {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)}
  assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
  assert state.params["embedding"]["embedding"].dtype == jnp.bfloat16
  assert np.isfinite(metrics["loss"])


def test_weight_decay_acts_on_matrices_alone(model):
  mask = optimizer_lib.decay_mask(initialize(model))
  decayed = {
    "/".join(key.key for key in path)
    for path, value in jax.tree_util.tree_leaves_with_path(mask)
    if value
  }
  block = "stack/repeats/block_0/"
  assert {"embedding/embedding", block + "mlp/up/kernel", block + "mixer/rg_lru/gate_a/kernel"} <= (
    decayed
  )
  for free in ("mixer/conv1d/kernel", "mixer/rg_lru/a_param", "mixer_norm/scale"):
    assert block + free not in decayed
  assert not any(path.endswith(("bias", "scale", "a_param")) for path in decayed)


def test_schedules_rise_and_fall_where_they_say():
  cosine = optimizer_lib.warmup_cosine(peak=1.0, steps=100, warmup_steps=10)
  assert [float(cosine(s)) for s in (0, 5, 10, 100)] == pytest.approx([0, 0.5, 1, 0.1])
  stable = optimizer_lib.warmup_stable_decay(peak=1.0, steps=100, warmup_steps=10)
  assert [float(stable(s)) for s in (5, 10, 79, 90, 100)] == pytest.approx([0.5, 1, 1, 0.5, 0])


@pytest.mark.parametrize("schedule", ["warmup_cosine", "warmup_stable_decay"])
def test_a_warm_up_longer_than_the_run_is_refused(schedule):
  with pytest.raises(ValueError, match="warmup_steps=100 must be at least 0 and below the"):
    getattr(optimizer_lib, schedule)(peak=1.0, steps=100, warmup_steps=100)
