"""Tells disks of this machine from storage that hosts may share."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Several hosts never have one of these at once.
_OF_ONE_HOST = {
  "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "ramfs", "vfat",
}  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")


def is_of_one_host(folder: Path, mounts: str | None = None) -> bool:
  """Whether an existing folder lies on a file system that no other host can have mounted.

  Args:
    folder: the folder.
    mounts: the text of Linux's table of mounts; None reads it.

  Returns:
    False if it is not known.
  """
  if mounts is None:
    try:
      mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
      return False
  place = os.path.realpath(folder)
  found = ("", "")
  for line in mounts.splitlines():
    before, _, after = line.partition(" - ")
    fields, kinds = before.split(" "), after.split(" ")
    if len(fields) < 5:
      continue
    # Blanks are written as octal numbers.
    point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
    inside = place == point or place.startswith(point.rstrip("/") + "/")
    # Of two on the same point, the later hides the earlier.
    if inside and len(point) >= len(found[0]):
      found = point, kinds[0]
  return found[1] in _OF_ONE_HOST
