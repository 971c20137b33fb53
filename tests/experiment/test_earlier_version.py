"""Runs, adapters, exported weights and a comparison that an earlier version wrote are opened.

`earlier_version.tar.xz` was written by the code before modules moved into folders: a Griffin of
10,000 parameters after 6 steps on `text/`, LoRA from it, a RecurrentGemma exported and imported
again, and a comparison whose runs have lost their checkpoints.
"""

import json
import tarfile
from pathlib import Path

import pytest

from comparison import machine
from launch import compare, convert, evaluate, generate, train

ARCHIVE = Path(__file__).with_name("earlier_version.tar.xz")
TEXT = "--gin.TEXT_FILES=text/*.txt"


@pytest.fixture(autouse=True)
def earlier(tmp_path, monkeypatch):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter="data")
  monkeypatch.chdir(tmp_path / "earlier")


def test_a_run_is_scored_as_it_was(capsys):
  assert evaluate.main(["--run_dir=run", TEXT]) == 0
  told = capsys.readouterr()
  # The loss that the earlier version printed.
  assert "5.4775 nats per token" in told.out
  assert "warning" not in told.err


def test_a_run_goes_on(capsys):
  arguments = ["--run_dir=run", TEXT, "--gin.STEPS=7", "--resume=force", "--gin.WARMUP_STEPS=2"]
  assert train.main(arguments) == 0
  records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
  assert [record["step"] for record in records if "loss" in record] == [6, 7]
  assert "from experiment import experiment\n" in Path("run/config.gin").read_text()


def test_shipped_files_change_the_configuration_of_a_run(capsys):
  arguments = ["--init_from=run", "--run_dir=tuned", TEXT, "--gin.STEPS=2", "--gin.WARMUP_STEPS=1"]
  assert train.main(["gin/train/lora.gin", "gin/optimizer/muon.gin", *arguments]) == 0
  assert train.main(["gin/precision/bfloat16_master.gin", *arguments[:1], "--describe"]) == 0
  assert "AdamW, decayed" in capsys.readouterr().out


def test_adapters_continue_a_text(capsys):
  assert generate.main(["--run_dir=lora", "--prompt=the griffin", "--temperature=0"]) == 0
  assert capsys.readouterr().out.startswith("the griffin")


@pytest.mark.parametrize("start", ["run", "imported"])
@pytest.mark.parametrize("file", ["train/lora.gin", "train/finetune.gin", "train/adamw_wsd.gin"])
def test_files_that_train_fit_onto_it(start, file, capsys):
  arguments = [file, "data/bytes.gin", "data/text_files.gin", TEXT, "--gin.BATCH_SIZE=2"]
  assert train.main([*arguments, f"--init_from={start}", "--print_config"]) == 0
  told = capsys.readouterr()
  assert "warning" not in told.err  # none of an old name that nobody typed
  assert ("warmup_stable_decay" in told.out) == ("wsd" in file)


def test_another_schedule_acts_on_a_run_that_names_none(capsys):
  assert train.main(["schedule/wsd.gin", "--run_dir=run", "--print_config"]) == 0
  assert "optimizer.AdamW.learning_rate = %SCHEDULE" in capsys.readouterr().out


def test_exported_and_imported_weights_are_the_same_run():
  assert convert.main(["exported", "again", "--vocabulary=bytes"]) == 0
  assert convert.main(["imported", "out"]) == 0
  assert Path("out/model.safetensors").read_bytes() == (
    Path("exported/model.safetensors").read_bytes()
  )


def test_a_comparison_is_shown_without_measuring_anything_again(capsys, monkeypatch):
  # Results hold for the machine and the versions that measured them: here those of the archive.
  result = json.loads(next(Path("comparison").rglob("cells/**/*.json")).read_text())
  monkeypatch.setattr(machine, "hardware", lambda: result["depends"]["on"])
  monkeypatch.setattr(machine, "versions", lambda: result["depends"]["versions"])
  assert compare.main(["compare_tiny.gin", "--output=comparison"]) == 0
  told = capsys.readouterr()
  assert "[1/" not in told.out + told.err
  figures = json.loads(Path("comparison/report/data.json").read_text())
  assert "Griffin" in json.dumps(figures)
