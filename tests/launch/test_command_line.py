"""How every command parses its arguments, and how it ends if the machine refuses something."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from jax.errors import JaxRuntimeError

import contract
from base.errors import UserError
from contract.finding import Finding, Outcome
from experiment import model_zoo
from launch import (
  check,
  command,
  compare,
  convert,
  evaluate,
  generate,
  plan,
  prepare,
  train,
)
from launch import vocabulary as vocabulary_command
from tests import preparations

ROOT = Path(__file__).parents[2]
COMMANDS = {
  "check": check,
  "compare": compare,
  "convert": convert,
  "evaluate": evaluate,
  "generate": generate,
  "plan": plan,
  "prepare": prepare,
  "train": train,
  "vocabulary": vocabulary_command,
}
RUN_FILE = "gin/runs/hawk_quickstart.gin"


def refusal(capsys, name: str, *arguments: str) -> str:
  """Runs a command that must be refused; returns its only line."""
  with pytest.raises(SystemExit) as ended:
    COMMANDS[name].main(arguments)
  assert ended.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1, lines
  assert len(lines[0]) < 500
  return lines[0]


def launched(*arguments: str, cwd: Path = ROOT, **options) -> subprocess.CompletedProcess:
  """Runs a command in a separate process."""
  environment = os.environ | {"PYTHONPATH": preparations.with_hook(ROOT)} | options.pop("env", {})
  return subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=cwd,
    env=environment,
    text=True,
    stdout=options.pop("stdout", subprocess.PIPE),
    stderr=subprocess.PIPE,
    **options,
  )


def ends_with_a_line(ended: subprocess.CompletedProcess) -> str:
  """The one line on stderr of a command that was refused."""
  assert ended.returncode == 2, ended.stderr
  lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
  assert len(lines) == 1, ended.stderr
  assert len(lines[0]) < 500
  assert "Traceback" not in ended.stderr
  return lines[0]


def test_files_and_options_stand_in_any_order():
  options = train.parser()
  args, bindings = command.parse(
    options, ["a.gin", "--run_dir=x", "b.gin", "--gin.STEPS", "3", "c.gin"]
  )
  assert args.config == ["a.gin", "b.gin", "c.gin"]
  assert bindings == ["--gin.STEPS=3"]
  args, _ = command.parse(plan.parser(), ["a.gin", "--hardware=v5e-4", "b.gin"])
  assert args.config == ["a.gin", "b.gin"]
  args, _ = command.parse(convert.parser(), ["a", "--merge", "b"])
  assert (args.source.name, args.target.name) == ("a", "b")


@pytest.mark.parametrize(
  ("name", "argument", "meant"),
  [
    ("train", "--STEPS=20", "--gin.STEPS=20?"),
    ("train", "--steps=20", "--gin.STEPS=20?"),
    ("train", "--BATCHSIZE=20", "--gin.BATCH_SIZE=20?"),
    ("train", "--models.griffin.griffin.window=64", "a binding has the form --gin.NAME=VALUE"),
    ("train", "--rundir=x", "--run_dir?"),
    ("train", "--run-dir=x", "--run_dir?"),
    ("train", "-run_dir=x", "--run_dir?"),
    ("train", "gin.STEPS=3", "did you mean --gin.STEPS=3?"),
    ("train", "-gin.STEPS=3", "did you mean --gin.STEPS=3?"),
    ("compare", "gin.a/b.C.d=3", "did you mean --gin.a/b.C.d=3?"),
    ("evaluate", "--rundir=x", "--run_dir?"),
    ("compare", "--ouput=x", "--output?"),
    ("convert", "--merged", "--merge?"),
    ("generate", "--tempreature=1", "--temperature?"),
    ("check", "--modle=hawk", "--model?"),
    ("check", "--models=hawk", "--model?"),
    ("plan", "--model=hawk", "--models?"),
    ("plan", "--hardwear=v5e-4", "--hardware?"),
    ("vocabulary", "--inputs=a.txt", "--input?"),
  ],
)
def test_an_unknown_option_is_told_with_the_one_that_is_meant(capsys, name, argument, meant):
  said = refusal(capsys, name, argument)
  if not argument.lstrip("-").startswith("gin."):
    assert f"unknown option: {argument.partition('=')[0]}" in said
  assert meant in said


@pytest.mark.parametrize("after", [["--describe"], ["--run_dir=x"], ["--gin.WIDTH=64"], []])
def test_a_binding_does_not_take_an_option_for_its_value(capsys, after):
  said = refusal(capsys, "train", "a.gin", "--gin.STEPS", *after)
  assert "--gin.STEPS needs a value: --gin.STEPS=..." in said


def test_a_negative_number_may_stand_apart_from_its_binding():
  _, bindings = command.parse(train.parser(), ["a.gin", "--gin.DATA_SHARDS", "-1"])
  assert bindings == ["--gin.DATA_SHARDS=-1"]


@pytest.mark.parametrize(
  ("name", "arguments", "option"),
  [
    ("train", ["--run_dir=a", "--run_dir=b"], "--run_dir"),
    ("train", ["--run_dir", "a", "--run_dir", "a"], "--run_dir"),
    ("compare", ["--output=a", "--output=b"], "--output"),
    ("evaluate", ["--run_dir=a", "--length=8", "--length=9"], "--length"),
    ("generate", ["--run_dir=a", "--seed=1", "--seed=2", "--prompt=x", "--prompt=y"], "--seed"),
    ("vocabulary", ["--input=a", "--input=b", "--output=a", "--output=b"], "--output"),
  ],
)
def test_an_option_of_one_value_is_given_once(capsys, name, arguments, option):
  assert f"{option} is given 2 times" in refusal(capsys, name, *arguments)


def test_options_of_several_values_are_given_often():
  args, _ = command.parse(generate.parser(), ["--run_dir=x", "--prompt=a", "--prompt=b"])
  assert args.prompt == ["a", "b"]


@pytest.mark.parametrize(
  ("name", "arguments", "option"),
  [
    ("evaluate", ["--run_dir=x", "--limit=3"], "--limit"),
    ("evaluate", ["--run_dir=x", "--fewshot=0"], "--fewshot"),
    ("evaluate", ["--run_dir=x", "--harness=piqa", "--by_position"], "--by_position"),
    ("evaluate", ["--run_dir=x", "--harness=piqa", "--contexts=8"], "--contexts"),
    ("evaluate", ["--run_dir=x", "--harness=piqa", "--data=a.gin"], "--data"),
    ("evaluate", ["--run_dir=x", "--harness=piqa", "--gin.STEPS=1"], "--gin.STEPS=1"),
    ("generate", ["--run_dir=x", "--temperature=0", "--top_k=3"], "--top_k"),
    ("generate", ["--run_dir=x", "--temperature=0", "--seed=3"], "--seed"),
    ("compare", [RUN_FILE, "--describe", "--only=scaling"], "--only"),
    ("train", [RUN_FILE, "--describe", "--resume=force"], "--resume"),
    ("train", [RUN_FILE, "--print_config", "--describe"], "--describe"),
    ("plan", [RUN_FILE, "--hardware=v5e-4", "--compiles=3"], "--compiles"),
  ],
)
def test_an_option_that_another_one_leaves_without_effect_is_refused(
  capsys, name, arguments, option
):
  assert f"{option} has no effect" in refusal(capsys, name, *arguments)


@pytest.mark.parametrize("binding", ["--gin.DEPTH=4", "--gin.models.backbone.Backbone.depth=4"])
def test_a_depth_that_the_check_would_replace_is_refused(capsys, binding):
  told = refusal(capsys, "check", "--model=griffin", binding)
  assert f"{binding} has no effect: the depth is two repeats of the model's pattern" in told


def test_a_misspelled_check_is_told_the_nearest(capsys):
  told = refusal(capsys, "check", "--model=griffin", "--only=causalty,packing")
  assert "unknown check: 'causalty'; did you mean causality?" in told


def test_memory_that_ran_out_says_nothing_about_a_model(monkeypatch):
  def check_of_a_large_model(subject):
    raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 252900000000 bytes.")
    yield

  monkeypatch.setitem(contract.CHECKS, "causality", check_of_a_large_model)
  model, _ = model_zoo.build(["models/griffin.gin"])
  told = r"not enough memory for the check 'causality' \(.* 252.*\). Check a smaller model, such as"
  with pytest.raises(UserError, match=told):
    list(contract.run(model, ["causality"]))


def test_the_command_after_a_search_names_each_file_and_macro_once():
  setup = ["gin/mesh/data.gin", "--gin.DATA_SHARDS=4", "--gin.MICROBATCHES=2"]
  given = [RUN_FILE, "mesh/data.gin", "--gin.DATA_SHARDS=2", "--gin.BATCH_SIZE=8"]
  assert plan._without_replaced(given, setup) == [RUN_FILE, "--gin.BATCH_SIZE=8"]
  assert plan._without_replaced(given, []) == given


def test_a_benchmark_of_an_absent_gpu_helps_without_its_extra():
  ended = launched("benchmarks.compile_gpu", "--help", stdin=subprocess.DEVNULL)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout.startswith("usage: ")


def test_conversions_refuse_what_they_have_no_use_for(tmp_path, capsys):
  run, weights = tmp_path / "run", tmp_path / "weights"
  run.mkdir()
  (run / "config.gin").touch()
  weights.mkdir()
  (weights / "config.json").touch()
  for source, more in (
    (run, ["--merge", "--dtype=float32"]),
    (run, ["--vocabulary=bytes"]),
    (run, ["--gin.WINDOW=8"]),
    (run, ["--merge", "--gin.WINDOW=8"]),
    (weights, ["--merge"]),
    (weights, ["--dtype=float32"]),
    (weights, ["--checkpoint=latest"]),
  ):
    said = refusal(capsys, "convert", str(source), str(tmp_path / "target"), *more)
    assert f"{more[-1].partition('=')[0]}" in said
    assert "has no effect" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_defaults_and_files_that_exist(name):
  text = COMMANDS[name].parser().format_help()
  assert not re.search(r"(?<!default: )\((same|best|train|\d[\d.]*)\)", text)
  assert_files_exist(text)


def assert_files_exist(text: str) -> None:
  for file in re.findall(r"(?<![\w{}/.*])((?:gin/)?[a-z_]+/[\w]+\.gin)\b", text):
    folder = file.removeprefix("gin/").partition("/")[0]
    if file.startswith("gin/") or (ROOT / "gin" / folder).is_dir():
      assert (ROOT / "gin" / file.removeprefix("gin/")).is_file(), file


def test_gin_files_that_the_code_names_exist():
  for folder in ("launch", "data", "training", "models", "layers", "parallel", "evaluation", "gin"):
    for file in (ROOT / folder).rglob("*"):
      if file.suffix in (".py", ".gin"):
        text = file.read_text(encoding="utf-8").replace("gin/runs/x.gin", "")
        assert_files_exist(text)


@pytest.mark.parametrize(
  ("name", "arguments", "says"),
  [
    ("generate", ["a.gin", "--run_dir=x"], "a.gin is not needed: the run has its own config"),
    ("evaluate", ["a.gin", "--run_dir=x"], "or name other text with --data=a.gin"),
    ("generate", [str(ROOT), "--prompt=x"], f"did you mean --run_dir={ROOT}?"),
    ("evaluate", ["--by_position", str(ROOT)], f"did you mean --run_dir={ROOT}?"),
    ("generate", ["--run_dir=x", "--prompt", "Two", "words"], "value with spaces in quotes"),
    ("vocabulary", ["input.txt", "--output=x"], "neither an option nor the value of one: input"),
  ],
)
def test_a_bare_argument_where_options_are_wanted_is_told_with_the_option(
  name, arguments, says, capsys
):
  assert says in refusal(capsys, name, *arguments)


@pytest.mark.parametrize("platform", ["cuda", "nosuch"])
def test_devices_that_are_not_here_are_told_in_a_line(platform, tmp_path):
  ended = launched("launch.train", RUN_FILE, "--describe", env={"JAX_PLATFORMS": platform})
  if ended.returncode:  # the description may need no device at all
    assert f"JAX_PLATFORMS={platform}" in ends_with_a_line(ended)
  ended = launched("launch.train", RUN_FILE, "--dry_run", env={"JAX_PLATFORMS": platform})
  assert f"JAX_PLATFORMS={platform}" in ends_with_a_line(ended)


def test_64_bit_types_are_left_to_the_configuration():
  ended = launched(
    "launch.train", RUN_FILE, "--describe", env={"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
  )
  assert ended.returncode == 0, ended.stderr
  assert "JAX_ENABLE_X64 is ignored" in ended.stderr


def test_a_working_directory_that_is_gone_is_told(tmp_path):
  gone = tmp_path / "gone"
  gone.mkdir()
  script = f"cd {gone} && rmdir {gone} && {sys.executable} -m launch.train --help x.gin"
  ended = subprocess.run(
    ["sh", "-c", script.replace(" --help", "")],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert "the working directory cannot be used" in ends_with_a_line(ended)


def test_closed_streams_and_plain_ascii_are_no_failure():
  command_line = f"{sys.executable} -m launch.train {RUN_FILE} --print_config"
  for shell in (f"{command_line} >&-", f"{command_line} <&-", f"{command_line} >&- 2>&-"):
    ended = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
  ended = launched(
    "launch.train",
    RUN_FILE,
    "--print_config",
    "--gin.TRAIN_DATA=@x",
    "--gin.é=1",
    env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
  )
  ends_with_a_line(ended)


def test_a_reader_that_has_gone_ends_a_command_quietly():
  command = f"{sys.executable} -m launch.train {RUN_FILE} --print_config"
  shell = f"{command} 2>&1 | true; echo ${{PIPESTATUS[0]}}"
  ended = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
  assert (ended.stdout.strip(), ended.stderr) == ("141", "")


def test_a_module_that_holds_a_name_is_meant(tmp_path):
  file, option = "gin/runs/griffin_quickstart.gin", "--gin.Experiment.samples=[]"
  with pytest.raises(UserError, match=r"did you mean experiment\.Experiment\?"):
    train.main([file, f"--run_dir={tmp_path / 'run'}", option])


def test_columns_of_checks_stand_below_each_other_whatever_their_names():
  found = [
    Finding(case="a case " * 12, outcome=outcome, difference=difference, allowed=1e-3)
    for outcome in get_args(Outcome)
    for difference in (None, 2e-5)
  ]
  lines = [check.line(name, finding) for name in contract.CHECKS for finding in found]
  assert {line.index("a case") for line in lines} == {45}


def test_a_checked_run_file_is_what_the_next_command_names(capsys):
  assert check.main([RUN_FILE, "--only=parameters"]) == 0
  next_command = f"next: python -m launch.train {RUN_FILE} --run_dir=runs/hawk_quickstart\n"
  assert next_command in capsys.readouterr().err
