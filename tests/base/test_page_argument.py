"""Files of --page and --json: a page or JSON is replaced, and nothing else."""

from __future__ import annotations

import argparse
import os

import pytest

from base import paths


def test_a_page_or_a_new_file_is_taken(tmp_path):
  page = tmp_path / "page.html"
  assert paths.page_argument(str(page)) == page
  for text in ("", "<!doctype html>\n<html>", "  <HTML>"):
    page.write_text(text)
    assert paths.page_argument(str(page)) == page


@pytest.mark.parametrize(
  ("name", "told"),
  [
    ("runs.csv", "exists and is no page"),
    ("pipe", "is no regular file"),
    ("/dev/null", "is no regular file"),
    ("/dev/stdout", "is no regular file"),
    ("n" * 300, "File name too long"),
  ],
)
def test_what_a_page_would_destroy_is_kept(tmp_path, monkeypatch, name, told):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs.csv").write_text("parameters,tokens,loss\n")
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(argparse.ArgumentTypeError, match=told):
    paths.page_argument(name)


def test_json_replaces_json_or_nothing(tmp_path):
  file = tmp_path / "plans.json"
  assert paths.json_argument(str(file)) == file
  for text in ("", '[{"a": 1}]', ' {"a": 1}'):
    file.write_text(text)
    assert paths.json_argument(str(file)) == file
  assert str(paths.json_argument("/dev/stdout")).startswith("/")
  (tmp_path / "run.gin").write_text("STEPS = 3\n")
  with pytest.raises(argparse.ArgumentTypeError, match=r"run\.gin exists and is no JSON; name"):
    paths.json_argument(str(tmp_path / "run.gin"))
