"""Types of options that name files: whoever reads a configuration makes their values absolute."""

from __future__ import annotations

import dataclasses
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class NamesFile:
  """Marks a string as a path, or as a pattern of paths.

  Attributes:
    decides: whether what is computed depends on the path; not so where results are kept.
  """

  decides: bool = True


FilePath = Annotated[str, NamesFile()]
# Where rows are kept: they are the same wherever they lie.
CachePath = Annotated[str, NamesFile(decides=False)]
