"""Runs keep complete files of Hugging Face's folder, and none from outside of it."""

from __future__ import annotations

from experiment import kept_files


def test_links_that_lead_out_are_not_copied(tmp_path):
  (tmp_path / "secret").write_text("key")
  received = tmp_path / "received" / "snapshots" / "one"
  received.mkdir(parents=True)
  blobs = tmp_path / "received" / "blobs"
  blobs.mkdir()
  (blobs / "abc").write_text("tokens")
  (received / "tokenizer.json").symlink_to(tmp_path / "secret")
  (received / "tokenizer_config.json").symlink_to(blobs / "abc")
  (received / "generation_config.json").write_text("{}")
  (received / "tokenizer.d").mkdir()
  kept_files.keep(received, tmp_path / "kept")
  names = sorted(file.name for file in (tmp_path / "kept").iterdir())
  assert names == ["generation_config.json", "tokenizer_config.json"]
  assert (tmp_path / "kept" / "tokenizer_config.json").read_text() == "tokens"


def test_nothing_is_made_where_there_is_nothing(tmp_path):
  (tmp_path / "empty").mkdir()
  kept_files.keep(tmp_path / "empty", tmp_path / "kept")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_code_of_others_is_left_out_with_a_line(tmp_path, capsys):
  (tmp_path / "tokenizer_config.json").write_text("{}")
  for name in ("tokenizer_of_them.py", "tokenizer.so", "chat_template_hook"):
    (tmp_path / name).write_text("import os")
  kept_files.keep(tmp_path, tmp_path / "kept")
  assert [file.name for file in (tmp_path / "kept").iterdir()] == ["tokenizer_config.json"]
  assert "as code may be: tokenizer.so, tokenizer_of_them.py, chat_" in capsys.readouterr().err
