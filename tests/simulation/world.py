"""The world of one seed: what is produced, who lives, who sleeps, who dies; and whether everything catches up when faults end."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.generations import FIRST_GENERATION
from contracts.codec import FLAT
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError
from contracts.generation import encode_generation
from contracts.log import LogRecord
from contracts.manifest import ReadManifest
from contracts.media_origin import MediaOrigin, replay_headers
from contracts.metrics import Metrics
from contracts.object_keys import CollectionKeys
from contracts.partitioner import partition_of
from contracts.settings import Settings, load_settings
from indexer.commit import Committer
from indexer.embed_worker import EmbedWorker
from tests.simulation.baton import NEVER, Process, Scheduler
from tests.simulation.cooperative import Cooperative, SimulatedClock
from tests.simulation.faults import Faults
from tests.simulation.faulty_log import FaultyLog, kind_of
from tests.simulation.faulty_store import FaultyStore
from tests.simulation.judges import Judge, Judges
from tests.simulation.reach import Reach
from tests.simulation.roles import ATTRIBUTES, Roles, WatchedPartition
from tests.simulation.vectors import CODEC, small_field, small_generation

NAME = "feed"
IDS = 7
PARTITIONER = "murmur2"
WORKERS = ("embed", "build", "maintain")
MOST_OF_A_ROLE = 3
RETAIN_SECONDS = 1.5
"""Longest time between two looks of retention at the media topic."""
CATCH_UP_SECONDS = 200.0


@cache
def shared_parts() -> tuple[Settings, Metrics]:
    """Made once per process: they hold nothing of a seed."""
    options: dict[str, Any] = {"log_url": "memory://", "store_url": "memory://", "embed_watchdog_seconds": 0.5, "query_poll_seconds": 2.0}
    return load_settings(**options, seal_seconds=1.0, maintain_seconds=0.7, compact_fan_in=2, train_threads=1), Metrics()


class World:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stats: Counter[str] = Counter()
        self.scheduler = Scheduler(self.rng)
        self.cooperative = Cooperative(self.scheduler, self.rng)
        self.faults = Faults(self.scheduler, self.rng, self.stats)
        self.faults.kill, self.faults.hold = self._kill, self._hold
        clock = SimulatedClock(self.scheduler)
        self.store, self.log = FaultyStore(clock, self.faults), FaultyLog(self.faults)
        self.store.on_create, self.store.on_delete, self.log.on_append = self._stored, self._deleted, self._appended
        settings, metrics = shared_parts()
        sizes = {"seal_rows": self.rng.randint(2, 8), "gc_seconds": self.rng.choice([1.0, 3.0, 9.0])}
        self.engines = Engines(settings.model_copy(update=sizes), self.log, self.store, metrics, clock)
        self.nodes: dict[str, dict[int, WatchedPartition]] = {}
        self.alive: dict[Process, Any] = {}
        self._numbers: Counter[str] = Counter()
        self.records = self.rng.randint(20, 45)
        self.reach = Reach.of(seed)
        self.workers = (*WORKERS, "archive") if self.reach.archive else WORKERS
        self.recreate_at = self.rng.randint(5, self.records) if self.rng.random() < 0.15 else -1

    def run(self) -> Counter[str]:
        """Run the seed; ViolationError where an invariant does not hold."""
        with self.cooperative.installed(), self._watched():
            self._create()
            director = Process("director", "director")
            self.scheduler.spawn(director, self._direct)
            self.scheduler.run(director)
        self.stats["steps"] = self.scheduler.steps
        return self.stats

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """What a committer believes to have committed is compared with history; and nobody believes that something is lost."""
        right = Committer._commit

        def commit(committer: Committer[Any], *how: Any) -> ReadManifest:
            read = right(committer, *how)
            self.judges.believed(committer.writer, read)
            return read

        stop_partition = EmbedWorker._stop_partition

        def stop(worker: EmbedWorker, reader: Any, partition: int, error: CorruptError) -> None:
            if worker.collection.incarnation == self.judges.record.incarnation:
                self.scheduler.fail(f"an embed worker stops partition {partition}, of which nothing is lost: {error}")
            stop_partition(worker, reader, partition, error)

        with mock.patch.object(Committer, "_commit", commit), mock.patch.object(EmbedWorker, "_stop_partition", stop):
            yield

    # ---- the collection ----------------------------------------------------------------------------------------------
    def _create(self) -> None:
        request = CollectionRequest(
            NAME,
            [small_field()],
            self.reach.partitions,
            partitioner=PARTITIONER,
            attributes=ATTRIBUTES,
            on_reject=self.rng.choice(["keep", "keep", "remove"]),
            codec=CODEC if self.reach.trained else FLAT,
        )
        kept: list[tuple[str, bytes]] = []
        self.store.on_create = lambda key, data: kept.append((key, data))
        record = create_collection(self.engines, request)
        self.store.on_create = self._stored
        self.judges = judges = Judges(record, self.store, self.scheduler.fail)
        self.roles = Roles(self.engines, record, lambda name, view, before: self.judges is judges and judges.view(name, view, before), self.faults)
        for key, data in kept:
            self._stored(key, data)
        if self.reach.trained:
            self.scheduler.at(2 + self.rng.random() * 12, lambda: None if self.scheduler.over else self._train(record))

    def _train(self, record: CollectionRecord) -> None:
        """Store a generation, as the builder of a partition that is large enough would: all others find it, and re-encode what is flat."""
        keys = CollectionKeys(record.name, record.incarnation).index(record.index().name)
        self.store._create(keys.generation(FIRST_GENERATION, small_field().name), encode_generation(small_generation()))

    def _recreate(self) -> None:
        """Delete the collection and create it again under its name; those who worked on the old one go on for a while."""
        self.stats["re-created"] += 1
        on, self.faults.is_on = self.faults.is_on, False
        current, self.scheduler.current = self.scheduler.current, None  # one step: an operator's command, not under test here
        delete_collection(self.engines, NAME)
        self._create()
        self.scheduler.current, self.faults.is_on = current, on
        for process in list(self.alive):
            self.scheduler.at(self.rng.random() * 4, lambda p=process: self._kill(p))  # type: ignore[misc]
        self.nodes = {}
        for role in (*self.workers, "node", "node"):
            self._spawn(role)

    def _stored(self, key: str, data: bytes) -> None:
        self.stats["objects"] += 1
        if "/manifest/" in key:
            self.stats["archive commits" if "/archive/" in key else "commits"] += 1
        self.judges.stored(key, data)

    def _deleted(self, key: str) -> None:
        self.stats["collected"] += 1
        self.judges.deleted(key)

    def _appended(self, record: LogRecord) -> None:
        self.stats["batches"] += kind_of(record.topic) == "vectors"
        self.judges.appended(record)

    # ---- processes ---------------------------------------------------------------------------------------------------
    def _spawn(self, role: str) -> None:
        self._numbers[role] += 1
        process, stop = Process(f"{role}{self._numbers[role]}", role), self.cooperative.event()
        process.on_end = self._ended
        self.alive[process] = stop
        body = getattr(self.roles, role)
        more = (self.nodes,) if role == "node" else ()
        self.scheduler.spawn(process, body, process.name, stop, *more)

    def _kill(self, process: Process) -> None:
        if process in self.alive:
            self._gone(process)
            self.log.silence(process, NEVER)
            self.scheduler.kill(process)

    def _ended(self, process: Process, error: BaseException | None) -> None:
        """A process ended by itself: in order, or with an error that an operator's supervisor answers by starting it again."""
        if process not in self.alive:
            return
        self._gone(process)
        self.log.silence(process, NEVER)
        if error is None:
            self.stats["stopped in order"] += 1
        elif isinstance(error, HeadwaterError) and (self.stats["re-created"] or not isinstance(error, CorruptError)):
            self.stats[f"ended: {error.error_code}"] += 1
        else:
            self.scheduler.violation = self.scheduler.violation or f"{process.name} ended with {error!r}"
            self.scheduler._stop()

    def _gone(self, process: Process) -> None:
        del self.alive[process]
        self.nodes.pop(process.name, None)
        if sum(other.role == process.role for other in self.alive) < (2 if process.role == "node" else 1):
            self.scheduler.at(0.1 + self.rng.random(), lambda: None if self.scheduler.over else self._spawn(process.role))

    def _hold_one(self) -> None:
        awake = [process for process in self.alive if process.wake <= self.scheduler.now]
        if awake:
            self._hold(self.rng.choice(awake))

    def _hold(self, process: Process) -> None:
        """Hold a process for long; a replacement starts, and the old one goes on later as if nothing had happened."""
        if process not in self.alive:
            return
        seconds = self.rng.choice([0.5, 2.0, 6.0, 18.0]) * (0.5 + self.rng.random())
        process.wake = self.scheduler.now + seconds
        self.stats["zombies"] += 1
        self.log.silence(process, seconds)
        if process.role in self.workers and self._count(process.role) < MOST_OF_A_ROLE:
            self.scheduler.at(0.5, lambda: None if self.scheduler.over else self._spawn(process.role))

    def _count(self, role: str) -> int:
        return sum(process.role == role for process in self.alive)

    def _stop_one(self) -> None:
        """Stop a process in order."""
        process, stop = self.rng.choice(list(self.alive.items()))
        if process.role in self.workers:
            stop.set()

    # ---- the director ------------------------------------------------------------------------------------------------
    def _direct(self) -> None:
        for role in (*self.workers, "node", "node"):
            self._spawn(role)
        self.faults.is_on = True
        if self.reach.retention:
            self._retain()
        while self.judges.records < self.records:
            self.scheduler.sleep(self.rng.random() * 0.4)
            draw = self.rng.random()
            if draw < 0.70:
                self._produce()
            elif draw < 0.80:
                self._hold_one()
            elif draw < 0.84:
                self._stop_one()
            elif draw < 0.88 and self._count("embed") < MOST_OF_A_ROLE:
                self._spawn(self.rng.choice(self.workers))
            if 0 <= self.recreate_at <= self.judges.records:
                self.recreate_at = -1
                self._recreate()
        self.scheduler.sleep(self.rng.random() * 6)
        self.faults.is_on = False
        for _ in range(self.reach.partitions):  # whoever stands still by now is found out, though nothing was left to do
            self._produce()
        self._catch_up()

    def _catch_up(self) -> None:
        deadline = self.scheduler.now + CATCH_UP_SECONDS
        while not self._is_caught_up() and self.scheduler.now < deadline:
            self.scheduler.sleep(0.5)
        for number, judge in enumerate(self.judges.partitions):
            self._fail_behind(number, judge)
            self.stats["rejected"] += len(judge.reference.dead_letters)
            self.stats["re-encoded"] += judge.audit.recoded
        self.stats["records"] += self.judges.records
        self.stats["of two partitions"] += self.reach.partitions == 2

    def _fail_behind(self, number: int, judge: Judge) -> None:
        end, at, where = len(judge.reference.media), judge.audit.newest.checkpoint, f"stall in partition {number}"
        if judge.reference.expected < end:
            self.scheduler.fail(f"{where}: the chain stands at {judge.reference.expected} of {end}")
        if at.media_offset < end:
            self.scheduler.fail(f"{where}: the manifests stand at {at.media_offset} of {end}")
        if self.reach.archive and judge.archive.archived_to < end:
            self.scheduler.fail(f"{where}: the archive stands at {judge.archive.archived_to} of {end}")
        if not self._is_caught_up():
            views = {name: node[number].view for name, node in self.nodes.items()}
            shown = {name: view and (view.loaded.version, view.expected) for name, view in views.items()}
            self.scheduler.fail(f"{where}: nodes show {shown}, the newest manifest is {judge.audit.newest.version}, the chain ends at {end}")

    def _is_caught_up(self) -> bool:
        return len(self.nodes) >= 2 and all(self._has_caught_up(number, judge) for number, judge in enumerate(self.judges.partitions))

    def _has_caught_up(self, number: int, judge: Judge) -> bool:
        end, newest = len(judge.reference.media), judge.audit.newest
        if newest.checkpoint.media_offset < end or (self.reach.archive and judge.archive.archived_to < end):
            return False
        views = [node[number].view for node in self.nodes.values()]
        return all(view is not None and view.expected == end and view.loaded.version == newest.version and view.loaded.complete for view in views)

    def _retain(self) -> None:
        """Retention takes media that is embedded, and archived where an archive is kept; it need not be committed: vectors have their own topic."""
        if self.scheduler.over:
            return
        topic = self.judges.record.source_topic
        for number, judge in enumerate(self.judges.partitions):
            done = min(judge.reference.expected, judge.archive.archived_to) if self.reach.archive else judge.reference.expected
            start = self.log.memory.bounds(topic)[number].start_offset
            if done > start:
                self.log.memory.truncate(topic, {number: self.rng.choice([done, self.rng.randint(start + 1, done)])})
                self.stats["media truncated"] += 1
        self.scheduler.at(self.rng.random() * RETAIN_SECONDS, self._retain)

    # ---- the producer ------------------------------------------------------------------------------------------------
    def _produce(self) -> None:
        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            key, value, headers = self._record()
            partition = partition_of(PARTITIONER, key, self.reach.partitions)
            for _ in range(2 if self.rng.random() < 0.05 else 1):  # a producer that got no answer sends once more
                self.log.append(self.judges.record.source_topic, partition, key, value, headers)

    def _record(self) -> tuple[bytes, bytes | None, list[tuple[str, bytes]]]:
        number, draw = self.judges.records, self.rng.random()
        key = f"id{self.rng.randrange(IDS)}".encode()
        if draw < 0.18:
            return key, None, []
        if draw < 0.36:
            return key, json.dumps({"n": number}).encode(), [("hw_op", b"patch")]
        if draw < 0.43:
            return key, b"?", [("content-type", b"application/unknown")]
        if draw < 0.55 and number:
            original = self.rng.choice([record for judge in self.judges.partitions for record in judge.reference.media])
            if original.header("hw_origin") is None:
                return original.key or b"", original.value, list(replay_headers(original, MediaOrigin(original.offset)))
        attributes = json.dumps({"n": -number}).encode()
        return key, f"text of {number}".encode(), [("content-type", b"text/plain"), ("hw_attributes", attributes)]


__all__ = ["NAME", "World"]
