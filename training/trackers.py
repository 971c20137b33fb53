"""Trackers: metric writers for Weights & Biases, MLflow and trackio.

Each keeps one run of the tracker for a run directory, whatever often it is resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from base import buckets, small_files
from base.ranges import Immaterial
from training.metric_writers import OpenWriter

# In a run directory: the id of the run by tracker.
IDS_FILE = "trackers.json"
_WRITING = threading.Lock()
# Seconds in which Weights & Biases uploads the rest; less than `tracking` waits for it.
_FINISH_SECONDS = 15.0
# MLflow refuses longer values, and more than 100 in a call.
_MLFLOW_LONGEST = 500
_MLFLOW_MOST = 100


def run_id(run_dir: Path, tracker: str, make: Callable[[], str]) -> str:
  """Returns the id of a run directory's run in a tracker; makes and keeps it on first use."""
  if found := ids(run_dir).get(tracker):
    return found
  made = make()  # a server may take seconds, in which other trackers' threads write
  with _WRITING:
    kept = ids(run_dir) | {tracker: made}
    small_files.replace(run_dir / IDS_FILE, json.dumps(kept, indent=2) + "\n")
  return made


def ids(run_dir: Path) -> dict[str, str]:
  """Reads the ids of a run directory's runs by tracker; none where the file cannot be read."""
  with contextlib.suppress(OSError, ValueError, RecursionError):
    kept = json.loads(small_files.read(run_dir / IDS_FILE) or b"{}")
    if isinstance(kept, dict) and all(isinstance(value, str) for value in kept.values()):
      return kept
  return {}


def _new_id() -> str:
  return uuid.uuid4().hex[:12]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WandB:
  """Writes to Weights & Biases.

  Attributes:
    project: the project's name.
    entity: the user or team; None is the user's default.
    mode: 'online', or 'offline': only files, which `wandb sync` uploads. None takes WANDB_MODE; if
      that is not set, 'online' where a key is known and else 'offline'.
  """

  project: Annotated[str, Immaterial()] = "griffin"
  entity: Annotated[str | None, Immaterial()] = None
  mode: Annotated[Literal["online", "offline"] | None, Immaterial()] = None

  needs = ("wandb",)
  extra = "wandb"

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """See `MetricWriter`."""
    del step
    import wandb

    mode: Any = self.mode or os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    return _WandBRun(
      wandb.init(
        project=self.project,
        entity=self.entity,
        name=run_dir.name,
        id=run_id(run_dir, "wandb", _new_id),
        resume="allow",
        dir=str(buckets.beside(run_dir)),
        mode=mode,
        settings=wandb.Settings(
          console="off",
          silent=True,
          quiet=True,
          # It would wait until all is uploaded; after this time it keeps the rest on disk.
          finish_timeout=_FINISH_SECONDS,
        ),
      )
    )


def _has_key() -> bool:
  """Whether Weights & Biases knows a key, without asking for one on the terminal."""
  import wandb

  try:
    return bool(wandb.login(prompt=False))
  except Exception:  # in the words of its version
    return False


class _WandBRun:
  def __init__(self, run: Any):
    self._run = run
    # Not its own count of steps, which never goes back: a resumed run repeats some.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    known = {name: value for name, value in values.items() if value is not None}
    self._run.log({"step": step, **known})

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    self._run.config.update(dict(values), allow_val_change=True)

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    import wandb

    rows: list[Any] = [[prompt, text] for prompt, text in texts.items()]
    self._run.log({"step": step, "samples": wandb.Table(columns=["prompt", "text"], data=rows)})

  def picture(self, step: int, file: Path) -> None:
    import wandb

    self._run.log({"step": step, f"{file.stem}_picture": wandb.Image(str(file))})

  def close(self) -> None:
    self._run.finish()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLflow:
  """Writes to an MLflow server or store.

  Attributes:
    experiment: the experiment's name.
    uri: the tracking server or store, such as 'http://host:5000'. None takes MLFLOW_TRACKING_URI;
      if that is not set, the SQLite file mlflow.db beside the run directory, for all runs there.
  """

  experiment: Annotated[str, Immaterial()] = "griffin"
  uri: Annotated[str | None, Immaterial()] = None

  needs = ("mlflow", "sqlalchemy", "alembic")
  extra = "mlflow"

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """See `MetricWriter`."""
    del step
    # It would start a thread that reports the calls of its functions.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    beside = buckets.beside(run_dir.absolute().parent)
    given = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(given or f"sqlite:///{beside / 'mlflow.db'}")
    found = client.get_experiment_by_name(self.experiment)
    if found is not None:
      experiment = found.experiment_id
    else:
      # Without a place it would be the working directory's.
      place = None if given else (beside / "mlflow_artifacts").as_uri()
      experiment = client.create_experiment(self.experiment, artifact_location=place)
    own = run_id(
      run_dir,
      "mlflow",
      lambda: client.create_run(experiment, run_name=run_dir.name).info.run_id,
    )
    client.update_run(own, status="RUNNING")
    return _MLflowRun(client, own)


class _MLflowRun:
  def __init__(self, client: Any, run_id: str):
    self._client, self._id = client, run_id

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

    now = int(1000 * time.time())
    metrics = [Metric(n, value, now, step) for n, value in values.items() if value is not None]
    self._client.log_batch(self._id, metrics=metrics)

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    from mlflow.entities import Param, RunTag  # pyright: ignore[reportMissingImports]

    # Parameters never change: what a resumed run changed becomes a tag.
    before = self._client.get_run(self._id).data.params
    texts = {name: str(value)[:_MLFLOW_LONGEST] for name, value in values.items()}
    new = [Param(name, text) for name, text in texts.items() if name not in before]
    for start in range(0, len(new), _MLFLOW_MOST):
      self._client.log_batch(self._id, params=new[start : start + _MLFLOW_MOST])
    changed = [RunTag(n, text) for n, text in texts.items() if before.get(n, text) != text]
    for start in range(0, len(changed), _MLFLOW_MOST):
      self._client.log_batch(self._id, tags=changed[start : start + _MLFLOW_MOST])

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    self._client.log_dict(self._id, dict(texts), f"samples_{step}.json")

  def picture(self, step: int, file: Path) -> None:
    del step
    self._client.log_artifact(self._id, str(file))

  def close(self) -> None:
    self._client.set_terminated(self._id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trackio:
  """Writes to trackio, which keeps its data in TRACKIO_DIR or on a Hugging Face Space.

  Attributes:
    project: the project's name.
    space_id: a Space such as 'user/name'; None keeps the data on this machine.
  """

  project: Annotated[str, Immaterial()] = "griffin"
  space_id: Annotated[str | None, Immaterial()] = None

  needs = ("trackio",)
  extra = "trackio"
  # The constraints name a Pillow that it excludes.
  install = "pip install trackio, which takes an older Pillow"

  def open(self, run_dir: Path, step: int) -> OpenWriter:
    """See `MetricWriter`."""
    del step
    import trackio  # pyright: ignore[reportMissingImports]

    # A run is known by its name.
    name = run_id(run_dir, "trackio", lambda: f"{run_dir.name}-{_new_id()}")
    run = trackio.init(
      project=self.project, name=name, space_id=self.space_id, resume="allow", embed=False
    )
    return _TrackioRun(run)


class _TrackioRun:
  def __init__(self, run: Any):
    self._run = run

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    known = {name: value for name, value in values.items() if value is not None}
    self._run.log(known, step=step)

  def hyperparameters(self, values: Mapping[str, object]) -> None:
    self._run.config.update(values)

  def samples(self, step: int, texts: Mapping[str, str]) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    self._run.log({f"sample {p!r}": trackio.Markdown(p + t) for p, t in texts.items()}, step=step)

  def picture(self, step: int, file: Path) -> None:
    import trackio  # pyright: ignore[reportMissingImports]

    self._run.log({f"{file.stem}_picture": trackio.Image(str(file))}, step=step)

  def close(self) -> None:
    self._run.finish()
