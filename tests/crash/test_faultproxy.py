"""The fault proxy does what it says, and nothing else: each kind against an echo server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from crash.faultproxy import KINDS, Fault, FaultProxy
from support.servers import wait_until

TEXT = bytes(range(256)) * 200


class Echo:
    """A server that gives back what it gets; remembers how many ends it saw."""

    def __init__(self, mark: bytes = b"") -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.mark = mark
        self.ends: list[float] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while got := connection.recv(65536):
                    connection.sendall(self.mark + got)
            except OSError:
                pass
            self.ends.append(time.monotonic())


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    made = FaultProxy(echo.port, seed=1)
    yield made
    made.close()


def connected(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def asked(connection: socket.socket, text: bytes = TEXT) -> bytes:
    """What comes back for `text`, up to its length, an end or a reset."""
    got = b""
    try:
        connection.sendall(text)
        while len(got) < len(text):
            part = connection.recv(65536)
            if not part:
                break
            got += part
    except (ConnectionError, TimeoutError):
        pass
    return got


def test_without_a_fault_it_is_not_there(proxy: FaultProxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection) == TEXT
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert proxy.moved == 2 * len(TEXT)


@pytest.mark.parametrize("fault", [Fault("latency", 0.05), Fault("bandwidth", bytes_s=2_000_000), Fault("slicer")])
def test_slow_faults_lose_nothing_and_keep_the_order(proxy: FaultProxy, fault: Fault) -> None:
    proxy.set(fault)
    with connected(proxy) as connection:
        assert asked(connection) == TEXT


def test_latency_and_bandwidth_take_their_time(proxy: FaultProxy) -> None:
    with connected(proxy) as connection:
        for fault, least_s in ((Fault("latency", 0.2), 0.2), (Fault("bandwidth", bytes_s=20_000), 0.4)):
            proxy.set(fault)
            began_s = time.monotonic()
            assert asked(connection, TEXT[:5000]) == TEXT[:5000]
            assert time.monotonic() - began_s >= least_s


def test_limit_data_breaks_in_the_middle(proxy: FaultProxy) -> None:
    with connected(proxy) as connection:
        proxy.set(Fault("limit_data", size=1000))
        got = asked(connection)
        assert len(got) < 1000
        assert TEXT.startswith(got)
    assert 0 < proxy.moved <= 2000
    proxy.heal()
    with connected(proxy) as connection:
        assert asked(connection) == TEXT


def test_reset_peer_resets_old_and_new_connections(proxy: FaultProxy) -> None:
    with connected(proxy) as old:
        assert asked(old, b"x") == b"x"
        proxy.set(Fault("reset_peer"))
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        with connected(proxy) as new:
            new.send(b"x")
            with pytest.raises(ConnectionError):
                new.recv(1)
    proxy.heal()
    with connected(proxy) as connection:
        assert asked(connection) == TEXT


def test_a_black_hole_keeps_connections_and_swallows_what_is_sent(proxy: FaultProxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"x") == b"x"
        proxy.set(Fault("black_hole"))
        connection.settimeout(0.3)
        connection.sendall(TEXT)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.heal()
        connection.settimeout(5)
        with pytest.raises(ConnectionResetError):  # what it sent is lost: the stream can't go on
            connection.recv(1)
    with connected(proxy) as connection:
        assert asked(connection) == TEXT


def test_slow_close_delays_the_end_only(proxy: FaultProxy, echo: Echo) -> None:
    proxy.set(Fault("slow_close", 0.4))
    with connected(proxy) as connection:
        assert asked(connection) == TEXT
        closed_s = time.monotonic()
    wait_until(lambda: len(echo.ends) == 1, what="the end")
    assert echo.ends[0] - closed_s >= 0.35


def test_down_refuses_and_comes_back_on_the_same_port(proxy: FaultProxy) -> None:
    with connected(proxy) as old:
        assert asked(old, b"x") == b"x"  # it is through, not on its way
        proxy.set(Fault("down"))
        with pytest.raises(ConnectionResetError):
            old.recv(1)

    def refused() -> bool:
        try:
            connected(proxy).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, what="nobody listens")
    proxy.heal()
    with connected(proxy) as connection:
        assert asked(connection) == TEXT


def test_it_can_be_pointed_elsewhere(proxy: FaultProxy) -> None:
    other = Echo(mark=b"!")
    with connected(proxy) as old:
        assert asked(old, b"x") == b"x"
        proxy.point_at(other.port)
        with connected(proxy) as new:
            new.sendall(b"x")
            assert new.recv(2) == b"!x"
        assert asked(old, b"y") == b"y"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
    other.listener.close()


def test_a_server_that_is_away_looks_away(proxy: FaultProxy) -> None:
    proxy.point_at(1)
    with connected(proxy) as connection:
        assert asked(connection) == b""


def test_kinds_are_closed() -> None:
    assert len(KINDS) == 8
    with pytest.raises(ValueError, match="no such fault"):
        Fault("earthquake")
