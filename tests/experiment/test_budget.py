"""FLOPS asks for a training that takes so many operations, in place of STEPS."""

import pytest

from base.errors import UserError
from config.config import ConfigError
from config.source import read_text
from experiment import budget, describe, experiment, running
from experiment.run_directory import RunDirectory
from models.accounting import account

RUN = "runs/griffin_quickstart.gin"


def built(*arguments):
  return experiment.build(experiment.load([RUN], arguments))


def flops(run):
  counted = account(run.model, batch_size=run.batch_size, length=run.sequence_length)
  return counted.training_flops * run.batch_size * run.sequence_length * run.options.steps


@pytest.mark.parametrize("wanted", ["3e13", "1e15", "2000000000000000"])
@pytest.mark.parametrize("other", [(), ("--gin.PARAMETERS=3e6",), ("--gin.BATCH_SIZE=7",)])
def test_as_many_steps_as_take_the_flops(wanted, other):
  run = built(f"--gin.FLOPS={wanted}", *other)
  assert flops(run) == pytest.approx(float(wanted), rel=0.5 / run.options.steps)
  # The schedule ends with the run.
  assert run.optimizer.learning_rate(run.options.steps) == pytest.approx(2e-4, rel=1e-3)


def test_what_is_set_later_holds():
  assert built("--gin.FLOPS=1e15", "--gin.STEPS=77").options.steps == 77
  assert built("--gin.STEPS=77", "--gin.FLOPS=1e15").options.steps > 1000
  # Fewer than the warm-up has: they are replaced, so that nothing is wrong with them.
  assert built("--gin.STEPS=10", "--gin.FLOPS=1e15").options.steps > 1000


def test_the_saved_configuration_has_the_steps():
  config = experiment.load([RUN], ["--gin.FLOPS=1e15"])
  steps = experiment.build(config).options.steps
  assert f"STEPS = {steps}" in config.text()
  assert "FLOPS" not in config.macros
  assert budget.told(config) == "--gin.FLOPS=1e15"
  assert budget.told(experiment.load([RUN], ["--gin.STEPS=50"])) is None
  again = experiment.resolve(read_text(config.text()), "again")
  assert experiment.build(again).options.steps == steps


@pytest.mark.parametrize(
  ("value", "told"),
  [
    ("0", "must be a number above 0"),
    ("-1e15", "must be a number above 0"),
    ("many", "FLOPS = 'many' must be a number"),
    ("True", "must be a number"),
    ("1e400", "the number inf is not finite"),
    ("1e6", r"is less than a step takes \(5.98e\+10\)"),
  ],
)
def test_impossible_budgets_are_one_clear_error(value, told):
  with pytest.raises(ConfigError, match=told):
    built(f"--gin.FLOPS={value}")


def test_too_few_steps_for_the_warm_up_name_the_flops():
  with pytest.raises(ConfigError, match=r"--gin.STEPS=... \(now 17, --gin.FLOPS=1e12\)"):
    built("--gin.FLOPS=1e12")


def test_a_description_tells_the_steps_and_their_flops():
  lines = describe.description(built("--gin.FLOPS=1e14")).splitlines()
  assert [line.split()[-3:] for line in lines if line.startswith("steps, FLOPs of all")] == [
    ["1,671,", "100", "T"]
  ]


def test_fixed_steps_are_told():
  with pytest.raises(ConfigError, match="FLOPS has no effect"):
    built("--gin.FLOPS=1e15", "--gin.loop.LoopOptions.steps=9")


def test_fewer_steps_than_are_done_are_told_by_what_asked_for_them(tmp_path):
  (tmp_path / "checkpoints/9000").mkdir(parents=True)
  mine = tmp_path / "mine.gin"
  mine.write_text("WIDTH = 64\nFLOPS = 1e13\n")
  for files, arguments, told in (
    ([RUN], ["--gin.FLOPS=1e13"], r"more than the \d+ steps of --gin.FLOPS=1e13\."),
    ([RUN], ["--gin.STEPS=77"], r"more than STEPS=77\."),
    ([RUN, mine], [], r"more than the [\d,]+ steps of FLOPS = 1e\+?13 in .*mine\.gin:2\."),
    ([RUN, mine], ["--gin.STEPS=77"], r"more than STEPS=77\."),
  ):
    config = experiment.load(files, arguments)
    with pytest.raises(UserError, match=rf"has done 9,?000 steps, {told} Give at least"):
      running._require_steps_left(experiment.build(config), config, RunDirectory(tmp_path))
