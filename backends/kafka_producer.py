"""The Kafka log's producer: idempotent, acknowledged by all in-sync replicas.

Takes: sends. Gives: futures of positions, each of which ends. Owns: the look at a topic before its first record, and what the client does not do:
asking for a new producer id after a record has expired, and ending where it cannot flush.
Never: retries beyond what the idempotent protocol does by itself; the caller re-reads the log instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from kafka import KafkaProducer as Client
from kafka.errors import KafkaTimeoutError
from kafka.producer.transaction_manager import TransactionState

from backends import log_rules as rules
from backends.kafka_errors import kafka_error, mapped
from backends.kafka_settings import open_client, producer_options, record_limit_bytes
from contracts.errors import UnavailableError
from contracts.log import RecordPosition, TopicInfo
from contracts.settings import Settings

_CLOSE_SECONDS = 5.0


class KafkaProducer:
    """`contracts.log.LogProducer` on Kafka.

    Futures end on the client's I/O thread: a done-callback must not block.

    Parameters
    ----------
    describe : callable
        Looks a topic up; called before its first record and when an unknown partition is named.
    """

    def __init__(
        self,
        settings: Settings,
        linger_seconds: float,
        describe: Callable[[str], TopicInfo],
        on_close: Callable[[KafkaProducer], None],
    ) -> None:
        self._describe = describe
        self._on_close = on_close
        self._known: dict[str, TopicInfo] = {}
        self._closed = False
        self._client = open_client(Client, producer_options(settings, linger_seconds), "opening a Kafka producer")
        _ask_for_an_id_after_each_reset(self._client)

    def send(
        self,
        topic: str,
        *,
        partition: int,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> Future[RecordPosition]:
        """See `contracts.log.LogProducer.send`."""
        if self._closed:
            raise rules.closed("producer")
        listed = list(headers)
        known = self._known.get(topic)
        if known is None or partition >= known.partitions:
            known = self._known[topic] = self._describe(topic)
        limit = record_limit_bytes(int(known.config["max.message.bytes"]))
        rules.check_record(topic, partition, known.partitions, key, value, tuple(listed), limit)
        future: Future[RecordPosition] = Future()
        future.set_running_or_notify_cancel()  # a send cannot be taken back
        what = f"writing to {topic}/{partition}"
        with mapped(what):
            sent = self._client.send(topic, value=value, key=key, headers=listed, partition=partition, timestamp_ms=timestamp_ms)
        sent.add_callback(lambda metadata: self._acknowledge(future, metadata, what))
        sent.add_errback(lambda error: self._fail(future, error, topic, what))
        return future

    def _acknowledge(self, future: Future[RecordPosition], metadata: Any, what: str) -> None:
        if metadata.offset < 0:  # a duplicate of what is stored already: the broker does not say where
            future.set_exception(UnavailableError(f"{what}: stored, but the broker did not say where", hint="read the end of the partition"))
            return
        future.set_result(RecordPosition(metadata.topic, metadata.partition, metadata.offset))

    def _fail(self, future: Future[RecordPosition], error: BaseException, topic: str, what: str) -> None:
        self._known.pop(topic, None)  # it may have been deleted or made again
        if self._closed:
            future.set_exception(
                UnavailableError(f"{what}: the producer was closed before the broker answered", hint="read the end of the partition")
            )
            return
        future.set_exception(kafka_error(error, what))

    def flush(self, timeout_seconds: float) -> None:
        """See `contracts.log.LogProducer.flush`."""
        if not self._closed:
            with mapped("waiting for Kafka's acknowledgements"):
                self._client.flush(timeout=timeout_seconds)

    def close(self) -> None:
        """See `contracts.log.LogProducer.close`."""
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        with mapped("closing a Kafka producer"):
            try:
                self._client.close(timeout=_CLOSE_SECONDS)
            except KafkaTimeoutError:
                # Raised by the flush within, before anything was ended: its thread would go on sending, and the futures of its records would hang.
                self._client._sender.force_close()
                self._client._sender.join(_CLOSE_SECONDS)
                raise


def _ask_for_an_id_after_each_reset(client: Client) -> None:
    """Where a record expires that was on its way, kafka-python 3.0.12 forgets its producer id and never asks for another one.

    Its sender asks in the state UNINITIALIZED alone, which `reset_producer_id` does not set: it then sends nothing and expires nothing for ever.
    """
    manager: Any = client._transaction_manager
    forget = manager.reset_producer_id

    def reset_producer_id() -> None:
        with manager._lock:
            forget()
            manager._current_state = TransactionState.UNINITIALIZED

    manager.reset_producer_id = reset_producer_id
