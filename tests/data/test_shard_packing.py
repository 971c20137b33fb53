"""Shards of rows depend on the text alone: not on the processes, nor on which of them died."""

import contextlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data import (
  corpora,
  dataset,
  preparation,
  prepare,
  rows,
  shard_packing,
  shard_plan,
  shard_workers,
)
from data.manifest import RowFileError
from data.preparation import PreparationError
from data.tokenizers import Bytes
from tests.data.deadly import Deadly
from tests.preparations import SOCKET

TEXTS = [f"document {n} é 😀\n" * (n % 7) + "x" * (n % 5) for n in range(120)]


def json_lines(folder, end="\n"):
  lines = [json.dumps({"text": text, "n": n}) for n, text in enumerate(TEXTS)]
  lines.insert(5, "")
  path = folder / "a.jsonl"
  path.write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
  (folder / "b.jsonl").write_text('{"text": "in the second file"}\n')
  return corpora.JsonLines(str(folder / "*.jsonl"))


def separated(folder):
  (folder / "a.txt").write_text("<|end|>".join(TEXTS))
  return corpora.TextFiles(str(folder / "a.txt"), separator="<|end|>")


def files(folder):
  for n, text in enumerate(TEXTS):
    (folder / f"{n:03}.txt").write_text(text)
  return corpora.TextFiles(str(folder / "*.txt"))


def blank_lines(folder):
  """Separators that overlap: three, four and five line ends in a row."""
  (folder / "a.txt").write_text("".join(f"{n}" + "\n" * (1 + n % 5) for n in range(40)))
  return corpora.TextFiles(str(folder / "a.txt"), separator="\n\n")


MAKES = [json_lines, lambda folder: json_lines(folder, "\r\n"), separated, files]


@pytest.mark.parametrize(
  "make", [*MAKES, blank_lines], ids=["json", "crlf", "separator", "files", "overlap"]
)
def test_every_document_is_in_one_part_wherever_the_cuts_are(tmp_path, make):
  corpus = make(tmp_path)
  expected = list(corpus.undivided())
  for size in (1, 7, 13, 100, 1000, 10**6):
    found = [text for part in corpus.parts(size) for text in corpus.texts(part)]
    raw, pieces = [], b""
    for text in found:
      pieces += text.raw
      if text.ends:
        raw.append(pieces)
        pieces = b""
    assert raw == expected
    for text in found:
      text.raw.decode()  # No character is cut.


def spec(corpus, cache, split="train", size=700, tokenizer=None, length=32):
  return dataset.TextDataset(
    corpus, tokenizer or Bytes(), length, split, str(cache), shard_bytes=size
  )


def documents(opened):
  """Returns the documents of rows, joined where they go on in the next row."""
  tokens = np.asarray(opened.tokens)[np.asarray(opened.segment_ids) > 0]
  return [Bytes().decode(part) for part in np.split(tokens, np.flatnonzero(tokens == 1) + 1)][:-1]


def packed(text):
  """Packs a dataset in this process."""
  tasks = shard_plan.tasks(text)
  folder = prepare.shards_folder(text)
  folder.mkdir(parents=True)
  for number, task in reversed(list(enumerate(tasks))):
    shard_packing.pack(text, task, number, folder)
  shard_workers.join(text, text.source(), len(tasks), folder)
  return rows.RowFiles(folder, verify=True)


def test_shards_of_a_text_that_changed_are_made_anew(tmp_path, monkeypatch):
  (tmp_path / "text").mkdir()
  text = spec(json_lines(tmp_path / "text"), tmp_path / "cache", "all")
  expected = [text.decode() for text in text.corpus.undivided() if text]
  file = tmp_path / "text/a.jsonl"
  content, time_ns = file.read_bytes(), file.stat().st_mtime_ns

  def packs(found):
    """Returns `pack_all` in this process, of a file that has other contents meanwhile."""

    def pack_all(dataset, tasks, folder, show, **options):
      file.write_bytes(found)
      for number, task in enumerate(tasks):
        shard_packing.pack(dataset, task, number, folder)

    return pack_all

  with monkeypatch.context() as patch:
    patch.setattr(shard_workers, "pack_all", packs(content.replace(b"document", b"DOCUMENT")))
    with pytest.raises(corpora.CorpusError, match="a file changed while it was read"):
      prepare.prepare(text, lambda event: None)
  # The text of the rows' name is there again.
  file.write_bytes(content)
  os.utime(file, ns=(time_ns, time_ns))
  prepare.prepare(text, lambda event: None, workers=1)
  assert documents(rows.RowFiles(text.cache_path)) == expected


@pytest.mark.parametrize("make", [json_lines, separated, files])
def test_shards_have_the_documents_of_one_process(tmp_path, make):
  (tmp_path / "text").mkdir()
  corpus = make(tmp_path / "text")
  for split in ("train", "heldout", "all"):
    whole = spec(corpus, tmp_path / "a", split, 10**9)
    assert shard_plan.tasks(whole) is None
    prepare.prepare(whole, lambda event: None)
    expected = rows.RowFiles(whole.cache_path)
    opened = packed(spec(corpus, tmp_path / "b", split))
    assert len(opened.manifest.shards) > 8
    assert documents(opened) == documents(expected)
    assert opened.text_bytes() == expected.text_bytes()
    for name in ("documents", "empty_documents", "text_bytes", "tokens"):
      assert getattr(opened.counts, name) == getattr(expected.counts, name)


def test_leftovers_of_this_machine_go_and_work_of_others_stays(tmp_path):
  text = spec(json_lines(tmp_path), tmp_path / "cache", "all")
  ended = subprocess.Popen(["true"])
  ended.wait()
  name = f".shard-00000.{socket.gethostname()}"
  other = tmp_path / f"{name}-12345678.7.partial"
  own = tmp_path / f".shard-00000.{shard_packing.machine()}.{ended.pid}.partial"
  at_work = own.with_name(own.name.replace(f".{ended.pid}.", f".{os.getppid()}."))
  for folder in (other, own, at_work):
    folder.mkdir()
  shard_packing.pack(text, shard_plan.tasks(text)[0], 0, tmp_path)
  assert (tmp_path / "shard-00000").is_dir()
  assert other.is_dir()
  assert at_work.is_dir()  # Another job of this machine packs the same shard.
  assert not own.exists()


class Picky(Bytes):
  """A tokenizer with an error that can neither be sent to another process nor be read there."""

  class Refusal(Exception):
    def __init__(self, text, lock):
      super().__init__(f"no tokens for {len(text)} letters")
      self.lock = lock

  def encode(self, text):
    raise self.Refusal(text, threading.Lock())


def test_an_error_that_cannot_be_pickled_is_told(tmp_path):
  text = dataset.TextDataset(
    json_lines(tmp_path), Picky(), 32, "all", str(tmp_path / "cache"), shard_bytes=10**4
  )
  with pytest.raises(
    PreparationError, match=r"failed 3 times: Refusal: no tokens for \d+ letters\."
  ):
    prepare.prepare(text, lambda event: None, workers=1)


def test_rows_that_another_machine_joined_first_are_taken(tmp_path, monkeypatch):
  (tmp_path / "text").mkdir()
  text = spec(json_lines(tmp_path / "text"), tmp_path / "cache", "all", 2500)
  monkeypatch.setattr(shard_workers, "pack_all", in_this_process)
  monkeypatch.setattr(prepare, "_lock", lambda path, wait: contextlib.nullcontext())
  join, others = shard_workers.join, []

  def late_join(*arguments):
    if not others:
      others.append("at work")
      prepare.prepare(text, lambda event: None)
      others.append(fingerprint(text))
    return join(*arguments)

  monkeypatch.setattr(shard_workers, "join", late_join)
  prepare.prepare(text, lambda event: None)
  assert others == ["at work", fingerprint(text)]


def test_one_large_file_is_packed_in_pieces_and_its_end_is_held_out(tmp_path):
  text = "\n".join(f"line {n} é" for n in range(900))
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
  corpus = corpora.TextFiles(str(tmp_path / "a.txt"))
  found = []
  for split in ("train", "heldout"):
    whole = "".join(raw.decode() for raw in corpus.documents(split))
    opened = packed(spec(corpus, tmp_path / "b", split, 400))
    assert documents(opened) == [whole]
    assert opened.counts.documents == 1
    found.append(whole)
  assert "".join(found) == text


def test_a_large_file_among_others_is_wholly_in_one_split(tmp_path):
  for n in range(12):
    (tmp_path / f"{n:02}.txt").write_text(f"file {n}\n" * 100)
  corpus = corpora.TextFiles(str(tmp_path / "*.txt"), heldout_fraction=0.4)
  found = []
  for split in ("train", "heldout"):
    opened = packed(spec(corpus, tmp_path / "b", split, 200))
    assert documents(opened) == [raw.decode() for raw in corpus.documents(split)]
    found += documents(opened)
  assert sorted(found) == sorted(path.read_text() for path in tmp_path.glob("*.txt"))


def test_a_wrong_line_of_any_part_is_named_with_its_number(tmp_path):
  corpus = json_lines(tmp_path)
  path = tmp_path / "a.jsonl"
  path.write_bytes(path.read_bytes().replace(b'{"text": "document 86', b'{"body": "document 86'))
  texts = (text for part in corpus.parts(300) for text in corpus.texts(part))
  with pytest.raises(corpora.CorpusError, match=r"a\.jsonl:88: no 'text', only 'body', 'n'"):
    list(texts)


def fingerprint(text):
  return rows.RowFiles(text.cache_path, verify=True).check(Bytes(), 32).fingerprint


@pytest.fixture
def deadly(tmp_path):
  """Makes a dataset of 3 shards, one of them with a deadly document."""
  folder = tmp_path / "text"
  folder.mkdir()
  texts = [*TEXTS, "a deadly document"]
  random.Random(0).shuffle(texts)
  (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  corpus = corpora.JsonLines(str(folder / "a.jsonl"), heldout_fraction=0.0)

  def make(deaths, name, fails=False):
    (tmp_path / f"deaths_{name}").mkdir()
    tokenizer = Deadly(str(tmp_path / f"deaths_{name}"), deaths, fails)
    size = (folder / "a.jsonl").stat().st_size // 3 + 1
    return spec(corpus, tmp_path / name, "all", size, tokenizer)

  return make


def test_rows_do_not_depend_on_a_worker_that_died_or_on_their_number(deadly):
  alone, died = deadly(0, "alone"), deadly(1, "died")
  events = []
  prepare.prepare(alone, lambda event: None, workers=1)
  prepare.prepare(died, events.append, workers=2)
  assert len(list((died.cache_path.parents[1] / "deaths_died").iterdir())) == 1
  assert fingerprint(died) == fingerprint(alone)
  assert len(rows.RowFiles(died.cache_path).manifest.shards) == 3
  assert events[-1]["finished"]
  assert events[-1]["documents"] == 121
  # Nothing but rows is left.
  assert {path.name for path in died.cache_path.parent.iterdir() if path.is_dir()} == {
    died.cache_path.name
  }
  left = [p.name for p in died.cache_path.rglob("*") if p.is_file()]
  assert set(left) == {
    "tokens.bin", "segment_ids.bin", "row_bytes.bin", "manifest.json", "verified.json",
    "vocabulary.json",
  }  # fmt: skip


@pytest.mark.parametrize(
  ("fails", "told"),
  [
    (
      False,
      r"shard \d of 3 \(.*a\.jsonl, [\d,]+ to [\d,]+\) failed 3 times: its process was ended",
    ),
    (True, r"shard \d of 3 \(.*a\.jsonl.* failed 3 times: OSError: .*the disk of this test failed"),
  ],
)
def test_a_task_that_fails_again_is_named_and_the_next_start_packs_what_is_missing(
  deadly, fails, told
):
  text = deadly(9, "failing", fails)
  with pytest.raises(PreparationError, match=told):
    prepare.prepare(text, lambda event: None, workers=1)
  folder = prepare.shards_folder(text)
  done = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*/tokens.bin")}
  assert 1 <= len(done) < 3
  mended = dataset.TextDataset(
    text.corpus, Bytes(), 32, "all", text.cache_dir, shard_bytes=text.shard_bytes
  )
  prepare.prepare(mended, lambda event: None, workers=1)
  for path, then in done.items():
    assert (text.cache_path / path.relative_to(folder)).stat().st_mtime_ns == then
  assert len(rows.RowFiles(text.cache_path, verify=True).manifest.shards) == 3


def test_a_killed_preparation_continues_and_its_workers_end(deadly, tmp_path):
  """The process that the trainer starts is killed, which it cannot notice itself."""
  text = deadly(0, "killed")
  text = dataset.TextDataset(text.corpus, Bytes(), 32, "all", text.cache_dir, shard_bytes=300)
  folder = prepare.shards_folder(text)
  process = subprocess.Popen(
    [sys.executable, "-P", "-m", "data.prepare"],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env=preparation._environment(str(tmp_path)) | {SOCKET: ""},
  )
  process.stdin.write(pickle.dumps({"datasets": [text], "workers": 1}))
  process.stdin.close()
  wait_for(lambda: list(folder.glob("shard-*")))
  workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  process.kill()
  process.wait()
  assert workers
  wait_for(lambda: not any(is_alive(worker) for worker in workers))
  done = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*/tokens.bin")}
  assert 1 <= len(done) < len(shard_plan.tasks(text))
  assert not text.is_prepared()
  prepare.prepare(text, lambda event: None, workers=1)
  for path, then in done.items():
    assert (text.cache_path / path.relative_to(folder)).stat().st_mtime_ns == then
  counts = rows.RowFiles(text.cache_path, verify=True).counts
  assert counts.documents + counts.empty_documents == 121


def is_alive(pid):
  with contextlib.suppress(OSError):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  return False


def wait_for(condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_machines_pack_shares_and_one_joins_them(tmp_path, monkeypatch):
  (tmp_path / "text").mkdir()
  corpus = json_lines(tmp_path / "text")
  monkeypatch.setattr(shard_workers, "pack_all", in_this_process)
  whole, shared = (spec(corpus, tmp_path / name, "train", 2500) for name in ("a", "b"))
  prepare.prepare(whole, lambda event: None)
  for number in (2, 1):
    assert not shared.is_prepared()
    prepare.prepare(shared, lambda event: None, part=(number, 2))
  with pytest.raises(RowFileError):
    rows.RowFiles(shared.cache_path)
  monkeypatch.setattr(shard_packing, "pack", None)
  prepare.prepare(shared, lambda event: None)
  assert fingerprint(shared) == fingerprint(whole)


def in_this_process(text, tasks, directory, report, *, workers=None, numbers=None):
  for number in range(len(tasks)) if numbers is None else numbers:
    if shard_packing.finished(directory, number) is None:
      shard_packing.pack(text, tasks[number], number, directory)


def test_a_corpus_is_cut_by_its_size_alone(tmp_path):
  path = tmp_path / "a.jsonl"
  with path.open("wb") as file:
    file.truncate(200 * 10**6)
  corpus = corpora.JsonLines(str(path))
  text = dataset.TextDataset(corpus, Bytes(), 32, "all", str(tmp_path))
  tasks = shard_plan.tasks(text)
  assert len(tasks) == 12
  assert [part.size for task in tasks for part in task] == pytest.approx([200e6 / 12] * 12, abs=1)
  os.truncate(path, 4 * 10**12)
  assert len(shard_plan.tasks(text)) == 4000
  os.truncate(path, 10**7)
  assert shard_plan.tasks(text) is None
