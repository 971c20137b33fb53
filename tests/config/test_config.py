"""Configurations: which are read, which are refused, and the messages."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from config import config
from config.config import ConfigError

MODULE = """
from __future__ import annotations
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

@dataclasses.dataclass(frozen=True)
class Model:
  width: int
  layers: Sequence[int] = (1, 2)

@dataclasses.dataclass(frozen=True)
class Data:
  name: str
  length: int = 8

@dataclasses.dataclass(frozen=True)
class Run:
  model: Model
  data: Data | None = None
  held_out: Data | None = None
  steps: int = 10
  rate: float = 0.5
  shape: tuple[int, ...] = (1,)
  kind: Literal["cosine", "linear"] = "cosine"
  flag: bool = False
  limit: float | None = None
  schedule: Callable[[int], float] | None = None
  tag: str | None = None

def model(width: int, *, depth: int = 1) -> Model:
  if width % 2:
    raise ValueError(f"width={width} is odd: make it even.")
  return Model(width * depth)

def schedule(step: int, *, slope: float = 1.0) -> float:
  return slope * step
"""

BASE = """
from __gin__ import dynamic_registration
import parts

STEPS = 5
WIDTH = 4

parts.Run:
  model = @parts.model()
  steps = %STEPS
parts.model.width = %WIDTH
"""


@pytest.fixture(scope="module")
def parts_module(tmp_path_factory):
  """A module `parts` to configure; it is imported only once, because gin registers it then."""
  folder = tmp_path_factory.mktemp("modules")
  (folder / "parts.py").write_text(MODULE)
  sys.path.insert(0, str(folder))
  yield importlib.import_module("parts")
  sys.path.remove(str(folder))


@pytest.fixture
def parts(parts_module, tmp_path, monkeypatch):
  """The module `parts`, with a new folder as the working directory."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  return parts_module


def load(parts, text="", *arguments, base=BASE):
  with open("run.gin", "w") as file:
    file.write(base + textwrap.dedent(text))
  return config.load("run.gin", parts.Run, arguments)


def error(parts, text="", *arguments, base=BASE):
  with pytest.raises(ConfigError) as caught:
    load(parts, text, *arguments, base=base)
  message = str(caught.value)
  assert "\n" not in message
  return message


def line_of(text):
  """The line of BASE + `text` at which `text` begins, in a file."""
  return f"run.gin:{BASE.count(chr(10)) + 1 + text.startswith(chr(10))}"


def test_files_build_what_they_say(parts):
  run = load(parts).build()
  assert run == parts.Run(parts.Model(4), steps=5)
  assert type(run) is parts.Run


def test_arguments_replace_bindings_of_the_file(parts):
  run = load(parts, "", "--gin.STEPS=7", "--gin.parts.Run.rate=2", "--gin.parts.model.depth=3")
  assert run.build() == parts.Run(parts.Model(12), steps=7, rate=2)


@pytest.mark.parametrize(
  ("argument", "name", "value"),
  [
    ("parts.Run.steps=3", "steps", 3),
    ("parts.Run.rate=1e-3", "rate", 1e-3),
    ("parts.Run.shape=(2, 3)", "shape", (2, 3)),
    ("parts.Run.kind=linear", "kind", "linear"),
    ("parts.Run.kind='linear'", "kind", "linear"),
    ("parts.Run.flag=True", "flag", True),
    ("parts.Run.limit=None", "limit", None),
    ("parts.Run.limit=3", "limit", 3),
    ("parts.Run.tag=two words", "tag", "two words"),
    ("parts.Run.tag=runs/x-1.gin", "tag", "runs/x-1.gin"),
    ("parts.Run.tag=7", "tag", "7"),
    ("parts.Run.tag=None", "tag", None),
    ("parts.Run.steps=%WIDTH", "steps", 4),
    ("parts.Run.model=@parts.Model()", "model", None),
  ],
)
def test_arguments_need_no_escaped_quotes(parts, argument, name, value):
  text = "parts.Model.width = 9\nparts.model.depth = 1\n"
  run = load(parts, text if "Model()" in argument else "", f"--gin.{argument}").build()
  assert getattr(run, name) == (parts.Model(9) if "Model()" in argument else value)


def test_a_function_is_handed_over_with_its_bindings(parts):
  run = load(parts, "parts.Run.schedule = @parts.schedule\nparts.schedule.slope = 3.0\n").build()
  assert run.schedule(2) == 6.0


def test_scopes_give_two_calls_different_values(parts):
  text = """
  parts.Run.data = @train/parts.Data()
  parts.Run.held_out = @eval/parts.Data()
  parts.Data.length = 16
  train/parts.Data.name = 'a'
  eval/parts.Data.name = 'b'
  eval/parts.Data.length = 32
  """
  loaded = load(parts, text)
  run = loaded.build()
  assert (run.data, run.held_out) == (parts.Data("a", 16), parts.Data("b", 32))
  assert loaded.warnings == ()


def test_includes_are_found_from_the_including_file_and_later_bindings_win(parts, tmp_path):
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "size.gin").write_text("WIDTH = 6\n")
  (tmp_path / "deep" / "all.gin").write_text("include 'size.gin'\n")
  assert load(parts, "include 'deep/all.gin'\n").build().model.width == 6


def test_a_default_of_a_macro_loses_to_any_file_that_sets_it(parts, tmp_path):
  (tmp_path / "wide.gin").write_text("default/WIDTH = 6\ndefault/STEPS = 7\n")
  # The run sets WIDTH = 4 and STEPS before.
  loaded = load(parts, "include 'wide.gin'\n")
  assert loaded.build().model.width == 4
  assert "default/" not in loaded.text()
  # Of two defaults the later one holds.
  base = BASE.replace("WIDTH = 4", "default/WIDTH = 5\ninclude 'wide.gin'")
  loaded = load(parts, base=base)
  assert loaded.build().model.width == 6
  assert "WIDTH = 6  # wide.gin:1" in loaded.text()
  with pytest.raises(ConfigError, match="no binding uses the macro default/WIDTH"):
    load(parts, "", "--gin.default/WIDTH=9")


def test_the_text_of_a_configuration_builds_the_same_and_tells_where_values_came_from(parts):
  loaded = load(parts, "parts.Run.tag = 'it\\'s'\n", "--gin.STEPS=8")
  text = loaded.text()
  assert "WIDTH = 4  # run.gin:6" in text
  assert "STEPS = 8  # --gin.STEPS=8" in text
  with open("again.gin", "w") as file:
    file.write(text)
  assert config.load("again.gin", parts.Run).build() == loaded.build()


def test_the_operative_text_builds_the_same_and_holds_the_defaults(parts):
  loaded = load(parts)
  text = loaded.operative_text()
  assert "parts.Run.rate = 0.5  # default" in text
  assert "parts.Run.steps = 5  # run.gin:10" in text
  assert "%" not in text
  with open("again.gin", "w") as file:
    file.write(text)
  assert config.load("again.gin", parts.Run).build() == loaded.build()


def test_an_import_alone_is_made_and_kept(parts, tmp_path):
  (tmp_path / "registers.py").write_text("import parts\nparts.registered = True\n")
  (tmp_path / "only_imports.gin").write_text("import registers\n")
  text = load(parts, "include 'only_imports.gin'\n").text()
  assert parts.registered
  assert "import registers\n" in text


def test_two_modules_of_one_name_keep_apart(parts, tmp_path):
  for package in ("first", "second"):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "same.py").write_text(f"def name(suffix=''): return '{package}' + suffix")
  (tmp_path / "b.gin").write_text(
    "from second import same\nsame.name.suffix = '2'\nTAG = @same.name()\n"
  )
  text = """
  include 'b.gin'
  from first import same
  same.name.suffix = '1'
  parts.Run.tag = %TAG
  parts.Run.data = @parts.Data()
  parts.Data.name = @same.name()
  """
  loaded = load(parts, text)
  with open("again.gin", "w") as file:
    file.write(loaded.text())
  for run in (loaded.build(), config.load("again.gin", parts.Run).build()):
    assert (run.tag, run.data.name) == ("second2", "first1")
  message = error(parts, text, "--gin.same.name.suffix=3")
  assert "'same' is ambiguous: first.same or second.same" in message
  with open("run.gin", "w") as file:
    file.write(BASE + textwrap.dedent(text))


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("STESP = 5", "no binding uses the macro STESP; did you mean STEPS?"),
    ("parts.Run.steps = %STESP", "no macro STESP is defined; did you mean STEPS?"),
    (
      "parts.Run.steps = %VOCAB_SIZE",
      "no macro VOCAB_SIZE is defined. Add a file that sets it (data/bytes.gin, ",
    ),
    ("parts.Run.stesp = 5", "parts.Run has no parameter 'stesp'; did you mean steps?"),
    ("parts.Rum.steps = 5", "parts has no function or class 'Rum'; did you mean Run?"),
    ("parts.Run.model = @parts.modle()", "no function or class 'modle'; did you mean model?"),
    ("prats.Run.steps = 5", "does not import 'prats'; did you mean parts?"),
    ("griffin.griffin.window = 5", "add the line: from models import griffin"),
    ("mamba2.mamba2.state_size = 5", "add the line: from models import mamba2"),
    ("from models import grifin", "no module 'models.grifin'; did you mean griffin?"),
    ("from modles import griffin", "no module 'modles.griffin'; did you mean models?"),
    ("import parst", "there is no module 'parst'"),
    ("include 'sizes/tinny.gin'", "no gin file 'sizes/tinny.gin'; did you mean sizes/tiny.gin?"),
    ("include 'tiny.gin'", "no gin file 'tiny.gin'; did you mean sizes/tiny.gin?"),
    ("include 'run.gin'", "the file includes itself: run.gin -> run.gin"),
    ("STEPS = %WIDTH\nWIDTH = %STEPS", "refers to itself"),
    ("parts.Run.steps == 5", "cannot read 'parts.Run.steps == 5'"),
    ("parts.Run.steps = five", "cannot read 'parts.Run.steps = five'"),
    ("parts.Run.steps.more = 5", "'parts.Run.steps' is a int, not a function or class"),
  ],
)
def test_a_misspelled_name_gets_the_nearest_right_one(parts, text, told):
  message = error(parts, text + "\n")
  assert told in message
  assert message.startswith(line_of(text)[:-1])


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ("parts.Run.steps = 'x'", "parts.Run.steps is 'x'; it must be int"),
    ("parts.Run.steps = '5'", "it must be int; write 5, without quotes"),
    ("parts.Run.steps = 5.0", "it must be int; write 5"),
    ("parts.Run.steps = True", "parts.Run.steps is True; it must be int"),
    ("parts.Run.steps = None", "parts.Run.steps is None; it must be int"),
    ("parts.Run.rate = 'high'", "it must be float"),
    ("parts.Run.rate = False", "it must be float"),
    ("parts.Run.shape = [1, 2]", "it must be tuple[int, ...]; write (1, 2)"),
    ("parts.Run.shape = (1, 'a')", "it must be tuple[int, ...]"),
    ("parts.Run.kind = 'cosin'", "it must be 'cosine' or 'linear'"),
    ("parts.Run.flag = 1", "parts.Run.flag is 1; it must be bool"),
    ("parts.Run.flag = 'true'", "it must be bool; write True"),
    ("parts.Run.limit = 'none'", "it must be float or None; write None"),
    ("parts.Run.tag = 5", "it must be str or None; write '5', in quotes"),
    ("parts.Run.schedule = 5", "parts.Run.schedule is 5; it must be"),
    ("parts.Run.model = 5", "parts.Run.model is 5; it must be Model"),
    ("parts.Run.model = @parts.model", "it must be Model; write @parts.model()"),
    ("parts.Run.data = @parts.model()", "must be Data or None, but @parts.model() returns Model"),
    ("parts.Run.steps = @parts.model()", "must be int, but @parts.model() returns Model"),
    ("WIDTH = 'wide'", "parts.model.width, set by %WIDTH, is 'wide'; it must be int"),
  ],
)
def test_a_value_of_the_wrong_type_is_refused_where_it_stands(parts, text, told):
  message = error(parts, text + "\n")
  assert told in message
  assert message.startswith(line_of(text) + ": ")


@pytest.mark.parametrize(
  ("argument", "told"),
  [
    ("--gin.STESP=5", "did you mean STEPS?"),
    ("--gin.parts.Run.stesp=5", "did you mean steps?"),
    ("--gin.prats.Run.steps=5", "did you mean parts.Run?"),
    ("--gin.parts.Run.steps=five", "is 'five'; it must be int"),
    ("--gin.parts.Run.steps", "a binding has the form --gin.MACRO=value"),
    ("--gin.parts.Run.shape=(1", "not a gin value: '(1'"),
    ("--gin.parts.Run.steps=", "no value: write --gin.parts.Run.steps=..., or leave it out"),
    ("--gin.parts.Run.steps=@parts.nothing()", "no function or class 'nothing'"),
    ("--gin.hawk.hawk.gate_blocks=2", "write models.hawk.hawk"),
    ("--gin.llama.llama.head_dim=2", "write models.llama.llama"),
    ("--gin.parts.Data.length=2", "nothing in this configuration uses parts.Data.length"),
    ("--gin.HEADS=2", "nothing in this configuration uses HEADS"),
  ],
)
def test_a_wrong_argument_is_refused_by_name(parts, argument, told):
  message = error(parts, "", argument)
  assert told in message
  assert message.startswith(f"{argument}: ")


def test_what_must_be_given_and_is_not_is_told_before_building(parts):
  base = BASE.replace("parts.model.width = %WIDTH", "parts.Run.rate = 1.0").replace("WIDTH = 4", "")
  message = error(parts, base=base)
  assert "parts.model needs 'width' (int), which is not set; add parts.model.width" in message
  assert message.startswith("run.gin:9: ")
  required = BASE.replace("WIDTH = 4", "WIDTH = %gin.REQUIRED")
  assert "WIDTH is required; set it: --gin.WIDTH=" in error(parts, base=required)
  assert load(parts, "", "--gin.WIDTH=2", base=required).build().model.width == 2


def test_bindings_without_effect_are_told(parts):
  text = "parts.Data.length = 3\neval/parts.model.depth = 2\nHEADS = 3\n"
  warnings = load(parts, text).warnings
  assert len(warnings) == 3
  assert "HEADS has no effect here" in warnings[0]
  assert "parts.Data.length (parts.Data is not used) has no effect here" in warnings[1]
  assert "eval/parts.model.depth has no effect here" in warnings[2]


def test_a_refused_value_is_one_line_without_the_chain_of_calls(parts):
  with pytest.raises(ConfigError) as caught:
    load(parts, "", "--gin.WIDTH=3").build()
  assert str(caught.value) == (
    "width=3 is odd: make it even. (in model; to change: --gin.WIDTH=... (now 3))"
  )


def test_a_module_that_cannot_be_imported_says_why(parts, tmp_path):
  (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
  message = error(parts, "import broken\n")
  assert "importing 'broken' failed" in message
  assert "broken.py:1" in message
