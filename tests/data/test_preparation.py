"""Preparation by another process: no TensorFlow here, whole or not at all, one at a time.

Slow for several imports of TensorFlow by processes that are killed, raced and watched for real.
"""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import corpora, dataset, instructions, preparation, progress, rows, tokenizers

ROOT = Path(__file__).parents[2]

# As a training run would: datasets, batches, and a look at what was imported.
TRAIN = """
import dataclasses, json, os, sys
from data import dataset, corpora, loader, preparation, tokenizers
texts = corpora.TextFiles('texts/*.txt', heldout_fraction=0.3)
train, heldout = (
  dataset.TextDataset(texts, tokenizers.Bytes(), 32, split) for split in ('train', 'heldout')
)
mixture = dataset.RegisteredMixture(
  'short_and_long', tokenizers.Bytes(), 32, module='tests.data.registered_tasks'
)
preparation.prepare([train, heldout])
shares = []
for part in (2, 1):  # Each of its tasks has one shard.
  preparation.prepare([mixture], part=(part, 2))
  shares.append([task.is_prepared() for task in mixture.known_parts()])
mixed = mixture.rows()
batch = next(loader.batches(dataset.Mixture([train, heldout], [1, 1]).rows(), 4))
print(json.dumps({
  'left': sorted(os.listdir(os.environ['TMPDIR'])),
  'tensorflow': [m for m in ('tensorflow', 'seqio') if m in sys.modules],
  'documents': [d.rows().counts.documents for d in (train, heldout)],
  'paths': [str(d.rows().directory) for d in (train, heldout)],
  'shares': shares,
  'shape': batch['targets'].shape,
  'halves': [
    len(dataclasses.replace(mixture, half=half).rows()) for half in ('validation', 'test', None)
  ],
  'parts': {part.directory.name: weight for part, weight in zip(mixed.parts, mixed.weights)},
  'tokens': {part.directory.name: part.counts.tokens for part in mixed.parts},
}))
"""


def environment(**more):
  return os.environ | {"PYTHONPATH": str(ROOT)} | more


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Runs TRAIN where a folder `data` could be mistaken for the package.

  Returns report and stderr.
  """
  folder = tmp_path_factory.mktemp("somewhere")
  (folder / "data").mkdir()
  (folder / "data" / "__init__.py").write_text("raise ImportError('the wrong data')")
  (folder / "texts").mkdir()
  for i in range(30):
    (folder / "texts" / f"{i}.txt").write_text(f"text number {i}\n" * 5)
  (folder / "texts" / "invalid.txt").write_bytes(b"a\xffb")
  command = [sys.executable, "-P", "-c", TRAIN]
  own = environment(TMPDIR=str(tmp_path_factory.mktemp("temporary")))
  return folder, [
    subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    for _ in range(2)
  ]


def test_training_never_imports_tensorflow_even_where_it_prepares(trained):
  folder, (cold, warm) = trained
  assert cold.returncode == 0, cold.stderr
  report = json.loads(cold.stdout)
  assert report["tensorflow"] == []
  assert sum(report["documents"]) == 31
  assert report["shape"] == [4, 32]
  assert all(Path(path).parent == folder / "cache" for path in report["paths"])
  assert json.loads(warm.stdout) == report | {"shares": [[True, True], [True, True]]}


def test_preparing_leaves_no_temporary_file(trained):
  # TensorFlow writes Python files for the functions of the registered tasks.
  _, (cold, _) = trained
  assert json.loads(cold.stdout)["left"] == []


def test_preparing_shows_progress_and_a_warm_cache_is_silent(trained):
  _, (cold, warm) = trained
  assert "preparing text-files (train): [########################] 100%" in cold.stderr
  assert "preparing text-files (heldout): [########################] 100%" in cold.stderr
  assert "(1 with invalid UTF-8)" in cold.stderr
  assert warm.stderr == ""


def test_a_registered_mixture_is_prepared_in_shares(trained):
  _, (cold, _) = trained
  assert json.loads(cold.stdout)["shares"] == [[False, False], [True, True]]


def test_a_registered_mixture_keeps_the_tokens_shares(trained):
  _, (cold, _) = trained
  report = json.loads(cold.stdout)
  short, long = sorted(report["parts"], reverse=True)
  # 3 documents of 2 letters and an EOS for each of 23 and one; nothing of either is left out.
  assert report["parts"][short] / report["parts"][long] == pytest.approx(3 * 3 / 24)
  assert (report["tokens"][short], report["tokens"][long]) == (300 * 3, 300 * 24)
  validation, test, whole = report["halves"]
  assert validation + test == whole
  assert abs(validation - test) <= 2 * len(report["parts"])


def wait_for(condition, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_a_killed_preparation_leaves_nothing_and_two_at_once_make_it_once(tmp_path):
  """One is killed while it writes; two are then started together, on what it left."""
  cache = tmp_path / "cache"
  spec = dataset.TextDataset(corpora.PythonLibrary(), tokenizers.Bytes(), 64, "train", str(cache))
  command = [
    sys.executable,
    "-c",
    "import pickle, sys; from data import preparation;"
    " preparation.prepare(pickle.load(sys.stdin.buffer))",
  ]

  def start():
    import pickle

    process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment(),
      stdin=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=False,
      start_new_session=True,
    )
    process.stdin.write(pickle.dumps([spec]))
    process.stdin.close()
    return process

  def partial():
    return list(cache.glob(".*.partial"))

  killed = start()
  wait_for(
    lambda: any((p / rows.TOKENS).exists() and (p / rows.TOKENS).stat().st_size for p in partial())
  )
  os.killpg(killed.pid, signal.SIGKILL)
  killed.wait()
  left = partial()
  assert left
  assert not spec.is_prepared()

  both = [start(), start()]
  messages = [process.stderr.read().decode() for process in both]
  assert [process.wait() for process in both] == [0, 0], messages
  opened = rows.RowFiles(spec.cache_path, verify=True).check(tokenizers.Bytes(), 64)
  assert opened.counts.text_bytes > 8e6
  assert partial() == []
  assert [p for p in cache.iterdir() if p.is_dir()] == [spec.cache_path]
  made = ["100%" in message for message in messages]
  assert sorted(made) == [False, True], messages


def test_a_terminated_preparation_removes_what_it_began(tmp_path):
  """Ctrl-C in the training process ends the preparing one, which cleans up."""
  cache = tmp_path / "cache"
  spec = dataset.TextDataset(corpora.PythonLibrary(), tokenizers.Bytes(), 64, "train", str(cache))

  class Stop(Exception):
    pass

  def show(state):
    if state.documents:
      raise Stop

  with pytest.raises(Stop):
    preparation.prepare([spec], show)
  assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_the_corpus_own_error_reaches_the_caller(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"body": "bad"}\n')
  corpus = corpora.JsonLines(str(tmp_path / "a.jsonl"), heldout_fraction=0.0)
  spec = dataset.TextDataset(corpus, tokenizers.Bytes(), 8, cache_dir=str(tmp_path / "cache"))
  with pytest.raises(corpora.CorpusError, match=r"a\.jsonl:2: no 'text', only 'body'"):
    spec.rows(lambda state: None)
  assert not spec.is_prepared()


def test_another_error_carries_the_last_messages():
  # A request that is none: the preparing process fails by itself.
  message = r"(?s)failed with TypeError: string indices.*Last messages:.*in _answer"
  with pytest.raises(preparation.PreparationError, match=message):
    preparation.run("no request", "nothing", lambda state: None)


def test_the_name_of_a_cache_holds_all_that_decides_its_content(tmp_path):
  (tmp_path / "a.txt").write_text("a")
  base = {
    "corpus": corpora.TextFiles(str(tmp_path / "a.txt")),
    "vocabulary": tokenizers.Bytes(),
    "sequence_length": 8,
    "split": "train",
    "cache_dir": str(tmp_path),
  }
  others = [
    base,
    base | {"corpus": corpora.TextFiles(str(tmp_path / "a.txt"), heldout_fraction=0.5)},
    base | {"vocabulary": tokenizers.Bytes(extra_ids=1)},
    base | {"sequence_length": 9},
    base | {"split": "all"},
    base | {"split": "heldout"},
  ]
  paths = [dataset.TextDataset(**fields).cache_path for fields in others]
  assert len(set(paths)) == len(others)
  assert paths[0] == dataset.TextDataset(**base).cache_path
  (tmp_path / "a.txt").write_text("another")
  assert paths[0] != dataset.TextDataset(**base).cache_path


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_shows_one_line_that_moves():
  stream = Terminal()
  bar = progress.ProgressBar(stream)
  bar(progress.PreparationProgress("corpus (train)", seconds=3.2))
  bar(progress.PreparationProgress("corpus (train)", seconds=3.5, reading=True))
  queued = progress.PreparationProgress("corpus (train)", seconds=4, reading=True, elsewhere=True)
  assert (
    queued.line() == "preparing corpus (train): waiting for the first job to read the text, 4 s"
  )
  half = {"documents": 5, "text_bytes": 500_000, "total_bytes": 1_000_000, "seconds": 4.0}
  bar(progress.PreparationProgress("corpus (train)", **half))
  bar(progress.PreparationProgress("corpus (train)", documents=1, text_bytes=1_733))
  whole = half | {"documents": 9, "text_bytes": 990_000, "seconds": 5.0, "finished": True}
  bar(
    progress.PreparationProgress(
      "corpus (train)", **whole, empty_documents=2, invalid_utf8_documents=1
    )
  )
  lines = stream.getvalue().split("\r")[1:]
  assert [line.strip() for line in lines] == [
    "preparing corpus (train): starting the process that reads the text, 3 s",
    "preparing corpus (train): reading the text, 4 s",
    "preparing corpus (train): [############............]  50%  5 documents, 0.5 MB, 4 s",
    "preparing corpus (train): 1 document, 1.7 kB, 0 s",
    "preparing corpus (train): [########################] 100%  9 documents, 1.0 MB, 5 s"
    " (2 empty, left out; 1 with invalid UTF-8)",
  ]
  assert stream.getvalue().count("\n") == 1


def test_elsewhere_lines_come_seldom():
  stream = io.StringIO()
  bar = progress.ProgressBar(stream)
  for i in range(50):
    bar(progress.PreparationProgress("corpus (train)", documents=i + 1))
  bar(progress.PreparationProgress("corpus (train)", documents=51, finished=True))
  assert len(stream.getvalue().splitlines()) == 2


def never(*_):
  raise AssertionError("a process was started for what is known at once")


@pytest.mark.parametrize(
  ("corpus", "text", "told"),
  [
    (corpora.TextFiles, b"PK\x03\x04" + b"x" * 99, "is a ZIP archive"),
    (corpora.JsonLines, b'{"body": "no text"}\n', r"a\.jsonl:1: no 'text', only 'body'"),
    (corpora.JsonLines, b"no object\n", r"a\.jsonl:1: not a JSON object"),
    (instructions.Instructions, b'{"body": "no prompt"}\n', r"a\.jsonl:1: no 'prompt'"),
  ],
)
def test_what_a_look_at_the_files_tells_is_told_at_once(tmp_path, monkeypatch, corpus, text, told):
  monkeypatch.setattr(preparation.subprocess, "Popen", never)
  (tmp_path / "a.jsonl").write_bytes(text)
  read = corpus(str(tmp_path / "a.jsonl"), heldout_fraction=0.0)
  spec = dataset.TextDataset(read, tokenizers.Bytes(), 8, cache_dir=str(tmp_path / "cache"))
  with pytest.raises(corpora.CorpusError, match=told):
    spec.rows()
  assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonl.gz"])
def test_json_lines_are_not_learnt_as_text(tmp_path, monkeypatch, ending):
  monkeypatch.setattr(preparation.subprocess, "Popen", never)
  file = tmp_path / f"a{ending}"
  packed = gzip.compress if ending.endswith(".gz") else bytes
  file.write_bytes(packed(b'{"text": "good"}\n' * 9))
  (tmp_path / "b.txt").write_text("text\n" * 99)
  read = corpora.TextFiles(str(tmp_path / "*"))
  spec = dataset.TextDataset(read, tokenizers.Bytes(), 8, cache_dir=str(tmp_path / "cache"))
  with pytest.raises(corpora.CorpusError, match=r"gin/data/json_lines_bytes\.gin .*JSON_LINES="):
    spec.rows()
  file.write_bytes(packed(b"no JSON\n"))  # The name alone says nothing.
  read.check()


@pytest.mark.parametrize("length", [10**9, 2**31 - 1])
def test_rows_too_long_for_memory_are_refused_with_the_arithmetic(tmp_path, monkeypatch, length):
  monkeypatch.setattr(preparation.subprocess, "Popen", never)
  monkeypatch.setattr(preparation, "_memory", lambda: 24 * 10**9)
  (tmp_path / "a.txt").write_text("text\n" * 99)
  read = corpora.TextFiles(str(tmp_path / "a.txt"))
  spec = dataset.TextDataset(read, tokenizers.Bytes(), length, cache_dir=str(tmp_path / "cache"))
  told = rf"sequence_length={length} is too long.* has 24 GB\. .*--length.* 536870912\."
  with pytest.raises(preparation.PreparationError, match=told):
    spec.rows()
  assert not (tmp_path / "cache").exists()


def test_memory_that_the_preparing_process_lacks_is_one_line(tmp_path):
  answer = {"kind": "_ArrayMemoryError", "error": "Unable to allocate 9 TiB\nfor an array"}
  with (tmp_path / "log").open("wb+") as log:
    told = preparation._explain(1, answer, log)
  assert told.startswith("preparing rows ran out of memory: Unable to allocate 9 TiB for")


def test_a_cache_that_cannot_be_is_told_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(preparation.subprocess, "Popen", never)
  (tmp_path / "a.txt").write_text("text\n" * 99)
  read = corpora.TextFiles(str(tmp_path / "a.txt"))
  spec = dataset.TextDataset(read, tokenizers.Bytes(), 8, cache_dir="/dev/null/x")
  with pytest.raises(
    preparation.PreparationError, match=r"/dev/null is not a folder.*cache_dir=FOLDER"
  ):
    spec.rows()


def test_a_split_that_does_not_exist_is_refused_when_it_is_described():
  with pytest.raises(corpora.CorpusError, match=r"unknown split='3'\. Choose from train"):
    dataset.TextDataset(corpora.PythonLibrary(), tokenizers.Bytes(), 8, "3")
