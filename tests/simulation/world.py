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
from contracts.engines import Engines
from contracts.errors import CorruptError, HeadwaterError
from contracts.log import LogRecord
from contracts.manifest import Manifest, ReadManifest
from contracts.media_origin import MediaOrigin, replay_headers
from contracts.metrics import Metrics
from contracts.settings import Settings, load_settings
from indexer.commit import Committer
from tests.simulation.audit import Audit
from tests.simulation.audit_archive import ArchiveAudit
from tests.simulation.baton import NEVER, Process, Scheduler
from tests.simulation.cooperative import Cooperative, SimulatedClock
from tests.simulation.faults import Faults
from tests.simulation.faulty_log import FaultyLog, kind_of
from tests.simulation.faulty_store import FaultyStore
from tests.simulation.reference import Reference
from tests.simulation.roles import ATTRIBUTES, Roles, WatchedPartition, small_field

NAME = "feed"
IDS = 7
WORKERS = ("embed", "build", "maintain")
ARCHIVE_SHARE = 0.4
"""Seeds in which the archive is kept too; the others take fewer steps."""
MOST_OF_A_ROLE = 3
CATCH_UP_SECONDS = 200.0


@cache
def shared_parts() -> tuple[Settings, Metrics]:
    """Made once per process: they hold nothing of a seed."""
    options: dict[str, Any] = {"log_url": "memory://", "store_url": "memory://", "embed_watchdog_seconds": 0.5, "query_poll_seconds": 2.0}
    return load_settings(**options, seal_seconds=1.0, maintain_seconds=0.7, compact_fan_in=2), Metrics()


class World:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.stats: Counter[str] = Counter()
        self.scheduler = Scheduler(self.rng)
        self.cooperative = Cooperative(self.scheduler, self.rng)
        self.faults = Faults(self.scheduler, self.rng, self.stats)
        self.faults.kill = self._kill
        clock = SimulatedClock(self.scheduler)
        self.store, self.log = FaultyStore(clock, self.faults), FaultyLog(self.faults)
        self.store.on_create, self.store.on_delete, self.log.on_append = self._stored, self._deleted, self._appended
        settings, metrics = shared_parts()
        sizes = {"seal_rows": self.rng.randint(2, 8), "gc_seconds": self.rng.choice([1.0, 3.0, 9.0])}
        self.engines = Engines(settings.model_copy(update=sizes), self.log, self.store, metrics, clock)
        self.nodes: dict[str, WatchedPartition] = {}
        self.alive: dict[Process, Any] = {}
        self._numbers: Counter[str] = Counter()
        self.records = self.rng.randint(20, 45)
        self.workers = (*WORKERS, "archive") if random.Random(f"archive {seed}").random() < ARCHIVE_SHARE else WORKERS
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
        """What a committer believes to have committed is compared with history."""
        right = Committer._commit

        def commit(committer: Committer[Any], *how: Any) -> ReadManifest:
            read = right(committer, *how)
            if read.manifest.incarnation == self.reference.record.incarnation:
                (self.audit if isinstance(read.manifest, Manifest) else self.archive).believed(committer.writer, read)
            return read

        with mock.patch.object(Committer, "_commit", commit):
            yield

    # ---- the collection ----------------------------------------------------------------------------------------------
    def _create(self) -> None:
        request = CollectionRequest(
            NAME, [small_field()], 1, attributes=ATTRIBUTES, on_reject=self.rng.choice(["keep", "keep", "remove"]), codec="flat"
        )
        kept: list[tuple[str, bytes]] = []
        self.store.on_create = lambda key, data: kept.append((key, data))
        record = create_collection(self.engines, request)
        self.store.on_create = self._stored
        self.reference = Reference(record, self.scheduler.fail)
        self.audit = audit = Audit(self.reference, self.store, self.scheduler.fail)
        self.archive = ArchiveAudit(self.reference, self.store, self.scheduler.fail)
        self.roles = Roles(self.engines, record, lambda name, view, before: self.audit is audit and audit.view(name, view, before), self.faults)
        for key, data in kept:
            self._stored(key, data)

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
            is_archive = "/archive/" in key
            self.stats["archive commits" if is_archive else "commits"] += 1
            if f"-{self.reference.record.incarnation}/" in key:  # what is written to an older incarnation matters to nobody
                (self.archive if is_archive else self.audit).manifest(key, data)

    def _deleted(self, key: str) -> None:
        self.stats["collected"] += 1
        if f"-{self.reference.record.incarnation}/" in key:
            (self.archive if "/archive/" in key else self.audit).deleted(key)

    def _appended(self, record: LogRecord) -> None:
        kind = kind_of(record.topic)
        if kind == "vectors":
            self.stats["batches"] += 1
            self.reference.land(record)
        elif kind == "dead-letter":
            self.reference.land_dead_letter(record)
        elif kind == "media":
            self.reference.media.append(record)

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

    def _hold(self) -> None:
        """Hold a process for long; a replacement starts, and the old one goes on later as if nothing had happened."""
        awake = [process for process in self.alive if process.wake <= self.scheduler.now]
        if not awake:
            return
        process = self.rng.choice(awake)
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
        while len(self.reference.media) < self.records:
            self.scheduler.sleep(self.rng.random() * 0.4)
            draw = self.rng.random()
            if draw < 0.70:
                self._produce()
            elif draw < 0.80:
                self._hold()
            elif draw < 0.84:
                self._stop_one()
            elif draw < 0.88 and self._count("embed") < MOST_OF_A_ROLE:
                self._spawn(self.rng.choice(self.workers))
            if 0 <= self.recreate_at <= len(self.reference.media):
                self.recreate_at = -1
                self._recreate()
        self.scheduler.sleep(self.rng.random() * 6)
        self.faults.is_on = False
        self._catch_up()

    def _catch_up(self) -> None:
        deadline = self.scheduler.now + CATCH_UP_SECONDS
        while not self._is_caught_up() and self.scheduler.now < deadline:
            self.scheduler.sleep(0.5)
        end, at = len(self.reference.media), self.audit.newest.checkpoint
        if self.reference.expected < end:
            self.scheduler.fail(f"stall: the chain stands at {self.reference.expected} of {end}")
        if at.media_offset < end:
            self.scheduler.fail(f"stall: the manifests stand at {at.media_offset} of {end}")
        if "archive" in self.workers and self.archive.archived_to < end:
            self.scheduler.fail(f"stall: the archive stands at {self.archive.archived_to} of {end}")
        if not self._is_caught_up():
            shown = {name: node.view and (node.view.loaded.version, node.view.expected) for name, node in self.nodes.items()}
            self.scheduler.fail(f"stall: nodes show {shown}, the newest manifest is {self.audit.newest.version}, the chain ends at {end}")
        self.stats["rejected"] += len(self.reference.dead_letters)
        self.stats["records"] += end

    def _is_caught_up(self) -> bool:
        end = len(self.reference.media)
        if "archive" in self.workers and self.archive.archived_to < end:
            return False
        if self.audit.newest.checkpoint.media_offset < end or len(self.nodes) < 2:
            return False
        views = [node.view for node in self.nodes.values()]
        newest = self.audit.newest.version
        return all(view is not None and view.expected == end and view.loaded.version == newest and view.loaded.complete for view in views)

    # ---- the producer ------------------------------------------------------------------------------------------------
    def _produce(self) -> None:
        for _ in range(self.rng.choice([1, 1, 1, 2, 4])):
            key, value, headers = self._record()
            for _ in range(2 if self.rng.random() < 0.05 else 1):  # a producer that got no answer sends once more
                self.log.append(self.reference.record.source_topic, 0, key, value, headers)

    def _record(self) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
        offset, draw = len(self.reference.media), self.rng.random()
        key = f"id{self.rng.randrange(IDS)}".encode()
        if draw < 0.18:
            return key, None, []
        if draw < 0.36:
            return key, json.dumps({"n": offset}).encode(), [("hw_op", b"patch")]
        if draw < 0.43:
            return key, b"?", [("content-type", b"application/unknown")]
        if draw < 0.55 and offset:
            original = self.rng.choice(self.reference.media)
            if original.header("hw_origin") is None:
                return original.key, original.value, list(replay_headers(original, MediaOrigin(original.offset)))
        attributes = json.dumps({"n": -offset}).encode()
        return key, f"text of {offset}".encode(), [("content-type", b"text/plain"), ("hw_attributes", attributes)]


__all__ = ["NAME", "World"]
