"""No JSON file contains NaN or an infinity, which JSON does not have."""

import ast
import json
import math
from pathlib import Path

import pytest

from training import json_files

ROOT = Path(__file__).parents[2]


def test_what_is_not_finite_is_null():
  value = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"c": math.nan, "d": None, "e": True}}
  text = json_files.dumps(value)
  assert json.loads(text, parse_constant=pytest.fail) == {
    "a": [None, 1.5, [None, None]],
    "b": {"c": None, "d": None, "e": True},
  }
  assert math.isnan(json_files.number(None))
  assert json_files.number(0.1) == 0.1


def written(file: Path) -> list[str]:
  """Returns the calls in a file that write JSON and allow NaN."""
  found = []
  for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
      continue
    if node.func.attr not in ("write_text", "write", "dump"):
      continue
    calls = [node] if node.func.attr == "dump" else list(ast.walk(node))
    for call in calls:
      name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
      strict = name and any(word.arg == "allow_nan" for word in call.keywords)
      if name in ("json.dumps", "json.dump") and not strict:
        found.append(f"{file.relative_to(ROOT)}: {ast.unparse(node)[:80]}")
  return found


def test_files_of_results_are_written_by_one_function():
  """Files listed here write only strings and integers, as all of `data` does."""
  files = [
    file
    for folder in ("training", "inference", "evaluation", "launch", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
  ]
  names = {text.partition(":")[0] for file in files for text in written(file)}
  assert names <= {
    "benchmarks/convert_memory.py",  # a model's description
    "benchmarks/preparation.py",  # texts
    "conversion/conversion.py",  # a model's description
    "experiment/directory_owner.py",  # who holds a folder
    "launch/evaluate_harness.py",  # two paths
    "evaluation/harness_tasks.py",  # the name of a task, and a path
    "conversion/safetensors_files.py",  # names of files
  }
