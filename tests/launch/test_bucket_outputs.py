"""Comparisons, sweeps, lists of runs and tokenizers in buckets."""

from __future__ import annotations

import json
import re

import pytest

from base import buckets, paths
from base.errors import UserError
from launch import compare, runs, sweep, vocabulary
from tests import bucket_servers, small_run
from tests.comparison import small_comparison


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("outputs")
  small_run.write(folder / "run.gin", text=small_run.shared_text())
  for number in range(60):
    (folder / f"{number}.txt").write_text(f"Document {number}: é says hello.\n" * 30)
  text = small_comparison.COMPARISON.replace("(0, 1)", "(0,)")
  (folder / "tiny.gin").write_text(text.format(folder=folder))
  (folder / "text.gin").write_text(small_comparison.TEXT.format(folder=folder))
  (folder / "size.gin").write_text(small_comparison.SIZE)
  (folder / "pattern.gin").write_text(small_comparison.PATTERN)
  with pytest.MonkeyPatch.context() as patch:
    bucket_servers.use(patch)
    patch.chdir(folder)
    yield folder


def address(scheme, name):
  return f"{scheme}://{bucket_servers.BUCKET}/{name}"


def test_a_comparison_is_written_and_continued_in_a_bucket(folder, capsys):
  output = address("gs", "comparisons/tiny")
  assert compare.main(["tiny.gin", f"--output={output}", "--only=scaling"]) == 0
  out, told = capsys.readouterr()
  assert f"{output}/report/index.html" in out
  assert "http.server" not in told
  place = paths.absolute(output)
  data = json.loads((place / "report" / "data.json").read_text())
  assert data["parts"]["scaling"] == ["scaling_difference", "training_curves"]
  names = [file.name for file in (place / "cells" / "scaling").iterdir()]
  assert len(names) == 2
  # The same command trains nothing.
  assert compare.main([f"--output={output}", "--only=scaling"]) == 0
  assert "step" not in capsys.readouterr().err
  assert [file.name for file in (place / "cells" / "scaling").iterdir()] == names
  assert compare.main([f"--output={output}", f"--export={folder / 'figures'}"]) == 0
  assert (folder / "figures" / "training_curves.png").exists()
  # And its runs are listed, without a look into checkpoints.
  capsys.readouterr()
  assert runs.main([output, f"--page={output}/runs.html"]) == 0
  rows = [line for line in capsys.readouterr().out.splitlines() if "finished" in line]
  assert len(rows) == 2
  assert "griffin" in (place / "runs.html").read_text()


def test_a_sweep_is_written_and_extended_in_a_bucket(folder, capsys):
  output = address("s3", "sweeps/rates")
  command = ["run.gin", f"--output={output}", "--over"]
  assert sweep.main([*command, "LEARNING_RATE=1e-3"]) == 0
  assert sweep.main([*command, "LEARNING_RATE=1e-3,4e-3"]) == 0
  out, told = capsys.readouterr()
  assert "run 1 of 1: LEARNING_RATE=4e-3" in told
  assert re.search(r"best: .* with LEARNING_RATE=", out)
  assert "LEARNING_RATE=4e-3" in (paths.absolute(output) / "sweep.html").read_text()
  sbatch = folder / "own.sbatch"
  sbatch.write_text("#!/bin/sh\n#SBATCH --nodes=1\n")
  more = [*command, "LEARNING_RATE=8e-3", f"--jobs={sbatch}"]
  assert sweep.main(more) == 0
  (script,) = folder.glob("rates-*-jobs.sh")
  assert f"{output}/LEARNING_RATE=8e-3" in script.read_text()
  # Another sweep of this name has jobs of its own.
  more[1] = f"--output={address('s3', 'others/rates')}"
  assert sweep.main(more) == 0
  assert len(list(folder.glob("rates-*-jobs.sh"))) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "text.model"])
def test_a_tokenizer_is_written_into_a_bucket(folder, name, capsys):
  output = address("s3", f"tokenizers/{name}")
  arguments = [f"--input={folder}/*.txt", "--size=300", f"--output={output}"]
  assert vocabulary.main(arguments) == 0
  out, told = capsys.readouterr()
  assert out.startswith(f"{output}: ")
  assert f"--gin.VOCABULARY_MODEL={output}" in told
  names = {file.name for file in paths.absolute(output).parent.iterdir()}
  assert name in names
  assert not any("probe" in other for other in names)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_walk_does_not_list_what_its_caller_removes(folder, scheme):
  root = paths.absolute(address(scheme, "walked"))
  for name in ("a/one", "a/deep/two", "skipped/three", "four"):
    (root / name).write_text("x")
  seen = {}
  for place, folders, files in buckets.walk(root):
    seen[place.relative_to(root).as_posix()] = sorted(files)
    folders[:] = [name for name in folders if name != "skipped"]
  assert seen == {".": ["four"], "a": ["one"], "a/deep": ["two"]}


def test_a_bucket_that_does_not_exist_is_told_before_anything_is_trained(folder, capsys):
  for main, arguments in (
    (compare.main, ["tiny.gin", "--output=s3://no-such-bucket/x"]),
    (sweep.main, ["run.gin", "--output=s3://no-such-bucket/x", "--over", "SEED=1"]),
    (runs.main, ["s3://no-such-bucket/x"]),
    (vocabulary.main, ["--input=python", "--output=s3://no-such-bucket/x.model"]),
  ):
    with pytest.raises((SystemExit, UserError)) as ended:
      main(arguments)
    assert "no bucket s3://no-such-bucket" in str(ended.value) + capsys.readouterr().err
