"""Sources in buckets and at web addresses have the documents of the same files on this machine."""

import gzip
import json
import lzma

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from base import file_ranges, remote_files, remote_systems, small_files
from data import corpora, dataset, files, heldout, prepare, tokenizer_json
from data.record_corpora import Records
from data.table_corpora import Parquet, SavedDataset
from data.token_files import TokenFiles
from data.tokenizer_training import train_tokenizer_json
from data.tokenizers import Bytes
from tests import bucket_servers, web_server
from tests.data.test_record_corpora import TEXTS as RECORDED
from tests.data.test_record_corpora import example, tf_record
from tests.data.test_record_corpora import write as write_records
from tests.data.test_sources import zstandard

TEXTS = ["first é", "second\r\nline", "", *(f"text {n} " * 40 for n in range(300))]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
PLACES = ("s3", "gs", "http", "http without ranges")


def write(folder):
  """Writes files of all formats."""
  (folder / "lines").mkdir(parents=True)
  (folder / "lines/a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES)
  (folder / "lines/b.jsonl.gz").write_bytes(gzip.compress(LINES))
  (folder / "lines/c.jsonl.xz").write_bytes(lzma.compress(LINES))
  (folder / "lines/d.jsonl.zst").write_bytes(zstandard(LINES))
  (folder / "parts.txt").write_text("<s>".join(TEXTS))
  (folder / "document.txt").write_text("\n".join(TEXTS))
  table = pyarrow.table({"n": range(303), "text": TEXTS})
  pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=100)
  write_records(folder, "array_record")
  (folder / "a.tfrecord").write_bytes(tf_record(map(example, RECORDED)))
  (folder / "a.tfrecord.gz").write_bytes(gzip.compress(tf_record(map(example, RECORDED))))
  ids = np.arange(5000) % 250 + 1
  ids.astype("<u2").tofile(folder / "a.bin")
  np.save(folder / "a.npy", ids.reshape(50, 100))
  (folder / "saved").mkdir()
  state = {"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}
  (folder / "saved/state.json").write_text(json.dumps(state))
  with pyarrow.ipc.new_stream(str(folder / "saved/data.arrow"), table.schema) as stream:
    stream.write_table(table)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sources")
  write(folder)
  return folder


@pytest.fixture(scope="module", params=PLACES)
def place(request, local):
  """The address of a copy of the folder."""
  with pytest.MonkeyPatch.context() as patch:
    if request.param.startswith("http"):
      with web_server.serving(local, ranges=request.param == "http") as (address, _):
        yield address
      return
    bucket_servers.use(patch)
    address = f"{request.param}://{bucket_servers.BUCKET}/sources"
    remote_files.forget()
    put(local, address)
    yield address


def put(folder, address):
  system = remote_systems.system(address.partition("://")[0])
  for file in folder.rglob("*"):
    if file.is_file():
      system.pipe_file(f"{address}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def texts(corpus, size):
  return [text.raw for part in corpus.parts(size) for text in corpus.texts(part)]


def test_documents_are_those_of_local_files(local, place):
  for name in ("lines/*.jsonl*", "lines/a.jsonl", "**/*.jsonl.gz"):
    if "**" in name and place.startswith("http"):
      continue  # pages of links are listed folder by folder
    there = corpora.JsonLines(f"{place}/{name}")
    here = corpora.JsonLines(f"{local}/{name}")
    assert list(there.undivided()) == list(here.undivided())
    assert texts(there, 9000) == texts(here, 9000)
    assert there.total_bytes() == here.total_bytes()
  for corpus in (corpora.TextFiles, lambda files: corpora.TextFiles(files, separator="<s>")):
    for name in ("parts.txt", "document.txt"):
      there, here = corpus(f"{place}/{name}"), corpus(str(local / name))
      assert texts(there, 9000) == texts(here, 9000)
      for split in ("train", "heldout"):
        assert list(there.documents(split)) == list(here.documents(split))
  there, here = Parquet(f"{place}/a.parquet"), Parquet(str(local / "a.parquet"))
  assert [part.size for part in there.parts(1)] == [part.size for part in here.parts(1)]
  assert texts(there, 1) == [text.encode() for text in TEXTS]
  assert texts(SavedDataset(f"{place}/saved"), 1) == [text.encode() for text in TEXTS]
  for name in ("a.tfrecord", "a.tfrecord.gz", "a.array_record"):
    assert texts(Records(f"{place}/{name}"), 1) == [text.encode() for text in RECORDED]
  for name in ("a.bin", "a.npy"):
    found = [
      np.concatenate([example.tokens for example in TokenFiles(f).token_examples(Bytes(), "all")])
      for f in (f"{place}/{name}", str(local / name))
    ]
    np.testing.assert_array_equal(*found)


def test_ranges_of_a_large_text_are_searched_as_a_whole(local, monkeypatch):
  content = (local / "parts.txt").read_bytes()
  monkeypatch.setattr(file_ranges, "BLOCK", 101)
  with web_server.serving(local, ranges=True) as (address, requests):
    text = file_ranges.RangedText(remote_files.RemoteFile(f"{address}/parts.txt"))
    for sub in (b"<s>", b"text 7 ", b"nowhere"):
      for start, stop in ((0, None), (95, 900), (205, 4000), (400, 402), (900, 100)):
        assert text.find(sub, start, stop) == content.find(sub, start, stop)
        assert text.rfind(sub, start, stop) == content.rfind(sub, start, stop)
    assert text[99:305] == content[99:305]
    assert text[202] == content[202]
    assert text[5:5] == b""
    near = len(content) * 9 // 10
    assert heldout.boundary(text, near) == heldout.boundary(content, near)
    requests.clear()
    file = Parquet(f"{address}/a.parquet")
    list(file.texts(file.parts(1)[1]))
  sizes = [
    int(r.partition("-")[2]) - int(r.partition("=")[2].partition("-")[0]) for _, r in requests if r
  ]
  # The ends of the file, for its metadata, and the text's column of a row group.
  assert len(sizes) < 8
  assert sum(sizes) < 0.9 * (local / "a.parquet").stat().st_size * len(sizes)


@pytest.mark.parametrize("sizes", [True, False])
def test_servers_without_ranges_or_sizes_have_the_whole_text(local, monkeypatch, sizes):
  monkeypatch.setattr(file_ranges, "BLOCK", 101)
  with web_server.serving(local, ranges=False, sizes=sizes) as (address, _):
    for make, name in [
      (corpora.JsonLines, "lines/a.jsonl"),
      (corpora.TextFiles, "document.txt"),
      (lambda file: corpora.TextFiles(file, separator="<s>"), "parts.txt"),
    ]:
      there, here = make(f"{address}/{name}"), make(str(local / name))
      assert there.total_bytes() == here.total_bytes()
      assert list(there.undivided()) == list(here.undivided())
      assert texts(there, 9000) == texts(here, 9000)


def test_threads_share_the_copies_of_files(tmp_path):
  for number in range(8):
    (tmp_path / f"{number}.txt").write_text(f"{number} " * 9999)
  with web_server.serving(tmp_path, ranges=False) as (address, _):
    found = [remote_files.RemoteFile(f"{address}/{number}.txt") for number in range(8)] * 3
    assert (
      remote_files.at_once(remote_files.RemoteFile.read_text, found)
      == [f"{number} " * 9999 for number in range(8)] * 3
    )


def test_an_array_that_is_cut_off_is_told(tmp_path):
  np.save(tmp_path / "a.npy", np.arange(1000) % 250 + 1)
  content = (tmp_path / "a.npy").read_bytes()
  (tmp_path / "a.npy").write_bytes(content[:-800])
  with web_server.serving(tmp_path, ranges=True) as (address, _):
    corpus = TokenFiles(f"{address}/a.npy")
    with pytest.raises(files.CorpusError, match=r"a\.npy is not an array of ids \(it is cut off"):
      list(corpus.token_examples(Bytes(), "all"))


def test_names_with_odd_characters_are_read(monkeypatch):
  bucket_servers.use(monkeypatch)
  folder = f"s3://{bucket_servers.BUCKET}/odd"
  names = ["a b é.jsonl", "c%20d.jsonl", "e://f.jsonl", "g#h.jsonl", "i?j.jsonl", "k[1].jsonl"]
  for number, name in enumerate(names):
    line = json.dumps({"text": str(number)}).encode()
    remote_systems.system("s3").pipe_file(f"{folder}/{name}", line)
  found = list(corpora.JsonLines(f"{folder}/**/*.jsonl").undivided())
  assert found == [str(number).encode() for number in range(len(names))]


def test_changed_text_has_other_rows(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  bucket_servers.use(monkeypatch)
  address = f"s3://{bucket_servers.BUCKET}/changing/a.jsonl"
  system = remote_systems.system("s3")
  system.pipe_file(address, LINES)
  data = dataset.TextDataset(corpora.JsonLines(address), Bytes(), 64)
  prepare.prepare(data, lambda event: None)
  before = data.cache_path
  assert data.is_prepared()
  system.pipe_file(address, LINES.replace(b"text 7", b"text 8"))  # of the same size
  assert data.cache_path == before  # listed once, until rows are made
  remote_files.forget()
  assert data.cache_path != before
  system.rm_file(address)
  remote_files.forget()
  assert data.cache_path == before  # what is left of the text


FAULTS = {
  "s3://no-such-bucket/a.jsonl": "there is no bucket s3://no-such-bucket",
  "s3://no-such-bucket/*.jsonl": "there is no bucket s3://no-such-bucket",
  f"s3://{bucket_servers.BUCKET}/none.jsonl": "no file matches 's3://",
  f"gs://{bucket_servers.BUCKET}/none/*.jsonl": "no file matches 'gs://",
  f"s3://{bucket_servers.BUCKET}/changing": "is a folder. Give the files in it",
  "ftp://host/a.jsonl": "ftp:// cannot be read. Give a path, or one of gs://, s3://",
  "http://127.0.0.1:1/a.jsonl": "cannot be read: no answer",
}


@pytest.mark.parametrize("address", FAULTS)
def test_faults_are_told_in_a_line(address, monkeypatch):
  bucket_servers.use(monkeypatch)
  remote_systems.system("s3").pipe_file(f"s3://{bucket_servers.BUCKET}/changing/b", b"x")
  remote_files.forget()
  with pytest.raises(files.CorpusError) as error:
    list(corpora.JsonLines(address).undivided())
  assert FAULTS[address] in str(error.value)
  assert "\n" not in str(error.value)


def test_a_web_server_that_refuses_or_lacks_a_file_is_told(local):
  (local / "secret").mkdir(exist_ok=True)
  (local / "secret/a.jsonl").write_bytes(LINES)
  with web_server.serving(local, ranges=True) as (address, _):
    with pytest.raises(files.CorpusError, match=r"no permission \(403.*Log in"):
      list(corpora.JsonLines(f"{address}/secret/a.jsonl").undivided())
    with pytest.raises(files.NoFiles, match=r"no file matches .*none\.jsonl"):
      list(corpora.JsonLines(f"{address}/none.jsonl").undivided())
    with pytest.raises(files.CorpusError, match=r"a\.jsonl:1: no 'prose', only 'text'"):
      list(corpora.JsonLines(f"{address}/lines/a.jsonl", field="prose").undivided())
    (local / "bad.array_record").write_bytes(b"x")
    with pytest.raises(files.CorpusError, match=r"http.*bad\.array_record is not a readable Array"):
      list(Records(f"{address}/bad.array_record").undivided())


def test_what_is_refused_beside_a_signed_address_is_absent(local):
  """A store answers 403 for a file that the signature is not for, whether it exists or not."""
  (local / "signed").mkdir(exist_ok=True)
  (local / "signed/a.bin").write_bytes((local / "a.bin").read_bytes())
  train_tokenizer_json(
    corpora.TextFiles(str(local / "*.txt")), 300, local / "signed/tokenizer.json"
  )
  with web_server.serving(local, ranges=True) as (address, _):
    ids = TokenFiles(f"{address}/signed/a.bin?signature=x")
    there = tokenizer_json.TokenizerJson(f"{address}/signed/tokenizer.json?signature=x")
    assert ids.describe()
    assert ids_of(ids) == ids_of(TokenFiles(str(local / "a.bin")))
    assert there.encode("text 7") == tokenizer_json.TokenizerJson(
      str(local / "signed/tokenizer.json")
    ).encode("text 7")
    # The file itself is told, and one beside an address without a signature.
    with pytest.raises(files.CorpusError, match=r"no permission \(403"):
      ids_of(TokenFiles(f"{address}/signed/a.bin"))


def ids_of(corpus):
  examples = corpus.token_examples(Bytes(), "all")
  return np.concatenate([example.tokens for example in examples]).tolist()


def test_a_missing_library_names_its_extra(monkeypatch):
  find = remote_systems.importlib.util.find_spec
  monkeypatch.setattr(
    remote_systems.importlib.util,
    "find_spec",
    lambda name: None if name in ("aiohttp", "huggingface_hub") else find(name),
  )
  for address, extra in {"https://host/a.txt": "http", "hf://datasets/a/b.parquet": "hub"}.items():
    with pytest.raises(files.CorpusError, match=rf"needs the extra '{extra}': make install"):
      list(corpora.TextFiles(address).undivided())


def test_an_answer_that_fails_once_is_asked_for_again(local, monkeypatch):
  monkeypatch.setattr(remote_files, "_PAUSE_SECONDS", 0.0)
  read, failed = remote_files._range, []

  def fails_once(file, start, stop):
    if start not in failed:
      failed.append(start)
      raise ConnectionResetError(104, "reset")
    return read(file, start, stop)

  with web_server.serving(local, ranges=True) as (address, _):
    corpus = corpora.JsonLines(f"{address}/lines/a.jsonl")
    monkeypatch.setattr(remote_files, "_range", fails_once)
    assert len(list(corpus.undivided())) == len(TEXTS)
  assert failed[:2] == [1, 0]  # whether there are ranges, and the first one


def test_a_tokenizer_is_read_from_an_address(local):
  made = train_tokenizer_json(
    corpora.TextFiles(str(local / "*.txt")), 300, local / "tokenizer.json"
  )
  with web_server.serving(local, ranges=True) as (address, _):
    there = tokenizer_json.TokenizerJson(f"{address}/tokenizer.json")
    assert there.describe() == made.describe()
    assert there.encode("text 7") == made.encode("text 7")
    assert small_files.read(remote_files.of(f"{address}/none.json")) is None
