"""`launch.prepare` makes the rows that training then finds, and shows them."""

import json
import re
import shlex

import pytest

from config.config import ConfigError
from data import preparation
from experiment import experiment as experiment_lib
from launch import prepare
from tests import small_run


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
  folder = tmp_path_factory.mktemp("prepare")
  small_run.write_text(folder)
  small_run.write(folder / "run.gin", text=folder)
  return [str(folder / "run.gin")]


def test_rows_are_made_shown_and_found_by_training(arguments, capsys, monkeypatch):
  texts = experiment_lib.build(experiment_lib.load(arguments)).texts()
  assert not any(text.is_prepared() for text in texts)
  assert prepare.main([*arguments, "--part=2/2"]) == 0  # One shard each: not of this part.
  assert not any(text.is_prepared() for text in texts)
  assert capsys.readouterr().out.startswith(
    "share 2/2 is prepared; the same command without --part"
  )
  assert prepare.main([*arguments, "--workers=1", "--verify"]) == 0
  assert all(text.is_prepared() for text in texts)
  printed = capsys.readouterr()
  assert re.search(r"^train: \d+ rows, [\d,]+ tokens; all checksums are right$", printed.out, re.M)
  (line,) = re.findall(r"^next: python -m launch\.train (.*)$", printed.err, re.M)
  assert shlex.split(line) == [*arguments, "--run_dir=runs/run"]
  monkeypatch.setattr(preparation, "run", None)  # Nothing is left to prepare.
  assert prepare.main([*arguments, "--stats", "--verify"]) == 0
  stats = json.loads(capsys.readouterr().out)
  train = stats["train"]
  rows = texts[0].rows()
  assert train["rows"] == len(rows)
  assert train["tokens"] == int((rows.segment_ids > 0).sum())
  assert train["padding_share"] == pytest.approx(float((rows.segment_ids == 0).mean()), abs=1e-6)
  assert max(map(int, train["segment_length_percentiles"].values())) <= rows.sequence_length
  assert train["frequent_tokens"][0]["share"] >= train["frequent_tokens"][1]["share"]
  assert sum(token["share"] for token in train["frequent_tokens"]) <= 1.0001
  assert prepare.main([*arguments, "--show=1"]) == 0
  shown = capsys.readouterr().out
  text = rows.tokenizer.decode(rows.tokens[0][rows.segment_ids[0] == 1])
  assert f"--- row 0\n{text}" in shown
  assert "\033" not in shown
  # All three together: a program reads stdout, and rows are for people.
  assert train.get("checksums") == "right"
  assert prepare.main([*arguments, "--show=1", "--stats", "--verify"]) == 0
  printed = capsys.readouterr()
  assert json.loads(printed.out)["train"] == train
  assert f"--- row 0\n{text}" in printed.err
  assert prepare.main([*arguments, "--show=1", "--verify"]) == 0
  assert "train: all checksums are right" in capsys.readouterr().out
  assert prepare.main([*arguments, "--stats"]) == 0
  assert "checksums" not in json.loads(capsys.readouterr().out)["train"]


@pytest.mark.parametrize(
  ("option", "told"),
  [
    ("--part=0/2", "must be I/N, with I from 1 to N"),
    ("--part=x", "must be I/N"),
    ("--workers=0", "must be at least 1"),
    ("--show=-1", "must not be negative"),
  ],
)
def test_wrong_options_are_one_line(arguments, capsys, option, told):
  with pytest.raises(SystemExit):
    prepare.main([*arguments, option])
  assert told in capsys.readouterr().err


def test_a_missing_file_is_told_before_anything_is_built():
  with pytest.raises(ConfigError, match=r"nothing\.gin"):
    prepare.main(["nothing.gin"])


def test_training_says_how_long_a_large_text_takes_and_how_else_to_prepare_it(tmp_path, capsys):
  from data import corpora, dataset, tokenizers

  path = tmp_path / "a.jsonl"
  with path.open("wb") as file:
    file.truncate(24 * 10**9)
  corpus = corpora.JsonLines(str(path), heldout_fraction=0.0)
  text = dataset.TextDataset(corpus, tokenizers.Bytes(), 32, "all", str(tmp_path))
  preparation._tell_how_long([text], 2, own_command=False)
  told = capsys.readouterr().err
  assert "preparing rows will take about 10 min on 2 cores; python -m launch.prepare" in told
  preparation._tell_how_long([text], 2, own_command=True)
  assert "launch.prepare" not in capsys.readouterr().err
