"""Types of options that are paths, which loading a configuration makes absolute."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from base.ranges import Immaterial


@dataclasses.dataclass(frozen=True)
class NamesFile:
  """Marks a string as a path, or as a pattern of paths."""


FilePath = Annotated[str, NamesFile()]
# A path that does not change the run's identity: the contents are the same anywhere.
KeptPath = Annotated[str, NamesFile(), Immaterial()]
