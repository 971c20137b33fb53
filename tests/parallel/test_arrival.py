"""How processes meet at the port of process 0, in threads that stand for them."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel import arrival


@pytest.fixture
def address():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return f"localhost:{probe.getsockname()[1]}"


@pytest.fixture
def service(monkeypatch):
  """No service of JAX follows here."""
  monkeypatch.setattr(arrival, "_wait_for_service", lambda *_: None)


def test_all_go_on_once_all_have_come(address, service):
  with ThreadPoolExecutor(4) as pool:
    early = [pool.submit(arrival.come_to, address, 4, index, 20) for index in (1, 2)]
    first = pool.submit(arrival.receive, address, 4, 20)
    # The first wait longer than any single answer may take.
    time.sleep(3)
    assert not first.done()
    assert not any(one.done() for one in early)
    pool.submit(arrival.come_to, address, 4, 3, 20).result()
    assert [one.result() for one in [first, *early]] == [None] * 3


def test_what_is_wrong_with_one_process_is_told_and_the_others_wait_for_it(address, service):
  with ThreadPoolExecutor(3) as pool:
    first = pool.submit(arrival.receive, address, 3, 20)
    one = pool.submit(arrival.come_to, address, 3, 1, 20)
    time.sleep(1)
    with pytest.raises(arrival.HostError, match="process 1 has joined already"):
      arrival.come_to(address, 3, 1, 20)
    with pytest.raises(arrival.HostError, match="started as one of 4, process 0 as one of 3"):
      arrival.come_to(address, 4, 2, 20)
    # One that comes, says nothing and goes.
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port))).close()
    arrival.come_to(address, 3, 2, 20)
    assert first.result() is one.result() is None


def test_a_process_that_was_killed_may_come_again(address, service):
  with ThreadPoolExecutor(2) as pool:
    first = pool.submit(arrival.receive, address, 3, 20)
    time.sleep(0.5)
    killed = arrival._connect(address)
    assert arrival._line(killed)
    killed.sendall(b"1 3\n")
    time.sleep(0.5)
    killed.close()
    time.sleep(1)
    one = pool.submit(arrival.come_to, address, 3, 1, 20)
    arrival.come_to(address, 3, 2, 20)
    assert first.result() is one.result() is None


def test_who_is_missing_is_named(address, monkeypatch, capsys):
  monkeypatch.setattr(arrival, "TOLD_AFTER_SECONDS", 0.5)
  with pytest.raises(arrival.HostError, match="processes 1, 2 of 3 did not join process 0 at"):
    arrival.receive(address, 3, 1)
  assert f"waiting for processes 1, 2 of 3 at {address} (" in capsys.readouterr().err


def test_another_program_at_the_port_is_told(monkeypatch):
  monkeypatch.setattr(arrival, "_STRANGER_SECONDS", 0.2)

  def answer():
    while True:
      try:
        guest, _ = server.accept()
      except OSError:
        return
      guest.sendall(b"HTTP/1.1 400\r\n")
      guest.close()

  with socket.create_server(("localhost", 0)) as server:
    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(arrival.HostError, match="another program listens there"):
      arrival.come_to(f"localhost:{server.getsockname()[1]}", 2, 1, 20)
    server.shutdown(socket.SHUT_RDWR)
