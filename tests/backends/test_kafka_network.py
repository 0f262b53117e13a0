"""What a connection to a broker receives: everything that has come, in large pieces, and only then that it has ended."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace

from kafka.errors import KafkaConnectionError

from backends.kafka_network import RECEIVE_BYTES, _receive


def test_all_that_has_come_is_received_before_the_end_is_told() -> None:
    ours, theirs = socket.socketpair()
    sent = bytes(range(256)) * (3 * RECEIVE_BYTES // 256) + b"end"
    with ours, theirs:
        ours.setblocking(False)
        transport = SimpleNamespace(_sock=ours)
        assert _receive(transport) == (b"", None)  # nothing has come, and nothing is wrong

        def answer_and_hang_up() -> None:
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=answer_and_hang_up)
        sender.start()
        received, error = b"", None
        while error is None:
            data, error = _receive(transport)
            assert not (data and error)
            received += data
        sender.join()
    assert received == sent
    assert isinstance(error, KafkaConnectionError)


def test_a_broken_connection_is_told_as_kafka_pythons_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    data, error = _receive(SimpleNamespace(_sock=ours))
    assert not data and isinstance(error, KafkaConnectionError)
