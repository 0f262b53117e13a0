"""The log of the simulation: a memory log. Answers are lost or late, acknowledged records may be gone, groups forget who is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from backends.memory_log import MemoryLog
from contracts.errors import NotFoundError, UnavailableError
from contracts.log import Assignment, CommittedOffset, LogRecord, OffsetBounds, RecordPosition, TopicInfo, TopicSpec
from tests.simulation.baton import NEVER, Process
from tests.simulation.cooperative import PendingFuture
from tests.simulation.faults import Faults

SESSION_SECONDS = 1.0
"""A member that is silent for so long is put out of its group."""
IDLE_POLLS = 4
"""A poll that brings nothing takes so many times as long as it was allowed to: nothing may rely on it, and seeds take fewer steps."""


def kind_of(topic: str) -> str:
    """What a topic holds, for the names of steps: media, vectors or dead-letter."""
    return topic.rsplit(".", 1)[-1]


class FaultyLog:
    """`contracts.log.Log`; `on_append` is told of every record that landed."""

    def __init__(self, faults: Faults) -> None:
        self.memory = MemoryLog()
        self.faults = faults
        self.cluster = self.memory._cluster
        self.on_append: Callable[[LogRecord], None] = lambda record: None
        self._leader_epoch = 0

    # ---- topics ------------------------------------------------------------------------------------------------------
    def cluster_id(self) -> str:
        return self.memory.cluster_id()

    def create_topic(self, spec: TopicSpec) -> TopicInfo:
        return self.memory.create_topic(spec)

    def describe_topic(self, name: str) -> TopicInfo | None:
        self._ask("describe", name)
        return self.memory.describe_topic(name)

    def list_topics(self) -> Sequence[str]:
        return self.memory.list_topics()

    def delete_topic(self, name: str) -> None:
        self.memory.delete_topic(name)

    def bounds(self, topic: str) -> dict[int, OffsetBounds]:
        self._ask("bounds", topic)
        return {p: replace(held, leader_epoch=self._leader_epoch) for p, held in self.memory.bounds(topic).items()}

    def truncate(self, topic: str, next_offsets: Mapping[int, int]) -> None:
        self._ask("truncate", topic)
        self.memory.truncate(topic, next_offsets)

    def read_at(self, topic: str, partition: int, offset: int) -> LogRecord | None:
        self._ask("read", topic)
        return self.memory.read_at(topic, partition, offset)

    def _ask(self, what: str, topic: str) -> None:
        self.faults.step(f"{what} {kind_of(topic)}")
        if self.faults.draw() < 0.01:
            raise UnavailableError(f"the brokers do not answer: {what} {topic}")

    # ---- records -----------------------------------------------------------------------------------------------------
    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> RecordPosition | None:
        """Let a record land; None where its topic is gone by now."""
        timestamp_ms = int(self.faults.scheduler.now * 1000)
        try:
            where = self.cluster.append(LogRecord(topic, partition, -1, timestamp_ms, key, value, tuple(headers)))
        except NotFoundError:
            return None
        self.on_append(LogRecord(topic, partition, where.offset, timestamp_ms, key, value, tuple(headers)))
        return where

    def lose(self, topic: str, partition: int) -> RecordPosition | None:
        """Acknowledge a record whose leader is lost before anyone else has it: the next leader gives its offset to another."""
        self._leader_epoch += 1
        held = self.cluster.topics.get(topic)
        return None if held is None else RecordPosition(topic, partition, held.partitions[partition].next_offset)

    def producer(self, *, linger_seconds: float = 0.0) -> FaultyProducer:
        return FaultyProducer(self)

    def reader(self, topic: str, positions: Mapping[int, int]) -> FaultyReader:
        self._ask("open", topic)
        return FaultyReader(self, self.memory.reader(topic, positions), topic)

    def group_reader(self, topic: str, group: str) -> FaultyReader:
        self._ask("join", topic)
        task = self.faults.scheduler.current
        assert task is not None
        inner = self.memory.group_reader(topic, group)
        task.process.members.append(((group, topic), inner._membership.member))  # type: ignore[attr-defined]
        return FaultyReader(self, inner, topic)

    def silence(self, process: Process, until_seconds: float) -> None:
        """A process stops answering its groups: it is put out of them, and comes back when it answers again."""
        for place, member in process.members if until_seconds > SESSION_SECONDS else ():
            self.faults.scheduler.at(SESSION_SECONDS, lambda p=place, m=member: self._leave(p, m))  # type: ignore[misc]
            if until_seconds < NEVER:
                self.faults.scheduler.at(until_seconds, lambda p=place, m=member: process.is_dead or self._join(p, m))  # type: ignore[misc]

    def _leave(self, place: tuple[str, str], member: str) -> None:
        self.cluster.members.get(place, set()).discard(member)

    def _join(self, place: tuple[str, str], member: str) -> None:
        self.cluster.members.setdefault(place, set()).add(member)

    def close(self) -> None:
        self.memory.close()


class FaultyProducer:
    """`contracts.log.LogProducer`: each record lands or does not, and its sender learns of it later, wrongly, or never."""

    def __init__(self, log: FaultyLog) -> None:
        self._log, self._faults = log, log.faults
        self._open: list[Future[RecordPosition]] = []

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
        kind = "notice" if key == b"commit" and value is None else kind_of(topic)
        self._faults.step(f"send {kind}")
        sent = tuple(headers)

        def land() -> RecordPosition | None:
            return self._log.append(topic, partition, key, value, sent)

        future: Future[RecordPosition] = PendingFuture(self._faults.scheduler)
        self._open.append(future)
        draw, lost = self._faults.draw(), self._faults.lost_share
        where: RecordPosition | None = None
        if draw > 0.2 or (draw < lost and kind == "dead-letter"):
            where = land()
        elif draw < lost:
            where = self._log.lose(topic, partition)
            self._faults.stats["acknowledged and lost"] += 1
        elif draw > 0.12:
            land()
        elif draw > 0.06:
            self._faults.later("late record", land, 150)
        self._settle(future, where)
        self._faults.step(f"send {kind}, answered")
        return future

    def _settle(self, future: Future[RecordPosition], where: RecordPosition | None) -> None:
        def settle() -> None:
            self._open.remove(future)
            if where is not None:
                future.set_result(where)
            else:
                future.set_exception(UnavailableError("no acknowledgement: stored, not stored, or stored later"))

        self._faults.scheduler.at(self._faults.rng.randint(0, 8) * 0.02, settle)

    def flush(self, timeout_seconds: float) -> None:
        if self._open:
            self._faults.scheduler.sleep(timeout_seconds, lambda: not self._open)

    def close(self) -> None:
        self._faults.step("close producer")


class FaultyReader:
    """`contracts.log.GroupReader` and `LogReader`: it is slow at times, and fails at times."""

    def __init__(self, log: FaultyLog, inner: object, topic: str) -> None:
        self._log, self._faults, self._inner = log, log.faults, inner
        self._topic = topic
        self._seen_changes = -1

    def poll(self, timeout_seconds: float, max_records: int = 500) -> list[LogRecord]:
        self._log._ask("poll", self._topic)
        most = min(max_records, 1 + int(self._faults.rng.random() * 4)) if self._faults.is_on else max_records
        records: list[LogRecord] = self._inner.poll(0.0, most)  # type: ignore[attr-defined]
        if not records and timeout_seconds:
            self._faults.scheduler.sleep(IDLE_POLLS * timeout_seconds, self._has_more)
            records = self._inner.poll(0.0, most)  # type: ignore[attr-defined]
        return records

    def _has_more(self) -> bool:
        """Whether a poll would bring something, or an error; looked at anew only where the log has changed."""
        if self._seen_changes == self._log.cluster.changes:
            return False
        self._seen_changes = self._log.cluster.changes
        inner = self._inner
        topic = self._log.cluster.topics.get(self._topic)
        if topic is None:
            return True
        reading = [(topic.partitions[p], at) for p, at in inner._positions.items() if p not in inner._paused]  # type: ignore[attr-defined]
        return any(at != held.next_offset for held, at in reading)

    def take_assignment(self) -> Assignment | None:
        return self._inner.take_assignment()  # type: ignore[attr-defined,no-any-return]

    def seek(self, partition: int, offset: int) -> None:
        self._inner.seek(partition, offset)  # type: ignore[attr-defined]

    def pause(self, partitions: Iterable[int]) -> None:
        self._inner.pause(partitions)  # type: ignore[attr-defined]

    def resume(self, partitions: Iterable[int]) -> None:
        self._inner.resume(partitions)  # type: ignore[attr-defined]

    def position(self, partition: int) -> int:
        return self._inner.position(partition)  # type: ignore[attr-defined,no-any-return]

    def commit(self, partition: int, committed: CommittedOffset, *, is_awaited: bool = False) -> None:
        self._faults.step("commit offset")
        draw = self._faults.draw()
        if draw > 0.04:
            self._inner.commit(partition, committed)  # type: ignore[attr-defined]
        if draw < 0.08 and is_awaited:
            raise UnavailableError("the group's coordinator does not answer")

    def committed(self, partition: int) -> CommittedOffset | None:
        self._log._ask("committed offset", self._topic)
        return self._inner.committed(partition)  # type: ignore[attr-defined,no-any-return]

    def close(self) -> None:
        self._faults.step("close reader")
        self._inner.close()  # type: ignore[attr-defined]
