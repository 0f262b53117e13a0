"""kafka-python's network client, which tells why a broker refuses to let us in, and receives in large pieces.

As it is, kafka-python tries a wrong password again and again until its time is over, and then says that nobody answered, for two
reasons. `KafkaConnectionManager._do_bootstrap` drops what a connection's `init_future` holds. And a broker that refuses answers and
hangs up: where both are read at once, the transport drops the answer. Here the answer comes first, and the refusal is noted and raised
where its own `maybe_raise_auth_failure` was meant to. And its transports ask the socket for 4 KiB at a time: 250 calls for a megabyte, each of which
hands the interpreter over, were the larger part of what fetching cost. Its clients take the class as the option ``kafka_client``.

Takes: options of kafka-python. Gives: its network client. Owns: which refusals are told at once, how much is received at once.
Never: notes a refusal for good: a password that works again later is tried again.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import Any

from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from backends.kafka_errors import is_settings

RECEIVE_BYTES = 256 * 1024
"""Asked of a socket at once; a TLS connection gives 16 KiB at most."""


class _Manager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """Connections; those to the brokers of our settings say why they failed."""

    def __init__(self, net: Any, **options: Any) -> None:
        self._refusals: dict[Any, BaseException] = {}  # of its own: `_auth_failures` is emptied after every attempt, successful or not
        super().__init__(net, **options)

    def get_connection(self, node_id: Any, *rest: Any, **options: Any) -> Any:
        connection = super().get_connection(node_id, *rest, **options)
        if self.cluster.is_bootstrap(node_id):
            connection.init_future.add_errback(partial(self._note, node_id))
        return connection

    async def _build_transport(self, *arguments: Any, **options: Any) -> Any:
        transport = await super()._build_transport(*arguments, **options)
        transport._sock_recv = partial(_receive, transport)
        return transport

    def _note(self, node_id: Any, error: BaseException) -> None:
        if is_settings(error):
            self._refusals[node_id] = error

    def maybe_raise_auth_failure(self, node_id: Any) -> None:
        error = self._refusals.pop(node_id, None)
        if error is not None:
            raise error


def _receive(transport: Any) -> tuple[memoryview, BaseException | None]:
    """What has arrived at a transport, else why nothing will any more: in place of its own `_sock_recv`, whose bytes are copied once more."""
    pieces: list[bytes] = []
    error: BaseException | None = None
    while True:
        try:
            piece = transport._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            break
        except Exception as found:  # noqa: BLE001 - as the transport does: whatever it is, the connection is of no use
            error = KafkaConnectionError(found)
            break
        if not piece:
            error = KafkaConnectionError("socket disconnected")
            break
        pieces.append(piece)
    data = memoryview(b"".join(pieces))
    return data, None if data else error  # what has arrived comes first, and the end is read again


class NetworkClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    """What kafka-python's clients speak through; `close` ends its thread too."""

    def __init__(self, **options: Any) -> None:
        net = NetworkSelector(**options)
        super().__init__(net, _Manager(net, **options))
