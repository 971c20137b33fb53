"""Files of --page: a page is replaced, and nothing else."""

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
