"""A profile has the steps that were asked for, and reads like the model."""

import os
import re
import signal

import jax
import pytest

from base.errors import UserError
from launch import train
from tests import small_run
from tests.small_models import build
from training import memory_report, optimizer, profiler, step


def traced_steps(run_dir):
  """The steps of each trace, in the order of time."""
  found = []
  for file in sorted(run_dir.glob("profile/plugins/profile/*/*.xplane.pb")):
    events = [
      event
      for plane in jax.profiler.ProfileData.from_file(str(file)).planes
      for one in plane.lines
      for event in one.events
      if event.name == "train"
    ]
    found.append([dict(event.stats)["step_num"] for event in events])
  return found


def test_the_named_steps_are_traced(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  small_run.write("run.gin")
  assert train.main(["run.gin", "--run_dir=a", "--profile=3:4", "--gin.STEPS=5"]) == 0
  assert traced_steps(tmp_path / "a") == [[3, 4]]
  assert "a profile is in " in capsys.readouterr().err


def test_a_signal_traces_the_next_steps(tmp_path):
  said = []
  with profiler.Profiler(tmp_path, say=said.append) as one:
    for number in range(1, 12):
      if number == 3:
        os.kill(os.getpid(), signal.SIGUSR2)
      if one.begins(number):
        one.begin()
      with one.step(number):
        jax.block_until_ready(jax.numpy.zeros(3) + number)
      if one.ends(number):
        one.end()
  assert traced_steps(tmp_path) == [list(range(3, 3 + profiler.STEPS))]
  assert len(said) == 1


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


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path):
  (tmp_path / profiler.FOLDER).write_text("no folder")
  said = []
  with profiler.Profiler(tmp_path, range(1, 2), said.append) as one:
    assert one.begins(1)
    one.begin()
    with one.step(1):
      pass
    if one.ends(1):
      one.end()
  assert [line[:19] for line in said] == ["warning: no profile"]


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


def lowered():
  model = build("griffin")
  update = optimizer.AdamW(learning_rate=lambda count: 1e-3).transformation()
  options = step.StepOptions()
  state = jax.eval_shape(lambda: step.initial_state(model, update, options, 0))
  return step.jit_train_step(model, update, options).lower(state, step.abstract_batch(2, 16)), state


def test_operations_have_the_names_of_the_model_s_parts():
  text = lowered()[0].as_text(debug_info=True)
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
  state = lowered()[1]
  with pytest.raises(UserError) as raised, memory_report.explained(tmp_path, state):
    jax.numpy.zeros(2**46).block_until_ready()
  lines = str(raised.value).splitlines()
  assert re.match(r"not enough memory: .*(allocat|memory)", lines[0])
  assert re.search(r"0\.30 MB of parameters, 0\.61 MB of optimizer state", lines[1])
  assert re.fullmatch(r" +0\.01 MB  parameter stack/\S+/mlp/down/kernel: float32\[.*\]", lines[2])
  assert "--gin.MICROBATCHES" in lines[-1]
  assert (tmp_path / memory_report.FILE).stat().st_size


def test_other_errors_pass(tmp_path):
  with pytest.raises(KeyError), memory_report.explained(tmp_path, None):
    raise KeyError("x")
  assert not list(tmp_path.iterdir())
