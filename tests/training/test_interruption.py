"""A first Ctrl-C says what it waits for; a second one ends at once."""

from __future__ import annotations

import signal

import pytest

from training import interruption as interruption_lib
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preemption_is_silent(capfd, number):
  before = signal.getsignal(number)
  with Interruption() as interruption:
    signal.raise_signal(number)
    assert interruption.requested_at(1)
    assert interruption.by == signal.SIGTERM
  assert signal.getsignal(number) == before
  assert not capfd.readouterr().err


def test_sigusr1_is_passed_to_the_service_of_several_processes(monkeypatch):
  sent = []
  monkeypatch.setattr(interruption_lib.processes, "count", lambda: 2)
  monkeypatch.setattr(interruption_lib.os, "kill", lambda _, number: sent.append(number))
  of_service = signal.getsignal(signal.SIGTERM)
  with Interruption():
    assert signal.getsignal(signal.SIGTERM) == of_service
    signal.raise_signal(signal.SIGUSR1)
  assert sent == [signal.SIGTERM]
