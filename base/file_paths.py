"""Types of options that name files: whoever reads a configuration makes their values absolute."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from base.ranges import Immaterial


@dataclasses.dataclass(frozen=True)
class NamesFile:
  """Marks a string as a path, or as a pattern of paths."""


FilePath = Annotated[str, NamesFile()]
# Where something is kept: it is the same wherever it lies.
KeptPath = Annotated[str, NamesFile(), Immaterial()]
