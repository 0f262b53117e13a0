"""The TCP proxy does to a connection what its lines say, and no more."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.tcp_proxy import HOST, TcpProxy

MESSAGE = bytes(range(256)) * 400  # more than one read of the proxy


class Echo:
    """Sends back what it gets, and closes when the client has."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
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
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def proxy(caplog: pytest.LogCaptureFixture) -> Iterator[TcpProxy]:
    echo = Echo()
    made = TcpProxy((HOST, echo.port))
    yield made
    made.close()
    echo.close()
    assert "asyncio" not in {record.name for record in caplog.records}, "it does not end quietly"


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=20)


def read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := connection.recv(size - len(found))):
        found += data
    return found


def exchange(connection: socket.socket, message: bytes = MESSAGE) -> tuple[bytes, float]:
    """What comes back, and after how many seconds."""
    began = time.monotonic()
    sending = threading.Thread(target=connection.sendall, args=(message,))
    sending.start()
    found = read(connection, len(message))
    sending.join()
    return found, time.monotonic() - began


def test_bytes_pass_unchanged_and_an_end_is_passed_on_in_both_directions(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        assert exchange(connection)[0] == MESSAGE
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert read(connection, 100) == b"last"
        assert connection.recv(1) == b""
    assert proxy.accepted == 1


def test_a_silent_line_delivers_nothing_until_it_is_healed_and_then_all_of_it(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        proxy.down.is_silent = True
        connection.sendall(b"held")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.heal()
        connection.settimeout(20)
        assert read(connection, 4) == b"held"


def test_only_the_direction_that_is_silent_is(proxy: TcpProxy) -> None:
    proxy.up.is_silent = True
    with connect(proxy) as connection:
        connection.sendall(b"never seen by the server")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_a_delay_is_one_delay_however_many_pieces_a_message_has(proxy: TcpProxy) -> None:
    proxy.down.delay_seconds = 0.2
    message = 40 * MESSAGE  # a delay for each piece would be ten seconds
    with connect(proxy) as connection:
        found, seconds = exchange(connection, message)
    assert found == message
    assert 0.2 <= seconds < 5


def test_a_narrow_line_takes_its_time_and_a_slicer_cuts_messages(proxy: TcpProxy) -> None:
    proxy.up.bytes_per_second = 50_000
    proxy.down.slice_bytes = 1_000
    with connect(proxy) as connection:
        found, seconds = exchange(connection, MESSAGE[:10_000])
        assert found == MESSAGE[:10_000] and seconds > 0.15
    proxy.heal()
    proxy.down.slice_bytes, proxy.down.slice_pause_seconds = 1_000, 600.0
    with connect(proxy) as connection:
        connection.sendall(MESSAGE[:3_000])
        assert len(connection.recv(65536)) == 1_000


def test_a_connection_is_cut_after_so_many_bytes(proxy: TcpProxy) -> None:
    proxy.down.cut_after_bytes = 1_234
    with connect(proxy) as connection:
        connection.sendall(MESSAGE[:5_000])
        assert read(connection, 5_000) == MESSAGE[:1_234]
    proxy.heal()
    with connect(proxy) as connection:
        assert exchange(connection)[0] == MESSAGE


def test_a_slow_close_comes_late(proxy: TcpProxy) -> None:
    proxy.down.close_delay_seconds = 0.2
    with connect(proxy) as connection:
        began = time.monotonic()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"" and time.monotonic() - began >= 0.2


def test_a_reset_is_no_end_and_new_connections_are_good_or_refused(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        assert exchange(connection)[0] == MESSAGE
        assert proxy.reset() == 2  # the client's end and the server's
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(proxy) as connection:
        assert exchange(connection)[0] == MESSAGE
        proxy.refuse()
        assert exchange(connection)[0] == MESSAGE  # it was open already
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
    proxy.listen()
    with connect(proxy) as connection:
        assert exchange(connection)[0] == MESSAGE


def test_an_upstream_that_is_gone_resets_the_client(proxy: TcpProxy) -> None:
    proxy.upstream = (HOST, 1)
    with pytest.raises(ConnectionResetError), connect(proxy) as connection:  # which of the two meets the reset is a race
        connection.recv(1)
