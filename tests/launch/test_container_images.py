"""The Dockerfiles: what their instructions do, as far as it can be done without an engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.documentation.pages import ROOT
from tests.launch.dockerfiles import Instruction, context, ignored, instructions, value_of

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = {"cpu": "", "gpu": "gpu", "tpu": "tpu"}
each_file = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
# Needs root, or a network.
STAND_INS = ("apt-get", "useradd", "install")


def test_there_is_a_file_per_accelerator():
  assert {file.stem for file in FILES} == set(EXTRAS)


@each_file
def test_the_linter_finds_nothing(file):
  hadolint = Path(sys.executable).with_name("hadolint")
  done = subprocess.run(
    [hadolint, "--failure-threshold=style", file], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_differ_in_what_the_accelerator_needs():
  """So that running one of them says something of the others."""
  texts = []
  for file in FILES:
    kept = [i for i in instructions(file) if "NVIDIA" not in i.value]
    assert Instruction("ARG", f'EXTRAS="{EXTRAS[file.stem]}"') in kept
    texts.append([i for i in kept if not i.value.startswith("EXTRAS=")])
  assert texts[0] == texts[1] == texts[2]


@each_file
def test_the_image_is_small_and_of_a_user_without_rights(file):
  found = instructions(file)
  names = [name for name, _ in found]
  # The base image alone, from wherever the engine gets images.
  assert value_of(file, "FROM") == "python:${PYTHON_VERSION}-slim"
  version = next(value for _, value in found if value.startswith("PYTHON_VERSION="))
  constraints = f"constraints-py{version.partition('=')[2].replace('.', '')}.txt"
  assert (ROOT / "requirements" / constraints).is_file()
  user = names.index("USER")
  assert found[user].value == "${USER_ID}"
  assert Instruction("ARG", "USER_ID=1000") in found[:user]
  # The packages are installed by that user, and before the code is there.
  install = found.index(Instruction("RUN", 'make install EXTRAS="${EXTRAS}"'))
  assert user < install < found.index(Instruction("COPY", "--chown=griffin:griffin . ."))
  assert Instruction("ENV", "PIP_NO_CACHE_DIR=1") in found[:install]
  assert not re.search(r"https?://|\w+\.(io|dev|com)/", file.read_text("utf-8"))


@pytest.mark.parametrize("extra", ["gpu", "tpu"])
def test_the_constraints_pin_what_the_accelerator_needs(extra):
  wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  for version in ("311", "312"):
    pinned = (ROOT / f"requirements/constraints-py{version}.txt").read_text("utf-8")
    for requirement in wanted["project"]["optional-dependencies"][extra]:
      name = re.match(r"[\w.-]+", requirement)[0]
      assert re.search(rf"^{name}==", pinned, re.MULTILINE), (requirement, version)


def test_the_context_has_all_code_and_nothing_else():
  names = context()
  rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
  code = {name for name in names if name.endswith(".py") and name.split("/")[0] in rooms}
  tracked = subprocess.run(
    ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert code == {n for n in tracked if n.split("/")[0] in rooms and (ROOT / n).exists()}
  assert "gin/runs/griffin_quickstart.gin" in names
  assert not [name for name in names if name.startswith(("tests/", ".git/"))]
  # What git leaves out, an engine would still send.
  for line in (ROOT / ".gitignore").read_text("utf-8").split():
    example = line.strip("/").replace("*", "x")
    assert ignored(f"{example}/file"), line


def test_the_instructions_make_an_installation_that_trains(tmp_path):
  """Runs all instructions of the file for CPUs in a folder, with packages that are here already."""
  root, tools = tmp_path / "root", tmp_path / "tools"
  tools.mkdir()
  for name in STAND_INS:
    (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/done\n')
    (tools / name).chmod(0o755)
  # Where a fresh environment finds the packages: pip then installs nothing, but still holds all
  # requirements against the constraints.
  packages = next(path for path in sys.path if path.endswith("site-packages"))
  offline = {"PIP_NO_INDEX": "1", "PYTHONPATH": packages, "HOME": str(tmp_path)}
  # A venv of this Python, called python3 as in the base image.
  (tools / "python3").symlink_to(sys.executable)
  environment = {"PATH": f"{tools}:{os.defpath}", "PYTHON_VERSION": "", **offline}
  folder, files = root, context()
  root.mkdir()

  def run(command: str) -> str:
    done = subprocess.run(
      ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout

  for name, value in instructions(ROOT / "docker/cpu.Dockerfile"):
    if name in ("ARG", "ENV"):
      for setting in shlex.split(value):
        key, _, text = setting.partition("=")
        text = text.replace("$PATH", environment["PATH"]).replace("/app", str(root / "app"))
        environment[key] = text
    elif name == "WORKDIR":
      folder = root / value.lstrip("/")
      folder.mkdir(parents=True)
    elif name == "COPY":
      *sources, target = [word for word in value.split() if not word.startswith("--")]
      for source in sources:
        below = [f for f in files if source == "." or f == source or f.startswith(f"{source}/")]
        assert below, f"COPY {source}: the context has no such file"
        for file in below:
          # A folder's contents go into the target; a file goes there under its name.
          inside = file.removeprefix(f"{source}/") if (ROOT / source).is_dir() else Path(file).name
          copied = folder / target / inside
          copied.parent.mkdir(parents=True, exist_ok=True)
          shutil.copy2(ROOT / file, copied)
    elif name == "RUN":
      run(value.replace("/var/lib/apt", str(tmp_path / "apt")))
    elif name == "CMD":
      assert "python -m launch.train" in run(shlex.join(yaml.safe_load(value)))
  done = (tmp_path / "done").read_text()
  assert re.search(r"^apt-get install .*\bmake$", done, re.MULTILINE)
  # --non-unique: root passes its own number, which is taken.
  assert re.search(r"^useradd .*--non-unique --uid 1000 griffin$", done, re.MULTILINE)
  installed = (folder / ".venv/requirements.txt").read_text()
  assert "orbax-checkpoint" in installed
  assert "pytest" not in installed
  described = run("python -m launch.train gin/runs/griffin_quickstart.gin --describe")
  assert "parameters" in described
