"""What a received comparison's choices load is looked into as its own lines are."""

from __future__ import annotations

import pytest

from base.errors import UserError
from config import source
from experiment import trust_check
from experiment.trust import NOBODY
from launch import compare
from tests.experiment.received_configs import COMPARISON, ROOT, flat, sent


def sent_comparison(tmp_path, choice, more=""):
  return sent(tmp_path, f"SHARED = [{choice!r}]\n{more}", head=COMPARISON) / "config.gin"


@pytest.mark.parametrize(
  "choice",
  [
    "{folder}/evil.gin",
    "import evil_module\nX = 1",
    "from models import griffin\nX = 1",
    "include '{folder}/evil.gin'\nX = 1",
    "include 'nowhere.gin'\nX = 1",
    "import evil_module\nX = = 1",
    "X = @evil_module.f(",
  ],
)
def test_a_comparison_s_choices_are_looked_into(tmp_path, evil, choice):
  (tmp_path / "evil.gin").write_text("import evil_module\n")
  file = sent_comparison(tmp_path, choice.format(folder=tmp_path))
  with pytest.raises(UserError, match="--trust") as error:
    trust_check.check(file, NOBODY, comparison=True)
  assert len(str(error.value)) < 500 + len(str(tmp_path))
  assert not evil.exists()


@pytest.mark.parametrize("bound", ["'sent'", "%PLACE\nPLACE = %OTHER\nOTHER = 'sent'", "'{sent}'"])
def test_a_choice_is_looked_for_where_it_is_loaded_from(tmp_path, evil, monkeypatch, bound):
  monkeypatch.chdir(tmp_path)
  more = f"comparison.Comparison.folder = {bound.format(sent=tmp_path / 'sent')}\n"
  # In the folder there is a file of the name of one of ours.
  for name in ("evil.gin", "sizes/tiny.gin"):
    file = sent_comparison(tmp_path, name, more)
    target = tmp_path / "sent" / name
    target.parent.mkdir(exist_ok=True)
    target.write_text("import evil_module\n")
    with pytest.raises(UserError, match="outside this project"):
      compare.main(["--describe", "--output=sent"])
    target.unlink()
    assert not evil.exists()
  trust_check.check(file, NOBODY, comparison=True, makes_rows=True)


def test_a_run_among_the_choices_is_looked_into(tmp_path, evil, monkeypatch):
  monkeypatch.chdir(tmp_path)
  sent_comparison(tmp_path, "mine")
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "config.gin").write_text("import evil_module\n")
  with pytest.raises(UserError, match=r"mine/config\.gin.*evil_module"):
    compare.main(["--output=sent", "--describe"])
  assert not evil.exists()


def test_choices_count_together(tmp_path, evil, monkeypatch):
  """A macro alone is harmless, because the file that reads it belongs to this project."""
  gin_root = tmp_path / "gin"
  (gin_root / "data").mkdir(parents=True)
  (gin_root / "data" / "task.gin").write_text(
    "from data import corpora\ncorpora.RegisteredTask.module = %TASKS\n"
  )
  monkeypatch.setattr(source, "GIN_ROOT", gin_root)
  monkeypatch.setattr(trust_check, "GIN_ROOT", gin_root)
  shared = "SHARED = ['data/task.gin', \"TASKS = 'evil_module'\"]\n"
  trust_check._shipped()
  file = sent(tmp_path, shared, head="") / "config.gin"
  with pytest.raises(UserError, match="--trust=evil_module"):
    trust_check.check(file, NOBODY, comparison=True)


@pytest.mark.parametrize(
  "file",
  sorted(
    str(path.relative_to(ROOT / "gin"))
    for folder in ("runs", "compare")
    for path in (ROOT / "gin" / folder).rglob("*.gin")
  ),
)
def test_every_shipped_run_and_comparison_may_be_opened(file, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
  path = tmp_path / "config.gin"
  path.write_text(flat((ROOT / "gin" / file).read_text()))
  trust_check.check(path, NOBODY, makes_rows=True, comparison="compare/" in file)
