"""Trains a built experiment in a run directory."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
import sys
from collections.abc import Callable
from typing import Any

from base.errors import UserError
from base.wording import plural
from config.config import Config
from data import loader
from data.tokenizers import Symbols
from evaluation import held_out
from evaluation.perplexity import Scorer
from experiment import budget, directory_owner, kept_files, run_directory, trained
from experiment.experiment import Experiment
from experiment.run_directory import Difference, RunDirectory
from experiment.trust import NOBODY, Trust
from models.accounting import account
from parallel import connections, processes
from parallel.sharding_plan import ShardingPlan
from training import checkpoint, checkpoint_identity, loop, programs, rates, step_costs
from training.metrics import METRICS_FILE, ProgressLine, read_metrics
from training.optimizer import rate_at
from training.tracking import Tracking, require_installed


def train(
  experiment: Experiment,
  config: Config,
  run: RunDirectory,
  sharding_plan: ShardingPlan,
  *,
  asked_by: str,
  resume: str = "same",
  trust: Trust = NOBODY,
  made_here: bool = True,
  introduce: Callable[[int], None] | None = None,
  after_first_step: Callable[[], None] | None = None,
  progress: ProgressLine | None = None,
  peak_flops: float | None = None,
  tracking: Tracking | None = None,
  profile: range | None = None,
) -> loop.Summary:
  """Trains an experiment, or continues the run in the directory.

  Args:
    experiment, config: the experiment, and its configuration.
    run: the run directory.
    sharding_plan: the experiment's layout.
    asked_by: the command line, for the first line of the stored configuration.
    resume: 'force' continues although the configuration differs from the run's.
    trust: other modules than this project's that the stored configuration may name.
    made_here: whether the user made the configuration, so that it is trusted from now on.
    introduce: called in the first process with the number of training rows, before the first step.
    after_first_step: called after the first step is compiled and done.
    progress: shows the steps; None prints a progress line.
    peak_flops: a device's bfloat16 FLOP/s, for MFU; None if unknown.
    tracking: opens the run's trackers, and leaves them open for more; None closes them at the end.
    profile: steps to trace; see `training.profiler`.

  Raises:
    UserError: the directory contains another run, another process trains there, or the processes
      and the mesh do not fit.
  """
  run.require_place()
  _agree(processes.require_same, config.text(), "the configuration")
  _agree(processes.require_shared, run.path)
  require_installed(experiment.options.all_writers())
  with contextlib.ExitStack() as stack:
    require_mine = stack.enter_context(directory_owner.owned_by_job(run.path))
    return _train(
      experiment,
      config,
      run,
      sharding_plan,
      require_mine,
      asked_by,
      resume,
      trust,
      made_here,
      introduce,
      after_first_step,
      progress,
      peak_flops,
      tracking or stack.enter_context(Tracking()),
      profile,
    )


def _train(
  experiment: Experiment,
  config: Config,
  run: RunDirectory,
  sharding_plan: ShardingPlan,
  require_mine: Callable[[], None],
  asked_by: str,
  resume: str,
  trust: Trust,
  made_here: bool,
  introduce: Callable[[int], None] | None,
  after_first_step: Callable[[], None] | None,
  progress: ProgressLine | None,
  peak_flops: float | None,
  tracking: Tracking,
  profile: range | None,
) -> loop.Summary:
  """Trains in a locked directory; see `train`."""
  for told in checkpoint_identity.set_strangers_aside(run.path) if processes.is_first() else ():
    print(f"warning: {told}", file=sys.stderr)
  run.restore()
  if checkpoint.is_parameters_alone(run.path):
    raise UserError(
      f"{run} contains imported weights only: there is nothing to resume. "
      f"Train in another directory: --init_from={shlex.quote(str(run))} --run_dir=..."
    )
  experiment.check_tokenizer()
  experiment.check_step(sharding_plan)
  if not checkpoint.available_steps(run.path):
    trained.check_start(experiment)
  if experiment.mesh is None and processes.count() > 1:
    raise UserError(
      f"{processes.count()} processes train, but the configuration is for one device "
      "(gin/mesh/single.gin). Add another mesh to the command, such as gin/mesh/zero3.gin."
    )
  _require_steps_left(experiment, config, run)
  different = run.differences(config, trust) if run.holds_run() else []
  require_arrays = functools.partial(
    programs.require_same_arrays,
    run.path,
    experiment.model,
    rates.transformation(experiment.optimizer),
    experiment.options.step,
    sharding_plan,
    experiment.batch_size,
  )
  if resume != "force":
    _require_same(
      different, run, require_arrays, lambda: _require_lanes(experiment, run, different)
    )
  # Missing rows are made before anything is written into the run directory.
  if not processes.is_first():
    processes.wait_for_all("the first process's rows")  # It makes and checks them for all.
  train_rows, eval_rows = experiment.rows()
  if processes.is_first():
    processes.wait_for_all("the first process's rows")
  data = {"training rows": train_rows.fingerprint, "held-out rows": eval_rows.fingerprint}
  _agree(processes.require_same, json.dumps(data, indent=0), "the rows")
  if run.holds_run() and resume != "force":
    changed = run.data_differences(data)
    _require_same(changed, run, lambda: _require_lanes(experiment, run, changed))
  if resume != "force":
    _require_checkpoints(experiment, run)
  elif run.holds_run():
    changed = []
    # What cannot be read is taken for the run's, as --resume=force says.
    with contextlib.suppress(UserError):
      changed = run.data_differences(data)
    _require_lanes(experiment, run, [*different, *changed])
  # Before the run's configuration is replaced.
  abstract_params = require_arrays()
  processes.wait_for_all("compared with the run")
  connections.connect(sharding_plan.mesh)
  start = _start(experiment, run, abstract_params)
  # Making rows takes long enough to lose the directory.
  require_mine()
  if processes.is_first():
    if different and (jump := _learning_rate_jump(experiment, run)):
      print(f"warning: {jump}", file=sys.stderr)
    _keep_metrics(run)
    if different or not run.holds_run() or not run.holds_text_of(config):
      note = experiment.chosen_size
      run.write_config(config, asked_by, made_here=made_here, note=note)
    run.write_data(data, experiment.tokenizer)
    # So that the run directory is complete, also for runs that start from it.
    kept_files.keep(kept_files.folder(run.path, experiment), run.path / kept_files.FOLDER)

  # A symbol of a task is no text: its bits would be called those of a byte.
  spells_text = not isinstance(experiment.tokenizer, Symbols)
  scorer = Scorer(experiment.model, sharding_plan)

  def evaluate(params: Any) -> dict[str, float]:
    whole, components = held_out.score(
      scorer,
      params,
      eval_rows,
      experiment.batch_size,
      most_batches=experiment.eval_batches,
      carry=experiment.options.step.carry_state,
    )
    found = {}
    for suffix, score in {
      "": whole,
      **{f"/{name}": one for name, one in components.items()},
    }.items():
      found[f"heldout_loss{suffix}"] = score.loss
      if spells_text:
        found[f"heldout_bits_per_byte{suffix}"] = score.bits_per_byte
    return found

  batches = loader.batches(
    train_rows,
    experiment.batch_size,
    seed=experiment.seed,
    slots=_slots(experiment, sharding_plan),
    in_lanes=experiment.options.step.carry_state,
  )
  if processes.is_first():
    _tell_of_lanes(experiment, train_rows)
  if introduce and processes.is_first():
    introduce(len(train_rows))
  try:
    return loop.train(
      model=experiment.model,
      optimizer=rates.transformation(experiment.optimizer),
      learning_rate=experiment.optimizer.learning_rate,
      batches=batches,
      batch_size=experiment.batch_size,
      options=experiment.options,
      run_dir=run.path,
      seed=experiment.seed,
      bytes_per_token=train_rows.bytes_per_token if spells_text else None,
      tokens_per_target=train_rows.tokens_per_target,
      evaluate=evaluate,
      start=start,
      identity={"config": config.text(), "data": data},
      sharding_plan=sharding_plan,
      after_first_step=after_first_step,
      progress=progress,
      before_writing=require_mine,
      work=_work(experiment, sharding_plan, peak_flops),
      tracking=tracking,
      hyperparameters=run_directory.values_in_force(config),
      profile=profile,
    )
  finally:
    batches.close()


def _require_lanes(experiment: Experiment, run: RunDirectory, different: list[Difference]) -> None:
  """Raises UserError if the states of a run would be carried into other documents than theirs."""
  if not experiment.options.step.carry_state or not checkpoint.available_steps(run.path):
    return
  of_lanes = ("training rows", "experiment.Experiment.seed", "step.StepOptions.initial_state")
  if changed := [one for one in different if one.name.endswith(of_lanes)]:
    lines = "\n".join(map(str, changed))
    raise UserError(
      f"{run} carries states in the middle of documents, and would go on in others:\n{lines}\n"
      f"Leave this as it is, or start another run from it: --init_from={shlex.quote(str(run))}"
    )


def _tell_of_lanes(experiment: Experiment, rows: Any) -> None:
  """Says that no state is carried or passed, where each document lies in one row or no row may."""
  options, steps = experiment.options.step, experiment.options.steps
  passes = options.passed_share > 0 and options.passed_after < steps
  if options.initial_state == "passed" and not passes:
    print(
      f"warning: none of {plural(steps, 'step')} passes states: passed_share is "
      f"{options.passed_share:g}, and passed_after {options.passed_after:,}",
      file=sys.stderr,
    )
  if experiment.options.step.carry_state and not rows.counts.cut_documents:
    print(
      f"warning: no document goes on in a second row of {rows.sequence_length} tokens: carry_state "
      "carries nothing",
      file=sys.stderr,
    )


def _work(
  experiment: Experiment, sharding_plan: ShardingPlan, peak_flops: float | None
) -> step_costs.Work | None:
  """Returns a device's share of a step, as `launch.plan` counts it; None if its peak is unknown."""
  if peak_flops is None:
    return None
  rows, length = experiment.batch_size, experiment.sequence_length
  per_token = account(experiment.model, batch_size=rows, length=length).training_flops
  return step_costs.Work(per_token * rows * length / sharding_plan.mesh.size, peak_flops)


def _slots(experiment: Experiment, sharding_plan: ShardingPlan) -> list[int] | None:
  """Returns the rows of each batch that this process's devices need; None for all."""
  if sharding_plan.mesh.size == 1:
    return None
  return sharding_plan.rows_here(experiment.batch_size, experiment.sequence_length).tolist()


def _require_steps_left(experiment: Experiment, config: Config, run: RunDirectory) -> None:
  """Raises UserError if the run has done more steps than configured."""
  done = max(checkpoint.available_steps(run.path), default=0)
  steps = experiment.options.steps
  if steps < done:
    flops = budget.told(config)
    asked = f"the {plural(steps, 'step')} of {flops}" if flops else f"STEPS={steps}"
    raise UserError(
      f"{run} has done {plural(done, 'step')}, more than {asked}. Give at least "
      f"--gin.STEPS={done}, or another --run_dir."
    )


def _learning_rate_jump(experiment: Experiment, run: RunDirectory) -> str | None:
  """Describes the difference between a changed schedule and the last logged rate; None if none."""
  file = run.path / METRICS_FILE
  records = read_metrics(file) if file.is_file() else []
  last = next((record for record in reversed(records) if "learning_rate" in record), None)
  if last is None:
    return None
  step, was = last["step"], last["learning_rate"]
  # As in the log: the schedule does not count skipped steps.
  taken = step - last.get("skipped", 0)
  now = rate_at(experiment.optimizer.learning_rate, max(0, taken - 1))
  if was is None or math.isclose(was, now, rel_tol=1e-3, abs_tol=1e-12):
    return None
  return (
    f"the learning rate jumps from {was:.3g} (logged at step {step}) to {now:.3g} (new schedule at "
    "that step)"
  )


def _require_checkpoints(experiment: Experiment, run: RunDirectory) -> None:
  """Raises UserError if a run's checkpoints are missing, rather than restart it silently."""
  file = run.path / METRICS_FILE
  if checkpoint.available_steps(run.path) or not file.is_file():
    return
  done = max((record["step"] for record in read_metrics(file)), default=0)
  # The second checkpoint starts only after the first is complete.
  every = experiment.options.checkpoint_every or math.inf
  if done > 2 * every:
    raise UserError(
      f"{run} has no checkpoint, although {METRICS_FILE} has {plural(done, 'step')}. "
      f"Restore {run}/{checkpoint.FOLDER}, name another --run_dir, or give --resume=force to "
      "start at step 0."
    )


def _keep_metrics(run: RunDirectory) -> None:
  """Renames the metrics of a run without checkpoints, which starts again at step 0."""
  file = run.path / METRICS_FILE
  if checkpoint.available_steps(run.path) or not file.is_file() or not file.stat().st_size:
    return
  number = 1
  while (kept := file.with_name(f"{file.stem}.{number}{file.suffix}")).exists():
    number += 1
  file.rename(kept)
  print(
    f"{run} has no checkpoint: it starts at step 0 (old {file.name} renamed to {kept.name})",
    file=sys.stderr,
  )


def _start(experiment: Experiment, run: RunDirectory, abstract: Any) -> Callable[[Any], Any] | None:
  """Returns a function that hands over the parameters of `init_from`; None for random ones.

  They are read now: a failure must not leave a run directory, which asks for the same start.
  """
  if experiment.init_from is None:
    return None
  if checkpoint.available_steps(run.path):
    return functools.partial(trained.start, experiment)  # Used if no checkpoint can be read.
  held = [trained.start(experiment, abstract)]
  return lambda _: held.pop()  # So that nothing else holds what the train state takes over.


def _agree(check: Callable[..., None], *args: Any) -> None:
  """Raises UserError on every process if one differs: see `parallel.processes`."""
  try:
    check(*args)
  except ValueError as error:
    raise UserError(str(error)) from None


def _require_same(
  different: list[Difference], run: RunDirectory, *requirements: Callable[[], Any]
) -> None:
  """Raises UserError if there are differences.

  Args:
    different: the differences.
    run: the run.
    requirements: what --resume=force requires too: if one raises an error, that is not advised.
  """
  if not different:
    return
  lines = "\n".join(map(str, different))
  advice = "Give --resume=force to continue with the new values, or another --run_dir."
  try:
    for require in requirements:
      require()
  except checkpoint.CheckpointError as error:
    advice = f"It cannot continue with the new values: {error} Or name another --run_dir."
  raise UserError(f"{run} contains a run with another configuration:\n{lines}\n{advice}")
