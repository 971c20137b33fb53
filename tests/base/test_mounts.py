"""Which file systems only one host can have."""

from pathlib import Path

import pytest

from base import mounts

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/nfs rw - nfs4 server:/export rw
31 22 0:41 / /mnt/with\040blank rw - fuse.gcsfuse bucket rw
32 30 8:2 / /mnt/nfs/scratch rw - xfs /dev/sdb1 rw
33 22 0:42 / /mnt/twice rw - ext4 /dev/sdc1 rw
34 33 0:43 / /mnt/twice rw - lustre fs rw
"""


@pytest.mark.parametrize(
  ("folder", "of_one_host"),
  [
    ("/data/runs", True),
    ("/mnt/nfs", False),
    ("/mnt/nfs/runs", False),
    ("/mnt/nfsx", True),
    ("/mnt/nfs/scratch/runs", True),
    ("/mnt/with blank/runs", False),
    ("/mnt/twice/runs", False),
  ],
)
def test_kind_of_the_innermost_mount_decides(folder, of_one_host):
  assert mounts.is_of_one_host(Path(folder), TABLE) == of_one_host


def test_table_that_says_nothing_leaves_it_open(monkeypatch, tmp_path):
  assert not mounts.is_of_one_host(tmp_path, "")
  monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "missing")
  assert not mounts.is_of_one_host(tmp_path)
