"""The list of runs tells what their files say, whatever the files are."""

import json
import re

import pytest

from base.errors import UserError
from experiment import lock_owner, run_list
from experiment.directory_owner import LOCK_FILE
from launch import runs


def make(folder, steps, lines, config=(), checkpoints=()):
  """A run directory as a training leaves it."""
  folder.mkdir(parents=True)
  bindings = {"loop.LoopOptions.steps": steps, **dict(config)}
  text = "from __gin__ import dynamic_registration\nfrom training import loop\n"
  text += "from training import optimizer\n"
  text += "".join(f"{name} = {value!r}\n" for name, value in bindings.items())
  (folder / "operative_config.gin").write_text(text)
  (folder / "config.gin").write_text(text)
  (folder / "data.json").write_text("{}")
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  for step in checkpoints:
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
  return folder


def line(step, loss, **more):
  return {"step": step, "bits_per_byte": loss, "tokens_per_second": 1000.0 * step, **more}


@pytest.fixture
def folder(tmp_path):
  """A run of each state, and what is no run or only half of one."""
  root = tmp_path / "runs"
  rate = "optimizer.AdamW.b1"
  heldout = {"step": 4, "heldout_bits_per_byte": 2.25}
  make(root / "done", 4, [line(2, 3.5), line(4, 2.5), heldout], {rate: 0.5})
  make(root / "run_10", 8, [line(2, 3.0)], {rate: 0.9}, checkpoints=(6,))
  make(root / "deep" / "run_2", 8, [line(2, 4.0)])
  alive = make(root / "alive", 8, [line(2, 3.25)])
  (alive / LOCK_FILE).write_text(lock_owner.this_process().as_json())
  dead = make(root / "dead", 8, [line(2, 3.75)])
  owner = json.loads(lock_owner.this_process().as_json())
  (dead / LOCK_FILE).write_text(json.dumps({**owner, "process_start": "1"}))
  (alive / "metrics.jsonl").open("a").write('{"step": 3, "bits_per_by')
  foreign = root / "foreign"
  foreign.mkdir()
  hostile = [
    "[1]", '{"step": "two"}', '{"step": 7, "bits_per_byte": "<script>", "mfu": 1e999}',
    '{"step": 5, "bits_per_byte": ' + "9" * 400 + "}", "\0\xff", '{"step": 9, "mfu": null}',
    '{"step": 1' + "0" * 400 + "}",
  ]  # fmt: skip
  (foreign / "metrics.jsonl").write_bytes("\n".join(hostile).encode("latin-1"))
  (foreign / "config.gin").write_text("import nothing_of_this_name\nnonsense = = 3\n")
  (root / "empty").mkdir()
  (root / "pipe").mkdir()
  return root


def listed(folder):
  return {run.name: run for run in run_list.runs_in(folder)}


def test_states_steps_and_losses(folder):
  found = listed(folder)
  assert {name: (run.state, run.step, run.steps) for name, run in found.items()} == {
    "alive": ("training", 2, 8),
    "dead": ("killed", 2, 8),
    "deep/run_2": ("stopped", 2, 8),
    "done": ("finished", 4, 4),
    "foreign": ("stopped", 9, None),
    "run_10": ("stopped", 6, 8),
  }
  assert found["done"].curve("bits_per_byte") == ((2, 3.5), (4, 2.5))
  assert found["done"].last("heldout_bits_per_byte") == 2.25
  assert found["foreign"].curve("bits_per_byte") == ()


def test_what_differs_is_what_two_runs_have(folder):
  assert run_list.differences(list(listed(folder).values())) == {
    "AdamW.b1": ["", "", "", "0.5", "", "0.9"],
    "LoopOptions.steps": ["8", "8", "8", "4", "", "8"],
  }


def test_the_model_is_first_and_places_of_rows_are_left_out(tmp_path):
  for name in ("griffin", "hawk"):
    values = {
      "dataset.TextDataset.cache_dir": f"{name}/cache",
      "backbone.Backbone.width": len(name),
    }
    path = make(tmp_path / "two" / name, 4, [line(4, 2.5)], values)
    model = f"experiment.Experiment.model = @{name}.{name}()\n"
    imports = f"from experiment import experiment\nfrom models import {name}\n"
    imports += "from data import dataset\nfrom models import backbone\n"
    text = (path / "operative_config.gin").read_text()
    (path / "operative_config.gin").write_text(imports + text + model)
  assert list(run_list.differences(run_list.runs_in(tmp_path / "two"))) == [
    "Experiment.model", "Backbone.width"
  ]  # fmt: skip


def test_one_run_lists_itself(folder):
  assert list(listed(folder / "done")) == ["done"]


def test_the_command_prints_a_row_a_run_and_writes_one_page(folder, tmp_path, capsys):
  page = tmp_path / "of" / "runs" / "page.html"
  assert runs.main([str(folder), f"--page={page}"]) == 0
  out = capsys.readouterr().out
  assert re.search(r"^done +finished +4/4 +2\.5000 +2\.2500 +4,000 +.*AdamW\.b1=0\.5", out, re.M)
  text = page.read_text(encoding="utf-8")
  assert "<script" not in text
  assert not re.search(r'(src|href)="(?!#|data:)', text)  # nothing is loaded
  for name in ("done", "alive", "dead", "run_10", "deep/run_2"):
    assert f'data-series="{name}"' in text
  assert 'data-x="4" data-y="2.5"' in text
  assert list(page.parent.iterdir()) == [page]


def test_a_long_curve_is_drawn_by_means(tmp_path):
  make(tmp_path / "a", 9, [line(step, step / 2) for step in range(1, 1002)])
  page = tmp_path / "page.html"
  runs.main([str(tmp_path), f"--page={page}"])
  figure = page.read_text().split('id="bits_per_byte"')[1].split('class="chart"')[1]
  figure = figure.split("</svg>")[0]
  assert figure.count('class="point"') == 167
  assert 'data-x="6" data-y="1.75"' in figure


@pytest.mark.parametrize("name", ["empty", "nothing", "done/metrics.jsonl"])
def test_a_folder_without_runs_is_one_line(folder, name):
  with pytest.raises(UserError, match=r"has no runs|is no folder"):
    runs.main([str(folder / name)])
