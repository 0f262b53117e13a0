"""The bare reference of W4: the same bytes through two topics, with nothing in between but a process that forwards them.

    producer (benchmark) -> first topic -> forwarder (process of its own) -> second topic -> consumer (benchmark)

On Kafka with plain kafka-python clients (``linger_ms=0``, ``fetch_max_wait_ms=100``, ``acks=all``); embedded with the bare SQLite log.

    python -m bench.two_hops FIRST SECOND

Takes: settings from the environment. Gives: `TwoHops.measure`. Owns: two topics, or a log file, of its own. Never: decodes, embeds or stores.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol
from uuid import uuid4

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from backends.open_log import open_log
from bench.places import Place
from bench.processes import BenchProcess, stop_when_stdin_closes
from contracts.errors import UnavailableError
from contracts.log import TopicSpec
from contracts.settings import Settings, load_settings

LINGER_MS = 0
FETCH_MAX_WAIT_MS = 100
POLL_SECONDS = 0.1
LIMIT_SECONDS = 30.0


class Pipe(Protocol):
    """Reads one topic from where it begins, and writes to another; one partition each."""

    def receive(self) -> list[tuple[bytes, bytes]]:
        """Keys and values of what came within 100 ms."""
        ...

    def send(self, key: bytes, value: bytes) -> None:
        """Append; returns at once."""
        ...


class KafkaPipe:
    """Plain kafka-python."""

    def __init__(self, brokers: str, source: str, target: str) -> None:
        addresses = brokers.split(",")
        self._target = target
        self._producer = KafkaProducer(bootstrap_servers=addresses, acks="all", linger_ms=LINGER_MS)
        self._consumer = KafkaConsumer(bootstrap_servers=addresses, fetch_max_wait_ms=FETCH_MAX_WAIT_MS, enable_auto_commit=False)
        partition = TopicPartition(source, 0)
        self._consumer.assign([partition])
        self._consumer.seek_to_beginning(partition)

    def receive(self) -> list[tuple[bytes, bytes]]:
        """See `Pipe.receive`."""
        found = self._consumer.poll(timeout_ms=int(POLL_SECONDS * 1000))
        return [(record.key, record.value) for records in found.values() for record in records]

    def send(self, key: bytes, value: bytes) -> None:
        """See `Pipe.send`."""
        self._producer.send(self._target, key=key, value=value, partition=0)

    def close(self) -> None:
        """Let go of connections."""
        self._consumer.close()
        self._producer.close(timeout=5)


class SqlitePipe:
    """The bare SQLite log."""

    def __init__(self, settings: Settings, source: str, target: str) -> None:
        self._log = open_log(settings)
        self._target = target
        self._producer = self._log.producer()
        self._reader = self._log.reader(source, {0: 0})

    def receive(self) -> list[tuple[bytes, bytes]]:
        """See `Pipe.receive`."""
        return [(record.key or b"", record.value or b"") for record in self._reader.poll(POLL_SECONDS)]

    def send(self, key: bytes, value: bytes) -> None:
        """See `Pipe.send`."""
        self._producer.send(self._target, partition=0, key=key, value=value)

    def close(self) -> None:
        """Let go of the file."""
        self._log.close()


def open_pipe(settings: Settings, source: str, target: str) -> KafkaPipe | SqlitePipe:
    """A pipe on the log of these settings."""
    if settings.log_url.startswith("kafka://"):
        return KafkaPipe(settings.log_url.removeprefix("kafka://"), source, target)
    return SqlitePipe(settings, source, target)


class TwoHops:
    """The benchmark's end of the two hops. `open_two_hops` makes one."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._arrived: SimpleQueue[tuple[bytes, float]] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="two-hops", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            records = self._pipe.receive()
            now = time.perf_counter()
            for key, _ in records:
                self._arrived.put((key, now))

    def measure(self, key: bytes, value: bytes, limit_seconds: float = LIMIT_SECONDS) -> float:
        """Seconds from just before the send until the record has come through both topics."""
        begin = time.perf_counter()
        self._pipe.send(key, value)
        while True:
            try:
                arrived, at = self._arrived.get(timeout=limit_seconds)
            except Empty:
                raise UnavailableError(f"a record did not come through two topics in {limit_seconds:g} s", hint="look at the log") from None
            if arrived == key:
                return at - begin

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join(5.0)


@contextmanager
def open_two_hops(place: Place) -> Iterator[TwoHops]:
    """Make two topics (embedded: in a log file of their own), start the forwarder, and take both away at the end."""
    folder = Path(place.folder)
    values = dict(place.values)
    if place.name == "embedded":
        values["log_url"] = f"sqlite:///{folder / 'two_hops.sqlite'}"
    settings = load_settings(**values)
    names = [f"headwater-bench-{uuid4().hex[:12]}-{end}" for end in ("first", "second")]
    log = open_log(settings)
    try:
        for name in names:
            log.create_topic(TopicSpec(name, 1, 3_600_000))
        command = [sys.executable, "-m", "bench.two_hops", *names]
        with BenchProcess("two_hops", command, values, folder, talks=True) as forwarder:
            forwarder.read_line()
            pipe = open_pipe(settings, names[1], names[0])
            hops = TwoHops(pipe)
            try:
                yield hops
            finally:
                hops.close()
                pipe.close()
            forwarder.finish()
    finally:
        for name in names:
            log.delete_topic(name)
        log.close()


def main(arguments: list[str]) -> None:
    """Forward until stdin is closed."""
    stop = stop_when_stdin_closes()
    pipe = open_pipe(load_settings(), arguments[0], arguments[1])
    print("ready", flush=True)
    while not stop.is_set():
        for key, value in pipe.receive():
            pipe.send(key, value)
    pipe.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
