"""Crash points of real processes: at the nth time of a named request the process kills, stops or breaks itself.

Takes: points such as ``put manifest, answered:2=stop``. Gives: a store and a log that look the same as the real ones. Owns: the names of points,
those of tests/simulation. Never: changes what is asked or answered; runs in production code.

``put KIND`` is before the request, ``put KIND, half`` when half of its body is on the wire, ``put KIND, answered`` when it is answered and
nobody has heard of it; the same for ``swap``; ``get``, ``list``, ``head`` and ``delete`` are before the request, ``delete KIND, answered`` after it.
Of the log: ``poll KIND`` is after records came, ``send KIND`` before, ``send KIND, answered`` when it was handed over, ``commit KIND`` before.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from contracts.log import CommittedOffset, GroupReader, Log, LogProducer, LogReader, LogRecord, RecordPosition
from contracts.store import ObjectInfo, ObjectStore, PutOutcome, StoredObject
from tests.faults.role import wrap_log, wrap_store
from tests.simulation.faulty_log import kind_of as kind_of_topic
from tests.simulation.faulty_store import kind_of

ACTIONS = ("kill", "stop", "raise")


@dataclass
class Aim:
    """One point, how many times it still passes, and what happens then."""

    point: str
    left: int
    action: str


def parse_aim(text: str) -> Aim:
    """Read ``POINT[:N][=ACTION]``."""
    rest, _, action = text.partition("=")
    point, _, times = rest.partition(":")
    aim = Aim(point.strip(), int(times or "1"), action or "kill")
    if aim.action not in ACTIONS or aim.left < 1:
        raise ValueError(f"{text!r}: write POINT[:N][=kill|stop|raise]")
    return aim


class Points:
    """Counts requests, and acts at those that are aimed at."""

    def __init__(self, aims: Iterable[Aim]) -> None:
        self._aims = list(aims)
        self._lock = threading.Lock()
        self.half = threading.local()

    def reach(self, point: str) -> None:
        """Say that a request is at a point: the process may not survive it."""
        if self.is_due(point):
            self.act(point)

    def is_due(self, point: str) -> bool:
        with self._lock:
            due = False
            for aim in self._aims:
                if aim.point == point and aim.left > 0:
                    aim.left -= 1
                    due = due or aim.left == 0
            return due

    def act(self, point: str) -> None:
        action = next(aim.action for aim in self._aims if aim.point == point)
        print(f"crash point {point}: {action}", file=sys.stderr, flush=True)
        if action == "raise":
            raise RuntimeError(f"planted at {point}")
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        time.sleep(0.2)  # another thread may take the signal: until it stops us all, this one must not go on


class CrashStore:
    """`contracts.store.ObjectStore`, watched."""

    def __init__(self, inner: ObjectStore, points: Points) -> None:
        self._inner, self._points = inner, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        what = f"put {kind_of(key)}"
        self._points.reach(what)
        self._points.half.point = f"{what}, half" if self._points.is_due(f"{what}, half") else None
        outcome = self._inner.put_if_absent(key, data)
        self._points.reach(f"{what}, answered")
        return outcome

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        self._points.reach(f"swap {kind_of(key)}")
        outcome = self._inner.compare_and_swap(key, data, etag)
        self._points.reach(f"swap {kind_of(key)}, answered")
        return outcome

    def get(self, key: str) -> StoredObject | None:
        self._points.reach(f"get {kind_of(key)}")
        return self._inner.get(key)

    def head(self, key: str) -> ObjectInfo | None:
        self._points.reach(f"head {kind_of(key)}")
        return self._inner.head(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self._points.reach(f"list {kind_of(prefix)}")
        return self._inner.list(prefix, start_after)

    def delete(self, key: str) -> None:
        self._points.reach(f"delete {kind_of(key)}")
        self._inner.delete(key)
        self._points.reach(f"delete {kind_of(key)}, answered")


class CrashLog:
    """`contracts.log.Log`, watched."""

    def __init__(self, inner: Log, points: Points) -> None:
        self._inner, self._points = inner, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        self._points.reach(f"truncate {kind_of_topic(topic)}")
        self._inner.truncate(topic, next_offsets)

    def producer(self, *, linger_seconds: float = 0.0) -> CrashProducer:
        return CrashProducer(self._inner.producer(linger_seconds=linger_seconds), self._points)

    def reader(self, topic: str, positions: Mapping[int, int]) -> CrashReader:
        return CrashReader(self._inner.reader(topic, positions), self._points, topic)

    def group_reader(self, topic: str, group: str) -> CrashReader:
        return CrashReader(self._inner.group_reader(topic, group), self._points, topic)


class CrashProducer:
    """`contracts.log.LogProducer`, watched."""

    def __init__(self, inner: LogProducer, points: Points) -> None:
        self._inner, self._points = inner, points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, topic: str, **record: Any) -> Future[RecordPosition]:
        what = "notice" if record.get("key") == b"commit" and record.get("value") is None else kind_of_topic(topic)
        self._points.reach(f"send {what}")
        future = self._inner.send(topic, **record)
        if self._points.is_due(f"send {what}, answered"):
            future.exception(30.0)
            self._points.act(f"send {what}, answered")
        return future


class CrashReader:
    """`contracts.log.LogReader` or `GroupReader`, watched."""

    def __init__(self, inner: LogReader | GroupReader, points: Points, topic: str) -> None:
        self._inner, self._points, self._kind = inner, points, kind_of_topic(topic)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        records = self._inner.poll(timeout_seconds, max_records)
        if records:
            self._points.reach(f"poll {self._kind}")
        return records

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        self._points.reach(f"commit {self._kind}")
        self._inner.commit(partition, committed, is_awaited=is_awaited)  # type: ignore[union-attr]


def break_requests(points: Points) -> None:
    """Send only half of the body of a put whose ``half`` point is due, then act: the server sees a request that never ends."""
    send = http.client.HTTPConnection.send

    def halved(connection: http.client.HTTPConnection, data: Any) -> None:
        point = getattr(points.half, "point", None)
        if point is None or not isinstance(data, bytes) or data.startswith((b"PUT ", b"GET ")):
            send(connection, data)
            return
        points.half.point = None
        send(connection, data[: len(data) // 2])
        points.act(point)
        send(connection, data[len(data) // 2 :])

    http.client.HTTPConnection.send = halved  # type: ignore[method-assign]


def install(texts: Iterable[str]) -> None:
    """Watch this process's engines for these points."""
    points = Points([parse_aim(text) for text in texts])
    wrap_store(lambda store: CrashStore(store, points))  # type: ignore[arg-type, return-value]
    wrap_log(lambda log: CrashLog(log, points))  # type: ignore[arg-type, return-value]
    break_requests(points)
