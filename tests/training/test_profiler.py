"""A profile has the steps that were asked for, and reads like the model."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from base.errors import UserError
from launch import train
from tests import small_run
from tests.small_models import build
from training import memory_report, optimizer, profiler, step


def test_traces_in_a_process_of_their_own():
  """A trace begins in every plugin: in that of libtpu, if another test loaded it, it crashes."""
  traces = Path(__file__).with_name("traces.py")
  done = subprocess.run(
    [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", traces],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("before", [signal.SIG_DFL, lambda number, frame: None])
def test_a_signal_outside_of_the_steps_ends_nothing(before):
  held = signal.signal(signal.SIGUSR2, before)
  try:
    with pytest.raises(SystemExit):
      train.main([])
    found = signal.getsignal(signal.SIGUSR2)
  finally:
    signal.signal(signal.SIGUSR2, held)
  assert found == (signal.SIG_IGN if before == signal.SIG_DFL else before)


def test_steps_that_are_done_already_are_told(tmp_path):
  said = []
  with profiler.Profiler(tmp_path, range(3, 5), said.append) as one:
    assert not one.begins(9)
  assert said == ["warning: no profile: none of the steps 3 to 4 was done"]


@pytest.mark.parametrize("given", ["5", "0:3", "4:3", "a:b", "3:"])
def test_other_texts_are_refused(given, capsys):
  with pytest.raises(SystemExit):
    train.parser().parse_args(["run.gin", f"--profile={given}"])
  assert "must be the first and the last step" in capsys.readouterr().err


def test_steps_behind_the_last_are_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  small_run.write("run.gin")
  with pytest.raises(SystemExit):
    train.main(["run.gin", "--run_dir=a", "--profile=3:9"])
  assert "the run ends at step 6" in capsys.readouterr().err


def state_and_step():
  model = build("griffin")
  update = optimizer.AdamW(learning_rate=lambda count: 1e-3).transformation()
  options = step.StepOptions()
  state = jax.eval_shape(lambda: step.initial_state(model, update, options, 0))
  return state, step.jit_train_step(model, update, options)


def test_operations_have_the_names_of_the_model_s_parts():
  state, run = state_and_step()
  text = run.lower(state, step.abstract_batch(2, 16)).as_text(debug_info=True)
  for part in (
    r"block_0/RecurrentBlock/mixer/linear_y",
    r"block_0/RecurrentBlock/mixer/rg_lru/gate_a",
    r"SelfAttention/mixer/mixer\._attend/attention",
    r"block_0/mlp",
    r"final_norm",
    r"jvp\(loss\)",
    r"/optimizer/",
    r"/spike_detector/",
  ):
    assert re.search(part, text), part


def test_a_lack_of_memory_names_the_largest_arrays(tmp_path):
  state, _ = state_and_step()
  with pytest.raises(UserError) as raised, memory_report.explained(tmp_path, state):
    jax.numpy.zeros(2**46).block_until_ready()
  lines = str(raised.value).splitlines()
  assert re.match(r"not enough memory: .*(allocat|memory)", lines[0])
  assert re.search(r"0\.29 MB of parameters, 0\.58 MB of optimizer state", lines[1])
  # Arrays that other tests of this process left alive may be larger.
  kernel = r" +0\.02 MB  parameter stack/\S+/mlp/down/kernel: float32\[.*\]"
  assert any(re.fullmatch(kernel, line) for line in lines[2:])
  assert "--gin.MICROBATCHES" in lines[-1]
  assert (tmp_path / memory_report.FILE).stat().st_size


def test_other_errors_pass(tmp_path):
  with pytest.raises(KeyError), memory_report.explained(tmp_path, None):
    raise KeyError("x")
  assert not list(tmp_path.iterdir())
