"""A comparison from its gin file to its page, on models of a few thousand parameters."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from base.errors import UserError
from comparison import comparison, loaded_runs, of_runs, scaling_law_runs
from comparison.measurement import RunSpec
from comparison.progress import ComparisonProgress
from comparison.runs import TrainedRuns
from data import tokenizers
from experiment import run_record
from experiment import trained as trained_lib
from experiment.run_directory import RunDirectory
from experiment.trust import NOBODY, Trust
from launch import compare, convert, vocabulary
from parallel.tree_paths import by_path
from training import streamed_checkpoint

ROOT = Path(compare.__file__).parents[1]


@pytest.fixture(scope="module")
def output(folder):
  """A finished comparison of scaling alone."""
  output = folder / "uninterrupted"
  assert compare.main([str(folder / "tiny.gin"), f"--output={output}", "--only=scaling"]) == 0
  return output


def figures(output):
  return json.loads((output / "report" / "data.json").read_text())["figures"]


def test_a_comparison_leaves_page_data_and_ordinary_runs(output):
  data = json.loads((output / "report" / "data.json").read_text())
  assert data["title"] == "Tiny & quick"
  assert data["parts"] == {
    "scaling": ["scaling_difference", "training_curves"],
    "long_context": None,
    "needle": None,
  }
  assert data["seeds"] == [0, 1]
  assert {"jax", "python"} <= data["versions"].keys()
  assert data["hardware"]["devices"]
  assert "STEPS = 4" in data["config"]
  page = (output / "report" / "index.html").read_text()
  assert "Tiny &amp; quick" in page
  assert "--only=long_context" in page
  runs = sorted((output / "runs").iterdir())
  assert len(runs) == 4
  for run in runs:
    assert (run / "config.gin").is_file()
    # What the page shows is what the runs' own metrics say.
  (curves,) = [figure for figure in data["figures"] if figure["name"] == "training_curves"]
  for series in curves["series"]:
    name = series["name"].split()[0].lower()
    last = [
      json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["heldout_loss"]
      for run in runs
      if run.name.startswith(name)
    ]
    assert series["y"][-1] == pytest.approx(sum(last) / 2, rel=1e-12)
    assert series["x"] == [128, 256, 384, 512]


def test_a_killed_comparison_continues_to_the_same_figures(output, folder):
  again = folder / "killed"
  arguments = [str(folder / "tiny.gin"), f"--output={again}", "--only=scaling"]
  process = subprocess.Popen(
    [sys.executable, "-m", "launch.compare", *arguments],
    cwd=ROOT,
    env=os.environ,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    while not (kept := list(again.glob("cells/scaling/*.json"))) and process.poll() is None:
      time.sleep(0.05)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert kept
  assert not (again / "report" / "index.html").exists()
  # Killed again in the middle of a write: the half of a file is not read.
  (again / "cells" / "scaling" / "half.json.new").write_text('{"value": ')
  before = {file: file.stat().st_mtime_ns for file in again.glob("cells/scaling/*.json")}
  assert compare.main(arguments) == 0
  assert len(list(again.glob("cells/scaling/*.json"))) == 4
  assert {file: file.stat().st_mtime_ns for file in before} == before
  assert figures(again) == figures(output)


def test_a_part_alone_leaves_the_others_as_they_are(output, folder, capsys):
  before = figures(output)
  assert compare.main([f"--output={output}", "--only=long_context"]) == 0
  shown = capsys.readouterr()
  # The part reads the runs that the other has trained.
  assert len(list((output / "runs").iterdir())) == 4
  # What it begins with, then what is done.
  counts = [line.split("]")[0] for line in shown.err.splitlines() if line.startswith("[")]
  assert list(dict.fromkeys(counts)) == [f"[{n}/4" for n in range(1, 5)]
  assert "ETA" in shown.err
  after = figures(output)
  assert after[: len(before)] == before
  (context,) = after[len(before) :]
  assert max(context["series"][0]["x"]) > 16 * 32 / 2
  assert context["finding"] in shown.out


def test_trained_models_are_asked_for_a_pass_key(output):
  before = figures(output)
  assert compare.main([f"--output={output}", "--only=needle"]) == 0
  assert len(list((output / "runs").iterdir())) == 4
  *others, by_length, by_depth = figures(output)
  assert others == before
  # Models of four steps know no pass key; the questions are at their depths all the same.
  assert [series["x"] for series in by_length["series"]] == [[64, 128]] * 2
  assert all(0 <= share <= 1 for series in by_length["series"] for share in series["y"])
  for series in by_depth["series"]:
    assert all(0 <= depth < 1 for depth in series["x"])
  assert "position of the source in the context" in by_depth["finding"]


def test_a_finished_run_is_loaded_in_place_of_a_training(output, folder, tmp_path):
  (run,) = (output / "runs").glob("griffin*seed-1-*")
  arguments = [
    str(folder / "tiny.gin"),
    f"--output={tmp_path}",
    "--only=scaling",
    f"--gin.LOADED={{'Griffin, tiny, seed 1': '{run}'}}",
  ]
  assert compare.main(arguments) == 0
  assert len(list((tmp_path / "runs").iterdir())) == 3
  # The same model on the same text.
  assert figures(tmp_path)[0]["series"] == figures(output)[0]["series"]


def test_an_output_of_another_comparison_needs_force(output, folder):
  arguments = [str(folder / "tiny.gin"), f"--output={output}", "--gin.SEEDS=(0,)"]
  with pytest.raises(UserError) as caught:
    compare.main(arguments)
  assert "comparison.Comparison.seeds: (0, 1) -> (0,)" in str(caught.value)
  assert "--resume=force" in str(caught.value)
  # What is not touched is kept: the seed that stays has been trained.
  assert compare.main([*arguments, "--resume=force", "--only=scaling"]) == 0
  assert len(list((output / "runs").iterdir())) == 4
  assert "one seed" in figures(output)[0]["spread"]


def test_runs_are_compared_by_their_directories_alone(output, tmp_path, monkeypatch, capsys):
  """Those that differ in the seed alone are one model's."""
  monkeypatch.chdir(output)
  runs = [os.path.join("runs", run.name) for run in sorted((output / "runs").iterdir())]
  only = "--only=held_out_loss"
  assert compare.main([*runs, f"--output={tmp_path / 'four'}", only]) == 0
  data = json.loads((tmp_path / "four" / "report" / "data.json").read_text())
  griffin, transformer = data["models"]
  assert data["seeds"] == [0, 1]
  assert griffin.startswith("griffin-tiny-32-tokens")
  difference, by_flops, by_position, recorded = data["figures"]
  assert [series["name"] for series in difference["series"]] == [transformer]
  assert max(by_position["series"][0]["x"]) > 32
  # What the runs recorded, and what is measured now.
  assert recorded["series"][0]["x"] == [128, 256, 384, 512]
  assert len(by_flops["series"]) == 2
  capsys.readouterr()
  # The same from another folder and without the runs' names; nothing is measured again.
  monkeypatch.chdir(tmp_path)
  assert compare.main(["--output=four", only]) == 0
  assert "held_out_loss:" not in capsys.readouterr().err


def test_differences_of_single_runs_have_an_interval_over_the_text(output, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  one, _, _, two = sorted((output / "runs").iterdir())
  for run, name in ((one, "mine"), (two, "other, 'quoted' run")):
    shutil.copytree(run, name)
  arguments = ["mine", "other, 'quoted' run", "--only=held_out_loss", "--gin.SCORED_TOKENS=2048"]
  arguments += ["--gin.held_out_loss.HeldOutLoss.batch_tokens=256"]
  assert compare.main(arguments) == 0
  data = json.loads(Path("comparisons/mine_other, 'quoted' run/report/data.json").read_text())
  assert data["models"] == ["mine", "other, 'quoted' run"]
  # Not the first one's alone: the runs differ in it.
  assert data["seeds_of"] == {"mine": [0], "other, 'quoted' run": [1]}
  page = Path("comparisons/mine_other, 'quoted' run/report/index.html").read_text()
  assert "1 seed each; " in page
  assert "<dd>mine 0; other, &#x27;quoted&#x27; run 1</dd>" in page
  difference, by_flops, *_ = data["figures"]
  (series,) = difference["series"]
  assert "over 8 parts of the text" in difference["spread"]
  assert series["low"][0] < series["y"][0] < series["high"][0]
  bits = [series["y"][0] for series in by_flops["series"]]
  # Parts of equal tokens have nearly as many bytes.
  assert series["y"][0] == pytest.approx(bits[1] - bits[0], abs=0.02)


def imported(run, target):
  """Makes a directory of a run's weights alone, as launch.convert does."""
  trained = trained_lib.load(RunDirectory(run), "latest", trust=Trust.of(["all"]))
  for name in ("config.gin", "operative_config.gin"):
    target.mkdir(exist_ok=True)
    shutil.copy(run / name, target)
  tokenizers.save(trained.tokenizer, target)
  arrays = by_path(trained.params)
  streamed_checkpoint.write_parameters(target, 0, list(arrays), iter(arrays.items()), {})


def test_imported_weights_are_compared_on_a_text_of_ones_own(output, tmp_path, monkeypatch, capsys):
  """They have no training to draw."""
  monkeypatch.chdir(tmp_path)
  one, _, two, _ = sorted((output / "runs").iterdir())
  imported(two, tmp_path / "theirs")
  for number in range(20):
    Path(f"{number}.txt").write_text(f"Text {number} is nobody's.\n" * 20)
  words = [str(one), "theirs", "gin/data/heldout_files_bytes.gin", "--gin.EVAL_FILES=*.txt"]
  words += ["--only=held_out_loss", "--output=out", "--trust=all"]
  words += ["--gin.held_out_loss.HeldOutLoss.batch_tokens=256"]
  assert compare.main(words) == 0
  difference, by_flops, by_position, recorded = figures(Path("out"))
  assert [series["name"] for series in by_flops["series"]] == [one.name]
  conditions = dict(difference["conditions"])
  assert conditions["theirs:"].endswith("parameters, imported weights")
  assert "seeds" not in conditions
  text = sum(len(path.read_text()) for path in tmp_path.glob("*.txt"))
  assert int(conditions["scored"].split()[0].replace(",", "")) == text + 20  # and their ends
  assert len(by_position["series"]) == 2
  assert [series["name"] for series in recorded["series"]] == [one.name]
  assert "at step 0" not in capsys.readouterr().err


def test_models_of_several_seeds_are_told_apart_whatever_their_names(output, tmp_path):
  folders = []
  for run, name in zip(sorted((output / "runs").iterdir()), "abcd", strict=True):
    seed, model = divmod("acbd".index(name), 2)
    folders.append(tmp_path / f"SEED={seed},MODEL={model}")
    shutil.copytree(run, folders[-1])
  made = comparison.load("runs", [], text=of_runs.gin_text(folders, [], Trust.of(["all"]))).build()
  assert list(made.models) == ["SEED=0,MODEL=0", "SEED=0,MODEL=1"]
  assert len(made.loaded) == 4


def test_laws_are_of_finished_runs_scored_on_one_text(output, tmp_path, capsys):
  folder = tmp_path / "runs"
  shutil.copytree(output / "runs", folder)
  one, two, *_ = sorted(folder.iterdir())
  metrics = (two / "metrics.jsonl").read_text().splitlines()
  (two / "metrics.jsonl").write_text("\n".join(metrics[:-1]) + "\n")
  found = scaling_law_runs.read_runs(folder, Trust.of(["all"]))
  assert {model: len(runs.losses) for model, runs in found.items()} == {
    "griffin": 1,
    "transformer": 2,
  }
  assert found["griffin"].tokens.tolist() == [512]
  assert f"{two.name} is left out: it has no held-out loss at its end" in capsys.readouterr().err
  for name in ("config.gin", "operative_config.gin"):
    text = (one / name).read_text()
    (one / name).write_text(text.replace("heldout_fraction = 0.3", "heldout_fraction = 0.2"))
  # They keep the configuration as it was.
  shutil.rmtree(one / "checkpoints")
  (one / run_record.RECORD_FILE).unlink()
  with pytest.raises(UserError, match="have different tokenizers or held-out texts") as caught:
    scaling_law_runs.read_runs(folder, Trust.of(["all"]))
  # All of both kinds, not the first two that differ.
  _, *kinds, _ = str(caught.value).splitlines()
  others = [run.name for run in sorted(folder.iterdir()) if run not in (one, two)]
  assert kinds[0] == f"  bytes of 259 ids on text-files (heldout): {one.name}"
  assert kinds[1] == f"  bytes of 259 ids on text-files (heldout): {', '.join(others)}"


def test_a_run_that_went_on_is_measured_again(output, tmp_path):
  directories = sorted((output / "runs").iterdir())[::2]
  text = of_runs.gin_text(directories, [], NOBODY)
  made = comparison.load("runs", [], text=text).build()
  spec = RunSpec(model=next(iter(made.models)), size=of_runs.SIZE, seed=0)
  identities = set()
  for steps in ([], [9999]):
    for step in steps:
      (directories[0] / "checkpoints" / str(step)).mkdir()
    runs = TrainedRuns(made, tmp_path, ComparisonProgress(), "")
    identities.add(runs.identity(spec))
  (directories[0] / "checkpoints" / "9999").rmdir()
  assert len(identities) == 2


def test_a_text_that_was_edited_is_scored_again(output, folder, tmp_path):
  text = of_runs.gin_text(sorted((output / "runs").iterdir())[::2], [], NOBODY)
  made = comparison.load("runs", [], text=text).build()
  spec = RunSpec(model=next(iter(made.models)), size=of_runs.SIZE, seed=0)

  def files():
    return TrainedRuns(made, tmp_path, ComparisonProgress(), "").text(spec)

  first, file = files(), folder / "1.txt"
  before = file.stat()
  try:
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    edited = files()
  finally:
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert len(first) == len(edited) == 1
  assert edited != first
  assert files() == first


def test_a_page_says_which_run_began_with_anothers_weights(output, tmp_path):
  folders = [tmp_path / "alone", tmp_path / "tuned"]
  for run, copy in zip(sorted((output / "runs").iterdir())[::2], folders, strict=True):
    shutil.copytree(run, copy)
  text = of_runs.gin_text(folders, [], Trust.of(["all"]))
  operative = folders[1] / "operative_config.gin"
  line = "experiment.Experiment.init_from = "
  assert f"{line}None" in operative.read_text()
  operative.write_text(operative.read_text().replace(f"{line}None", f"{line}'/base'"))
  made = comparison.load("runs", [], text=text).build()
  told = "tuned began with the weights of /base: its tokens are those after it."
  assert loaded_runs.notes(made) == (told,)
  operative.unlink()
  assert loaded_runs.notes(made) == ()


def test_nothing_is_written_among_the_files_of_a_run(output, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  one, two = sorted((output / "runs").iterdir())[::2]
  shutil.copytree(one, "mine")
  told = "lies in the run directory mine, among its files"
  with pytest.raises(UserError, match=f"mine/deep/er {told}"):
    compare.main(["mine", str(two), "--output=mine/deep/er", "--trust=all"])
  with pytest.raises(UserError, match=f"mine/figures {told}.* for --export"):
    compare.main([f"--output={output}", "--export=mine/figures"])
  with pytest.raises(UserError, match=f"mine/exported {told}.* for the target"):
    convert.main([str(two), "mine/exported"])
  with pytest.raises(UserError, match=f"mine/tokenizer.json {told}"):
    vocabulary.main(["--input=*.txt", "--size=300", "--output=mine/tokenizer.json"])
  with pytest.raises(UserError, match=f"mine/run {told}.* for --run_dir"):
    RunDirectory(Path("mine/run").absolute()).require_place()
  assert not {"deep", "figures", "exported", "run"} & {path.name for path in Path("mine").iterdir()}
  # A comparison's own runs lie in its folder.
  RunDirectory(output / "runs" / "new").require_place()


def test_runs_that_cannot_be_compared_are_told(output, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  one, _, two, _ = sorted((output / "runs").iterdir())
  for name, changed in (("other", "/1*.txt'"), ("untrained", "/*.txt'")):
    Path(name).mkdir()
    text = (two / "config.gin").read_text().replace("/*.txt'", changed)
    Path(name, "config.gin").write_text(text)
  for words, told in (
    ([one], "is one run. Name two or more"),
    ([one, one], "a run directory is named twice"),
    ([one, "absent"], "absent is not a run directory"),
    ([one, output], "contains a comparison, not a run"),
    ([one, "other"], "have different held-out texts. Name a gin file of the text"),
    ([one, "untrained"], "untrained has no checkpoint yet"),
  ):
    with pytest.raises(UserError, match=told):
      compare.main([*map(str, words), "--output=out", "--trust=all"])
  for words in (["a.gin", "b.gin"], [one, "gs://a/b"]):
    with pytest.raises(SystemExit):
      compare.main(list(map(str, words)))
  told = capsys.readouterr().err
  assert "one comparison at a time: a.gin or b.gin" in told
  assert "gs://a/b is in a bucket: copy the run directory" in told
  assert not Path("out").exists()


def test_what_would_compare_other_things_than_the_named_runs_is_told(output, tmp_path):
  one, two = sorted((output / "runs").iterdir())[::2]
  (tmp_path / "link").symlink_to(one)
  with pytest.raises(UserError, match="named twice, or by a link too"):
    of_runs.gin_text([one, tmp_path / "link"], [], NOBODY)
  (tmp_path / "text.gin").write_text("WIDTH = 32\n")
  trusted = Trust.of(["all"])
  text = of_runs.gin_text([one, two], [str(tmp_path / "text.gin")], trusted)
  with pytest.raises(UserError, match=r"text.gin changes the model of .* \(.*width.*\)"):
    of_runs.require_models(comparison.load("runs", [], text=text).build(), trusted)
  folders = [tmp_path / ("é" * 100), tmp_path / "two\nlines"]
  assert len(os.fsencode(of_runs.default_output(folders).name)) <= 80
  assert "\n" not in of_runs.default_output(folders[1:]).name
