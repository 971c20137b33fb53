"""The notebook runs from its first cell to its last, and its stored outputs are of such a run."""

from __future__ import annotations

import re

import nbclient
import nbformat
import pytest

from tests.documentation.pages import ROOT
from tests.documentation.session import Session

FILE = "docs/notebooks/griffin.ipynb"
# Enough to learn which bytes are frequent.
FEWER = ("STEPS = 200", "STEPS = 30")


def printed(cell) -> str:
  """The text that a cell wrote."""
  return "".join(output.get("text", "") for output in cell.outputs)


def pictures(notebook) -> int:
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def stored():
  return nbformat.read(ROOT / FILE, as_version=4)


def test_the_notebook_runs(stored, tmp_path, monkeypatch):
  """In a clean copy, by a kernel that starts in the notebook's folder."""
  copy = Session(tmp_path / "griffin").folder
  notebook = nbformat.read(copy / FILE, as_version=4)
  changed = [cell for cell in notebook.cells if cell.source.startswith(FEWER[0])]
  assert len(changed) == 1
  changed[0].source = changed[0].source.replace(*FEWER)
  monkeypatch.delenv("PYTHONPATH", raising=False)
  # No signature, history or connection file outside of the test's folder.
  for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
    monkeypatch.setenv(name, str(tmp_path / name))
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str((copy / FILE).parent)}}
  )
  client.execute()  # raises where a cell does
  assert pictures(notebook) == pictures(stored) == 2
  texts = [printed(cell) for cell in notebook.cells if cell.cell_type == "code"]
  # Held-out bits per byte of each model, well below those of a guess; a state of one size, or not.
  table = next(text for text in texts if "held-out bits per byte\n" in text)
  heldout = dict(re.findall(r"^(\w+) +[\d,]+ +(\d\.\d+)$", table, re.MULTILINE))
  assert heldout.keys() == {"griffin", "hawk", "transformer"}
  assert all(2 < float(bits) < 6 for bits in heldout.values())
  sizes = [row.split()[1:] for row in texts[-1].splitlines() if re.match(r" *1[0,]+ ", row)]
  assert [row[:4] for row in sizes] == [sizes[0][:4]] * 3
  assert len({row[4] for row in sizes}) == 3
  *_, last = (cell for cell in stored.cells if cell.cell_type == "code")
  assert texts[-1] == printed(last)
  assert any(text.startswith("The recurrence") for text in texts)


def test_the_stored_outputs_are_of_one_run_and_name_no_machine(stored):
  cells = [cell for cell in stored.cells if cell.cell_type == "code"]
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
  assert not re.search(r"/(home|root|tmp|work|Users)/", "".join(map(printed, cells)))
