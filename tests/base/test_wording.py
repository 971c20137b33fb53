"""Numbers in messages."""

from __future__ import annotations

import pytest

from base import wording


@pytest.mark.parametrize(
  ("share", "most", "shown"),
  [(0.05, 0.01, "5%"), (0.0104, 0.01, "1.04%"), (0.0100012, 0.01, "1.0001%"), (0.4, 0.3, "40%")],
)
def test_a_share_is_not_shown_as_its_limit(share, most, shown):
  assert wording.percent_above(share, most) == shown
