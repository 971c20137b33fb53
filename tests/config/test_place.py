"""Places of statements in files of buckets."""

from __future__ import annotations

import pytest

from base import paths
from config.place import Place
from tests import bucket_servers


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_in_a_bucket_has_a_copy_of_the_gin_folder(scheme, monkeypatch):
  bucket_servers.use(monkeypatch)
  run = paths.absolute(f"{scheme}://{bucket_servers.BUCKET}/runs/place")
  place = Place(str(run / "config.gin"), 7)
  assert str(place) == f"{scheme}://{bucket_servers.BUCKET}/runs/place/config.gin:7"
  assert not place.is_general
  (run / "operative_config.gin").write_text("")
  assert place.is_general
