"""A first Ctrl-C says what it waits for; a second one ends at once."""

from __future__ import annotations

import signal

import pytest

from training.interruption import WAITS, Interruption


def test_the_first_ctrl_c_says_what_it_waits_for_and_the_second_ends(capfd):
  with Interruption() as interruption:
    assert not interruption.requested_at(1)
    signal.raise_signal(signal.SIGINT)
    assert interruption.requested_at(1)
    assert capfd.readouterr().err == f"{WAITS}\n"
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    assert interruption.by == signal.SIGINT


def test_a_preemption_is_silent(capfd):
  with Interruption() as interruption:
    signal.raise_signal(signal.SIGTERM)
    assert interruption.requested_at(1)
  assert not capfd.readouterr().err
