"""Every command of README and docs/, typed in order by a new user in one clean copy."""

from __future__ import annotations

import pytest
import torch
from transformers import RecurrentGemmaForCausalLM

from tests.documentation import belongings, pages, run_cases, tool_cases
from tests.documentation.session import Session

CASES = {
  page: run_cases.CASES.get(page, {}) | tool_cases.CASES.get(page, {}) for page in pages.PAGES
}
MISTAKES = run_cases.MISTAKES + tool_cases.MISTAKES


@pytest.fixture(scope="module")
def session(tmp_path_factory):
  """A clean copy with the files that a user needs."""
  session = Session(tmp_path_factory.mktemp("griffin"))
  belongings.bring(session.folder)
  return session


@pytest.mark.parametrize(("step", "case"), pages.paired(CASES))
def test_a_step_does_what_the_page_says(session, step, case):
  session.play(step, case)


def test_every_case_is_of_a_page():
  assert run_cases.CASES.keys() | tool_cases.CASES.keys() <= set(pages.PAGES)


def test_exported_weights_are_those_that_came_in(session):
  theirs, exported = (
    RecurrentGemmaForCausalLM.from_pretrained(session.folder / name)
    for name in ("recurrentgemma-2b", "exported")
  )
  for name, tensor in theirs.state_dict().items():
    torch.testing.assert_close(exported.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
  "command",
  [
    "python -m launch.train gin/runs/griffin_quickstart.gin --describe",
    "python -m launch.train runs/griffin_quickstart.gin --describe",
    "python -m launch.train ../{folder}/my_run.gin --describe",
    "python -m launch.generate --run_dir=../{folder}/runs/first --max_tokens=4",
    "python -m launch.generate --run_dir={root}/runs/first --max_tokens=4",
  ],
)
def test_commands_work_in_another_directory(session, command):
  (session.folder.parent / "elsewhere").mkdir(exist_ok=True)
  command = command.format(folder=session.folder.name, root=session.folder)
  session.type(f"cd ../elsewhere && {command}")


def test_a_run_that_cannot_be_read_is_made(session):
  source, target = session.folder / "runs/first", session.folder / "runs/broken"
  session.type("cp -r runs/first runs/broken")
  assert source.is_dir()
  for file in target.glob("checkpoints/*/params/**/*"):
    if file.is_file():
      file.write_bytes(b"not what was written")


@pytest.mark.parametrize(("command", "says"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_one_line(session, command, says):
  session.mistake(command, says)
