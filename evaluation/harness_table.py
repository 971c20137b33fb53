"""lm-eval's table of results, with headers for any version of pytablewriter."""

from __future__ import annotations

from typing import Any
from unittest import mock

from lm_eval.utils import make_table
from pytablewriter import MarkdownTableWriter


def table(results: dict[str, Any], column: str = "results") -> str:
  """Formats the 'results' or 'groups' of an evaluation as Markdown."""
  for kind in MarkdownTableWriter.__mro__:
    # lm-eval sets `headers`, which older versions call `header_list`: they would name the columns
    # A, B, C.
    if "header_list" in vars(kind) and not hasattr(kind, "headers"):
      kind.headers = vars(kind)["header_list"]
  # With more cores it forks for each column, and a fork of a process with threads can hang.
  with mock.patch("multiprocessing.cpu_count", return_value=1):
    return make_table(results, column)
