"""Parts that a role is started with, by ``--with`` of `tests.faults.role`: short sessions, forced ownership, redelivery, a stalled reader ...

Takes: a JSON value. Gives: a process whose parts behave so. Owns: nothing. Never: changes what a healthy part of it does.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from contracts.errors import UnavailableError
from contracts.log import Assignment, CommittedOffset, GroupReader, Log, LogProducer, LogReader, LogRecord, RecordPosition
from contracts.store import ObjectStore, PutOutcome
from tests.faults.role import wrap_log, wrap_store
from tests.simulation.faulty_store import kind_of

SESSION_MS, HEARTBEAT_MS = 3000, 500


def short_sessions() -> None:
    """Members of groups are given up after three seconds of silence, instead of fifteen."""
    import backends.kafka_consumer as consumer

    before = consumer.group_options

    def shorter(settings: Any, group: str) -> dict[str, Any]:
        return before(settings, group) | {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": HEARTBEAT_MS}

    consumer.group_options = shorter


# ---- ownership ---------------------------------------------------------------------------------------------------------


class _EveryPartition:
    """A `GroupReader` that believes that all partitions are its own, whatever others think."""

    def __init__(self, inner: LogReader, partitions: Iterable[int]) -> None:
        self._inner, self._waiting = inner, set(partitions)
        self._change: Assignment | None = Assignment(frozenset(self._waiting), frozenset())
        inner.pause(self._waiting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def take_assignment(self) -> Assignment | None:
        change, self._change = self._change, None
        return change

    def seek(self, partition: int, offset: int) -> None:
        self._inner.seek(partition, offset)
        if partition in self._waiting:
            self._waiting.discard(partition)
            self._inner.resume([partition])

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        """No group hears of it."""

    def committed(self, partition: int) -> CommittedOffset | None:
        return None


class _Ungrouped:
    """A log in which nobody shares."""

    def __init__(self, inner: Log) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def group_reader(self, topic: str, group: str) -> _EveryPartition:
        bounds = self._inner.bounds(topic)
        return _EveryPartition(self._inner.reader(topic, {p: held.start_offset for p, held in bounds.items()}), bounds)


def own_all() -> None:
    """This process works on every partition, with no group to tell it otherwise (split brain)."""
    wrap_log(lambda log: _Ungrouped(log))  # type: ignore[arg-type, return-value]


# ---- delivery ----------------------------------------------------------------------------------------------------------


class _Redelivering:
    """A reader that now and then returns records again that it has returned before."""

    def __init__(self, inner: GroupReader, share: float) -> None:
        self._inner, self._share, self._rng = inner, share, random.Random(7)
        self._seen: dict[int, deque[LogRecord]] = defaultdict(lambda: deque(maxlen=40))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        records = self._inner.poll(timeout_seconds, max_records)
        old: list[LogRecord] = []
        if self._rng.random() < self._share:
            old = [record for seen in self._seen.values() for record in seen]
        for record in records:
            self._seen[record.partition].append(record)
        return old + records


class _RedeliveringLog:
    def __init__(self, inner: Log, share: float) -> None:
        self._inner, self._share = inner, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def group_reader(self, topic: str, group: str) -> _Redelivering:
        return _Redelivering(self._inner.group_reader(topic, group), self._share)


def redeliver(share: float) -> None:
    """A share of polls brings the last records of each partition once more."""
    wrap_log(lambda log: _RedeliveringLog(log, share))  # type: ignore[arg-type, return-value]


def stall(told: dict[str, float]) -> None:
    """The first consumer of a group stops returning one partition after so many polls with records; its position stands still (kafka-python #3131).

    The watchdog looks every `watchdog_seconds` instead of every thirty.
    """
    import backends.kafka_consumer as consumer
    from backends.kafka_batches import BoundedConsumer

    partition, after, watchdog_seconds = int(told["partition"]), int(told["polls"]), told["watchdog_seconds"]
    before = BoundedConsumer.poll
    polls: dict[int, int] = defaultdict(int)
    first: list[int] = []

    def poll(self: Any, timeout_ms: int = 0, max_records: int | None = None, update_offsets: bool = True) -> Any:
        is_member = self.config["group_id"] is not None
        if is_member and not first:
            first.append(id(self))
        if is_member and first == [id(self)] and polls[id(self)] >= after:
            self.pause(*[at for at in self.assignment() if at.partition == partition])
        found = before(self, timeout_ms, max_records, update_offsets)
        polls[id(self)] += bool(found)
        return found

    BoundedConsumer.poll = poll  # type: ignore[method-assign]
    group_init = consumer.KafkaGroupReader.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        group_init(self, *arguments, **(options | {"watchdog_seconds": watchdog_seconds}))

    consumer.KafkaGroupReader.__init__ = init  # type: ignore[method-assign]


# ---- dead letters, uploads ---------------------------------------------------------------------------------------------


class _Refusing:
    """A producer whose dead letters are not acknowledged while a file exists."""

    def __init__(self, inner: LogProducer, while_exists: Path) -> None:
        self._inner, self._while_exists = inner, while_exists

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, topic: str, **record: Any) -> Future[RecordPosition]:
        if topic.endswith(".dead-letter") and self._while_exists.exists():
            future: Future[RecordPosition] = Future()
            future.set_exception(UnavailableError("the dead-letter topic takes nothing"))
            return future
        return self._inner.send(topic, **record)


class _RefusingLog:
    def __init__(self, inner: Log, while_exists: Path) -> None:
        self._inner, self._while_exists = inner, while_exists

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def producer(self, *, linger_seconds: float = 0.0) -> _Refusing:
        return _Refusing(self._inner.producer(linger_seconds=linger_seconds), self._while_exists)


def refuse_dead_letters(while_exists: str) -> None:
    """No dead letter is acknowledged while this file exists."""
    wrap_log(lambda log: _RefusingLog(log, Path(while_exists)))  # type: ignore[arg-type, return-value]


class _SlowStore:
    def __init__(self, inner: ObjectStore, kind: str, seconds: float) -> None:
        self._inner, self._kind, self._seconds = inner, kind, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        outcome = self._inner.put_if_absent(key, data)
        if kind_of(key) == self._kind:
            time.sleep(self._seconds)
        return outcome


def slow_put(told: dict[str, Any]) -> None:
    """A put of this kind is stored, and answered so many seconds later."""
    wrap_store(lambda store: _SlowStore(store, told["kind"], told["seconds"]))  # type: ignore[arg-type, return-value]


# ---- encoders ----------------------------------------------------------------------------------------------------------


def colour_encoder() -> None:
    """The tests' small encoder in place of any other: pictures without a model."""
    import indexer.embed_role as embed_role
    from tests.encoders import ColourEncoder

    encoder = ColourEncoder()
    embed_role.shared_encoder = lambda name, settings: encoder


def dying_decoder() -> None:
    """Decoding processes that really abort, hang or fill their memory at certain pictures (tests/embedding/crashing_child.py)."""
    import indexer.embed_role as embed_role
    from embedding.decode_pool import DecodePool

    colour_encoder()
    embed_role.DecodePool = partial(DecodePool, child_module="tests.embedding.crashing_child")  # type: ignore[assignment, misc]


def raise_in_thread(after_seconds: float) -> None:
    """One of the process's threads that sends to the log's producer dies after so many seconds, as a bug in a library would have it."""

    def arm() -> None:
        time.sleep(after_seconds)
        from indexer.publish import Publisher

        def broken(self: Any, decoded: Any) -> None:
            raise MemoryError("planted in the publishing thread")

        Publisher.publish = broken  # type: ignore[method-assign]

    threading.Thread(target=arm, daemon=True).start()
