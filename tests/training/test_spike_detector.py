"""Skipped steps, checkpoints while steps are skipped, and the state of a run that must stop."""

from __future__ import annotations

import io
import json
import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.accounting import list_parameters
from parallel.sharding_plan import on_one_device
from tests.small_models import build
from tests.training.resume_run import Sequences
from training import checkpoint, checksum, chosen_checkpoint, loop, optimizer, retention
from training import step as step_lib
from training.metrics import ProgressLine, read_metrics


def taken(norms: np.ndarray, options: step_lib.StepOptions) -> list[bool]:
  """Returns which of the steps with these gradient norms are taken."""

  def step(detector, norm):
    take, detector = step_lib._decide(detector, jnp.float32(1), norm, options)
    return detector, take

  zero = jnp.zeros((), jnp.int32)
  detector = step_lib.SpikeDetector(jnp.zeros(options.spike_window, jnp.float32), zero, zero, zero)
  return np.asarray(jax.lax.scan(step, detector, jnp.asarray(norms, jnp.float32))[1]).tolist()


def noisy(count: int) -> np.ndarray:
  return np.exp(0.3 * np.random.default_rng(0).standard_normal(count))


@pytest.mark.parametrize("options", [{}, {"max_skips": 100}, {"max_skips": 2, "spike_window": 7}])
def test_a_lasting_rise_of_the_norm_becomes_the_norm(options):
  options = step_lib.StepOptions(**options)
  window = options.spike_window
  norms = noisy(10 * window)
  norms[2 * window :] *= 100
  found = taken(norms, options)
  assert all(found[: 2 * window])
  skipped = np.flatnonzero(~np.array(found))
  assert 0 < len(skipped) <= window // 2 + 2
  assert skipped.max() < 3 * window
  # No run of skipped steps that would stop the training.
  longest = max(len(part) for part in "".join(".x"[not take] for take in found).split("."))
  assert longest < options.max_skips


def test_single_outliers_among_64_are_skipped():
  norms = noisy(640)
  outliers = np.arange(100, 640, 64)
  norms[outliers] *= 100
  assert (
    np.flatnonzero(~np.array(taken(norms, step_lib.StepOptions()))).tolist() == outliers.tolist()
  )


def test_only_what_is_finite_is_learned_from():
  norms = noisy(300)
  norms[150:170] = [math.nan, math.inf] * 10
  norms[200] *= 100
  skipped = np.flatnonzero(~np.array(taken(norms, step_lib.StepOptions())))
  assert skipped.tolist() == [*range(150, 170), 200]


class Poisoned(Sequences):
  """Sequences in which some batches have no finite loss."""

  def __init__(self, bad):
    super().__init__()
    self._bad = bad

  def __next__(self):
    batch = super().__next__()
    if self._next in self._bad:
      batch["loss_weights"] = batch["loss_weights"] * np.float32(math.nan)
    return batch


MODEL = build("hawk", depth=1)


def run(
  folder,
  *,
  bad=(),
  rate=lambda step: 1e-3 + 0 * step,
  evaluate=None,
  steps=24,
  progress=None,
  **options,
):
  adam = optimizer.AdamW(learning_rate=rate)
  return loop.train(
    model=MODEL,
    sharding_plan=on_one_device(list_parameters(MODEL)),
    optimizer=adam.transformation(),
    learning_rate=rate,
    batches=Poisoned(bad),
    batch_size=4,
    options=loop.LoopOptions(
      **{"log_every": 1, "evaluate_every": 0, "checkpoint_every": 4, "keep": 1, **options},
      steps=steps,
      step=step_lib.StepOptions(max_skips=6),
    ),
    run_dir=folder,
    seed=0,
    bytes_per_token=1.0,
    evaluate=evaluate,
    progress=progress,
  )


def test_what_is_due_in_a_streak_is_saved_after_it(tmp_path, capsys):
  """Steps 8 to 10 give NaN: the checkpoint of step 8 is that of step 11."""
  run(tmp_path, bad=(8, 9, 10), steps=13, keep=9)
  assert checkpoint.available_steps(tmp_path) == [4, 11, 12, 13]
  assert "step 8 is not saved: it was skipped" in capsys.readouterr().err


def test_metrics_tell_the_rate_that_was_applied_and_no_nan(tmp_path):
  run(tmp_path, bad=(5, 6), rate=lambda step: 1e-3 * (step + 1), steps=9)
  text = (tmp_path / "metrics.jsonl").read_text()
  assert "NaN" not in text
  assert "Infinity" not in text
  records = read_metrics(tmp_path / "metrics.jsonl")
  rates = [1000 * record["learning_rate"] for record in records]
  assert rates == pytest.approx([1, 2, 3, 4, 4, 4, 5, 6, 7])
  assert [record["loss"] is None for record in records] == [s in (5, 6) for s in range(1, 10)]
  assert (tmp_path / "loss.png").stat().st_size


def test_a_diverging_run_leaves_the_newest_good_checkpoint_and_the_best(tmp_path):
  """The rate explodes at step 12: parameters stay finite, but every later loss is NaN."""
  losses = iter([1.0, 3.0, math.nan, math.nan])
  schedule = optax.join_schedules([optax.constant_schedule(r) for r in (1e-3, 1e30)], [11])
  with pytest.raises(loop.TrainingError) as error:
    run(
      tmp_path,
      rate=schedule,
      evaluate=lambda params: {"heldout_loss": next(losses)},
      evaluate_every=4,
    )
  assert checkpoint.available_steps(tmp_path) == [4, 8]
  message = str(error.value)
  assert "Checkpoint 8 is good" in message
  assert f"--run_dir={tmp_path} --resume=force --gin.LEARNING_RATE=" in message
  assert len(message) < 500 + len(str(tmp_path))
  # Both are what they say, and the run goes on.
  assert chosen_checkpoint.choose(tmp_path / checkpoint.FOLDER, [4, 8], "best") == 4
  summary = run(tmp_path)
  assert (summary.start_step, summary.step, summary.saved_step) == (8, 24, 24)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
  schedule = optax.join_schedules([optax.constant_schedule(r) for r in (1e-3, math.inf)], [7])
  with pytest.raises(loop.TrainingError, match="Checkpoint 4 is good"):
    run(tmp_path, rate=schedule)
  assert checkpoint.available_steps(tmp_path) == [4]
  assert not (tmp_path / "damaged_checkpoints").exists()


def test_a_run_without_a_good_checkpoint_says_so(tmp_path):
  with pytest.raises(loop.TrainingError, match="No good checkpoint was saved before"):
    run(tmp_path, bad=range(1, 99))


def test_input_that_gives_nan_moves_no_checkpoint_that_was_good(tmp_path):
  """Checkpoints with finite held-out losses stay, however often the run is started."""
  losses = iter([2.0, 1.0, 3.0])
  options = {"keep": 2, "evaluate_every": 4}
  run(tmp_path, steps=12, evaluate=lambda _: {"heldout_loss": next(losses)}, **options)
  assert checkpoint.available_steps(tmp_path) == [8, 12]
  for _ in range(2):
    with pytest.raises(
      loop.TrainingError, match="continued from checkpoint 12, which was good"
    ) as told:
      run(tmp_path, bad=range(99), evaluate=lambda _: {"heldout_loss": math.nan}, **options)
    assert "check the batches and options of this start" in str(told.value)
    assert "No good checkpoint" not in str(told.value)
    assert len(str(told.value)) < 500
    assert checkpoint.available_steps(tmp_path) == [8, 12]
  # One that began later: 16 is as good, for it was measured.
  with pytest.raises(loop.TrainingError, match="Checkpoint 16 is good"):
    run(tmp_path, bad=range(17, 99), evaluate=lambda _: {"heldout_loss": 0.5}, **options)
  assert 16 in checkpoint.available_steps(tmp_path)
  assert not (tmp_path / "damaged_checkpoints").exists()


def test_a_checkpoint_that_was_not_measured_stays_too_and_the_way_back_is_told(tmp_path):
  run(tmp_path, steps=8, keep=2)
  with pytest.raises(loop.TrainingError, match=f"move {tmp_path}/checkpoints/8 away"):
    run(tmp_path, bad=range(99))
  assert checkpoint.available_steps(tmp_path) == [4, 8]


def test_a_run_whose_last_state_is_not_finite_is_no_success(tmp_path):
  schedule = optax.join_schedules([optax.constant_schedule(r) for r in (1e-3, math.inf)], [10])
  with pytest.raises(loop.TrainingError, match=r"step 11, the last: .* not finite") as told:
    run(tmp_path, rate=schedule, steps=11)
  assert "Checkpoint 8 is good" in str(told.value)
  assert f"--run_dir={tmp_path} --resume=force --gin.LEARNING_RATE=" in str(told.value)
  assert checkpoint.available_steps(tmp_path)[-1] == 8
  assert run(tmp_path, steps=11).saved_step == 11


def broken_moment(after: int):
  """Adam with one infinite second moment after so many steps: that update stays zero for ever."""
  adam = optimizer.AdamW(learning_rate=lambda step: 1e-3).transformation()
  moments = optax.GradientTransformation(
    lambda params: (jnp.zeros((), jnp.int32), jnp.zeros(())),
    lambda updates, state, params=None: (
      updates,
      (state[0] + 1, jnp.where(state[0] + 1 >= after, jnp.inf, state[1])),
    ),
  )
  return optax.chain(adam, moments)


def test_a_state_that_stays_infinite_ends_the_run_soon(tmp_path, monkeypatch):
  checked = []
  is_finite = retention.is_finite
  monkeypatch.setattr(retention, "is_finite", lambda tree: checked.append(1) or is_finite(tree))
  broken = broken_moment(after=10)
  monkeypatch.setattr(optimizer.AdamW, "transformation", lambda self: broken)
  with pytest.raises(loop.TrainingError, match=r"step 18: .* since step 12 or earlier") as told:
    run(tmp_path, steps=999)
  assert "Checkpoint 8 is good" in str(told.value)
  assert checkpoint.available_steps(tmp_path)[-1] == 8
  assert len(checked) < 10


def test_a_held_out_loss_that_was_nan_is_told_by_a_run_that_is_finished(tmp_path):
  run(tmp_path, steps=4, evaluate=lambda _: {"heldout_loss": math.nan})
  summary = run(tmp_path, steps=4)
  assert summary.start_step == 4
  assert math.isnan(summary.heldout["heldout_loss"])


@pytest.mark.parametrize("last", [22, 23])
def test_a_run_that_ends_in_a_streak_is_finished_and_keeps_the_good_one(tmp_path, last):
  summary = run(tmp_path, bad=range(19, last + 1), steps=last)
  assert (summary.saved_step, summary.interrupted) == (last, None)
  # The good ones beside it, though one checkpoint is all that was asked for.
  assert checkpoint.available_steps(tmp_path) == [12, 16, last]
  # What goes on from there and is good replaces it.
  assert run(tmp_path, steps=28, evaluate=lambda _: {"heldout_loss": 1.0}).start_step == last
  assert checkpoint.available_steps(tmp_path) == [28]


def test_a_signal_after_the_last_step_is_told(tmp_path):
  # A comparison stops for it, and does not begin its next run.
  def evaluate(_):
    signal.raise_signal(signal.SIGINT)
    return {"heldout_loss": 1.0}

  summary = run(tmp_path, steps=4, evaluate=evaluate)
  assert (summary.step, summary.saved_step) == (4, 4)
  assert summary.interrupted == signal.SIGINT
  assert run(tmp_path, steps=4).interrupted is None


def test_what_follows_a_stopped_run_begins_a_line_of_the_terminal(tmp_path, monkeypatch):
  screen = io.StringIO()
  screen.isatty = lambda: True
  monkeypatch.setattr(loop.Interruption, "requested_at", lambda self, step: step == 3)
  progress = ProgressLine(24, screen)
  progress._shown = -1.0  # long ago: a line is shown at most ten times a second
  run(tmp_path, progress=progress)
  assert re.search(r"\rstep \d+/24 [^\n]*\n$", screen.getvalue())


def test_an_interruption_in_a_streak_loses_nothing_that_is_good(tmp_path, monkeypatch):
  monkeypatch.setattr(loop.Interruption, "requested_at", lambda self, step: step == 12)
  bad = range(10, 99)
  summary = run(tmp_path, bad=bad)
  assert (summary.step, summary.saved_step) == (12, 12)
  assert summary.interrupted
  monkeypatch.undo()
  # It goes on in its streak, and then names the good one.
  with pytest.raises(loop.TrainingError, match=r"6 steps in a row .* Checkpoint 8 is good"):
    run(tmp_path, bad=bad)
  assert checkpoint.available_steps(tmp_path) == [4, 8]
  assert (tmp_path / "damaged_checkpoints" / "12").is_dir()
  assert run(tmp_path).start_step == 8


def test_a_checkpoint_of_nan_is_passed_over(tmp_path):
  """Older versions also saved states that were not finite."""
  run(tmp_path, steps=8, keep=2)
  checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
  adam = optimizer.AdamW(learning_rate=lambda step: 1e-3).transformation()
  state = jax.jit(lambda: step_lib.initial_state(MODEL, adam, step_lib.StepOptions(), 0))()
  bad = jax.tree.map(lambda x: jnp.asarray(np.full_like(x, math.nan)), state.params)
  checkpoints.save(state._replace(step=jnp.int32(9), params=bad), {"data": {}})
  checkpoints.close()
  found = checkpoint.Checkpoints(tmp_path).restore(checkpoint.abstract_like(state))
  assert found.step == 8
  assert "holds values that are not finite" in found.passed_over[0]


class Saved:
  def __init__(self, step, metrics):
    self.step, self.metrics = step, metrics


def stay(newest, losses, unjudged=()):
  found = [Saved(s, retention.metrics(loss, s not in unjudged)) for s, loss in losses.items()]
  kept = retention.Retention(newest).should_preserve(found, context=None)
  return [one.step for one, stays in zip(found, kept, strict=True) if stays]


def test_nan_is_never_best_and_an_unjudged_one_takes_no_place():
  nan, inf = math.nan, math.inf
  assert stay(1, {1: 0.5, 2: 0.4, 3: nan, 4: -inf, 5: 0.6}) == [2, 5]
  # Nobody has seen the loss of 5's own parameters: 4 stays.
  assert stay(1, {1: 0.5, 2: 0.4, 3: 0.7, 4: 0.7, 5: None}) == [2, 4, 5]
  assert stay(2, {1: 0.5, 2: nan, 3: nan, 4: None, 5: 0.1}, unjudged=(5,)) == [1, 3, 4, 5]
  assert stay(2, {1: None, 2: None, 3: None, 4: None}, unjudged=(3,)) == [2, 4]


def test_a_nan_that_an_older_run_kept_is_not_best(tmp_path):
  run(tmp_path, steps=8, keep=2, evaluate_every=4, evaluate=lambda params: {"heldout_loss": 2.0})
  file = tmp_path / "checkpoints" / "4" / "metrics" / "metrics"
  file.write_text(json.dumps({"heldout_loss": math.nan}))
  described = file.parents[1] / "_CHECKPOINT_METADATA"
  contents = json.loads(described.read_bytes())
  sealed = checksum.unseal(contents["custom_metadata"])
  del sealed["metrics"]
  sealed["position"]["heldout"]["heldout_loss"] = None
  described.write_text(json.dumps({**contents, "custom_metadata": checksum.seal(sealed)}))
  assert chosen_checkpoint.choose(tmp_path / checkpoint.FOLDER, [4, 8], "best") == 8
  run(tmp_path, steps=9, keep=1)
  assert checkpoint.available_steps(tmp_path) == [8, 9]
