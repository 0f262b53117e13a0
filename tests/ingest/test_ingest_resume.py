"""Promises of an ingest that does not run through: what is acknowledged is not sent again, what is not is never skipped or forgotten."""

from __future__ import annotations

import json
import queue
import random
import resource
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError, UnavailableError
from contracts.log import LogProducer, LogRecord, RecordPosition
from ingest.acknowledged import Acknowledgements, UnitProgress
from ingest.ingest_run import IngestReport, IngestRun, ingest_sources
from ingest.input_item import InputRules
from ingest.producer import MediaProducer
from ingest.resume import COMPLETE, Journal, SourceTotals
from ingest.sources import open_sources

JPEG = b"\xff\xd8\xff" + b"j" * 30
Stored = Callable[[CollectionRecord], list[LogRecord]]


class FailingProducer:
    """The log's own producer that breaks after so many sends: the rest is neither stored nor acknowledged."""

    def __init__(self, real: LogProducer, most: int) -> None:
        self._real, self._left = real, most
        self.flush, self.close = real.flush, real.close

    def send(
        self, topic: str, *, partition: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> Future[RecordPosition]:
        self._left -= 1
        if self._left >= 0:
            return self._real.send(topic, partition=partition, key=key, value=value, headers=headers)
        future: Future[RecordPosition] = Future()
        threading.Timer(0.001, lambda: future.set_exception(UnavailableError("the broker is away"))).start()
        return future


class FailingLog:
    """The log under test, whose producers break after `most` sends."""

    def __init__(self, engines: Engines, most: int) -> None:
        self._engines, self._most = engines, most
        self.describe_topic = engines.log.describe_topic

    def producer(self, *, linger_seconds: float = 0.0) -> FailingProducer:
        return FailingProducer(self._engines.log.producer(linger_seconds=linger_seconds), self._most)


class SlowProducer:
    """A log that takes a record every few milliseconds and holds nothing once it is acknowledged."""

    def __init__(self, seconds_per_record: float) -> None:
        self._seconds = seconds_per_record
        self._waiting: queue.SimpleQueue[tuple[Future[RecordPosition], int] | None] = queue.SimpleQueue()
        self.held_bytes = self.most_held_bytes = self.records = 0
        self._idle = threading.Condition()
        threading.Thread(target=self._acknowledge, daemon=True).start()

    def send(
        self, topic: str, *, partition: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> Future[RecordPosition]:
        future: Future[RecordPosition] = Future()
        with self._idle:
            self.held_bytes += len(value or b"")
            self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
            self.records += 1
        self._waiting.put((future, len(value or b"")))
        return future

    def _acknowledge(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            time.sleep(self._seconds)
            waiting[0].set_result(RecordPosition("t", 0, 0))
            with self._idle:
                self.held_bytes -= waiting[1]
                self._idle.notify_all()

    def flush(self, timeout_seconds: float) -> None:
        with self._idle:
            assert self._idle.wait_for(lambda: self.held_bytes == 0, timeout_seconds)

    def close(self) -> None:
        self._waiting.put(None)


class SlowLog:
    """The log under test with one `SlowProducer`."""

    def __init__(self, engines: Engines, seconds_per_record: float) -> None:
        self.slow = SlowProducer(seconds_per_record)
        self.describe_topic = engines.log.describe_topic

    def producer(self, *, linger_seconds: float = 0.0) -> SlowProducer:
        return self.slow


def ingest(
    engines: Engines, collection: CollectionRecord, path: Path, state: Path, *, most: int | None = None, restart: bool = False
) -> IngestReport:
    """Ingest a path; with `most`, through a log that breaks after so many records."""
    opened = open_sources([path], InputRules.of(collection, engines.settings))
    log = engines.log if most is None else FailingLog(engines, most)
    producer = MediaProducer(log, collection, engines.settings)  # type: ignore[arg-type]
    run = IngestRun(producer)
    try:
        return ingest_sources(run, opened, state, restart=restart)
    except UnavailableError:
        assert most is not None
        return run.report
    finally:
        producer._producer.close()


def keys(records: list[LogRecord]) -> list[str]:
    return [(record.key or b"").decode() for record in records]


def write_lines(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"id": f"i{number}", "text": f"text {number}"}) + "\n" for number in range(count)))


@pytest.mark.parametrize("kind", ["manifest", "folder"])
def test_an_ingest_that_broke_goes_on_where_it_was(engines: Engines, collection: CollectionRecord, stored: Stored, tmp_path: Path, kind: str) -> None:
    source, state = tmp_path / ("m.jsonl" if kind == "manifest" else "media"), tmp_path / "state"
    if kind == "manifest":
        write_lines(source, 300)
        source.write_text(source.read_text() + "{\n")
    else:
        source.mkdir()
        for number in range(300):
            (source / f"i{number}.jpg").write_bytes(JPEG)
        (source / "bad.txt").write_bytes(b"\xff")
    first = ingest(engines, collection, source, state, most=100)
    assert first.items == 100
    assert first.not_acknowledged > 0
    second = ingest(engines, collection, source, state, most=50)
    assert (second.earlier.items, second.items) == (100, 50)
    third = ingest(engines, collection, source, state)
    assert (third.earlier.items, third.items, third.not_acknowledged) == (150, 150, 0)
    assert len(set(keys(stored(collection)))) == 300
    assert len(stored(collection)) == 300  # nothing twice
    assert third.rejected.total() + sum(third.earlier.rejected.values()) == 1
    again = ingest(engines, collection, source, state)
    assert (again.earlier.items, again.items) == (0, 300)  # a finished ingest begins anew


def test_restart_forgets_and_a_changed_manifest_is_read_from_its_start(
    engines: Engines, collection: CollectionRecord, stored: Stored, tmp_path: Path
) -> None:
    source, state = tmp_path / "m.jsonl", tmp_path / "state"
    write_lines(source, 100)
    ingest(engines, collection, source, state, most=60)
    assert ingest(engines, collection, source, state, restart=True).items == 100
    ingest(engines, collection, source, state, most=60)
    write_lines(source, 101)
    assert ingest(engines, collection, source, state).items == 101


def test_the_same_source_into_another_collection_begins_at_its_start(
    engines: Engines, collection: CollectionRecord, make_collection: Callable[..., CollectionRecord], tmp_path: Path
) -> None:
    source, state = tmp_path / "m.jsonl", tmp_path / "state"
    write_lines(source, 50)
    ingest(engines, collection, source, state, most=20)
    assert ingest(engines, make_collection("other"), source, state).items == 50


def test_more_sources_than_a_process_may_open_files_are_ingested_and_resumed(
    engines: Engines, collection: CollectionRecord, stored: Stored, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    paths = [tmp_path / f"{number}.jsonl" for number in range(300)]
    for number, path in enumerate(paths):
        path.write_text(json.dumps({"id": f"i{number}", "text": "x"}) + "\n")
    opened = open_sources(paths, InputRules.of(collection, engines.settings))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(UnavailableError), MediaProducer(FailingLog(engines, 200), collection, engines.settings) as broken:  # type: ignore[arg-type]
            ingest_sources(IngestRun(broken), opened, tmp_path / "state")
        with MediaProducer(engines.log, collection, engines.settings) as producer:
            report = ingest_sources(IngestRun(producer), opened, tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.earlier.items, report.items) == (200, 100)
    assert sorted(keys(stored(collection))) == sorted(f"i{number}" for number in range(300))
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file()]


def test_what_was_not_acknowledged_is_counted_and_named_in_the_error(engines: Engines, collection: CollectionRecord, tmp_path: Path) -> None:
    write_lines(tmp_path / "m.jsonl", 40)
    opened = open_sources([tmp_path / "m.jsonl"], InputRules.of(collection, engines.settings))
    producer = MediaProducer(FailingLog(engines, 30), collection, engines.settings)  # type: ignore[arg-type]
    run = IngestRun(producer)
    with pytest.raises(UnavailableError, match=r"records were not acknowledged by topic .*the broker is away") as caught:
        ingest_sources(run, opened, tmp_path / "state")
    assert (caught.value.exit_code, caught.value.error_code) == (4, "not_stored")
    assert f"{run.report.not_acknowledged} records" in caught.value.message
    assert 1 <= run.report.not_acknowledged <= 10
    assert run.report.items == 30


def test_entries_that_are_acknowledged_out_of_order_leave_no_gap_behind(tmp_path: Path, collection: CollectionRecord) -> None:
    order = random.Random(1)
    for _ in range(50):
        journal = Journal.of(tmp_path, "source", collection, restart=True, remembers=True)
        sent = Acknowledgements(1000)
        progress = UnitProgress(SourceTotals(), journal, "unit", "stamp", 0)
        futures: list[Future[RecordPosition]] = [Future() for _ in range(20)]
        for entry, future in enumerate(futures):
            sent.follow([future], progress, [entry], 1)
        lost = order.randrange(20)
        for entry in order.sample(range(20), 20):
            if entry != lost:
                futures[entry].set_result(RecordPosition("t", 0, entry))
            sent.write_journals()
            done = journal.done("unit", "stamp")
            assert all(futures[before].done() for before in range(done))
        assert journal.done("unit", "stamp") == lost
        sent.end_of(progress, 20)
        futures[lost].set_exception(UnavailableError("away"))
        sent.write_journals()
        assert (journal.done("unit", "stamp"), sent.failed, sent.acknowledged) == (lost, 1, 19)
        journal.close()


@pytest.mark.parametrize("damage", ["torn", "garbage", "other header", "empty", "wrong types", "zeros"])
def test_a_damaged_journal_only_means_that_more_is_sent_again(tmp_path: Path, collection: CollectionRecord, damage: str) -> None:
    journal = Journal.of(tmp_path, "source", collection)
    for number in range(10):
        journal.note(f"u{number}", "s", COMPLETE)
        journal.write()
    journal.close()
    (path,) = tmp_path.rglob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 22
    path.write_bytes({
        "torn": b"".join(lines)[:-30],
        "garbage": b"".join([*lines[:8], b"\xff\xfe garbage\n", *lines[8:]]),
        "other header": b"".join([lines[0].replace(b"source", b"secret"), *lines[1:]]),
        "empty": b"",
        "wrong types": b"".join([*lines[:8], b'["u9",7,"x"]\n{"items":"many","size_bytes":0,"rejected":{}}\n', *lines[8:]]),
        "zeros": b"".join(lines[:8]) + bytes(500),
    }[damage])  # fmt: skip
    again = Journal.of(tmp_path, "source", collection)
    known = [number for number in range(10) if again.done(f"u{number}", "s") == COMPLETE]
    assert known == list(range({"torn": 9, "garbage": 3, "other header": 0, "empty": 0, "wrong types": 3, "zeros": 3}[damage])) or damage == "torn"
    assert known == list(range(len(known)))
    assert len(known) < 10 or damage == "torn"
    again.close()


def test_a_long_watchs_journal_does_not_grow_without_end(tmp_path: Path, collection: CollectionRecord) -> None:
    journal = Journal.of(tmp_path, "source", collection, remembers=True)
    (path,) = tmp_path.rglob("*.jsonl")
    for number in range(40_000):
        journal.note("unit", f"stamp {number}", COMPLETE)
        if number % 1000 == 0:
            journal.write()
    journal.write()
    assert path.stat().st_size < 1_000_000
    journal.close()
    again = Journal.of(tmp_path, "source", collection)
    assert again.done("unit", "stamp 39999") == COMPLETE
    again.close()
    again.remove()
    assert not list(tmp_path.rglob("*.jsonl"))


def test_two_ingests_of_one_source_at_once_are_refused(tmp_path: Path, collection: CollectionRecord) -> None:
    journal = Journal.of(tmp_path, "/data/media", collection)
    with pytest.raises(SettingsError, match="another process ingests /data/media"):
        Journal.of(tmp_path, "/data/media", collection)
    journal.close()
    Journal.of(tmp_path, "/data/media", collection).close()


def test_a_slow_log_slows_the_reader_and_memory_stays_flat(engines: Engines, collection: CollectionRecord, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03}.jpg").write_bytes(JPEG + bytes(900_000))
    log = SlowLog(engines, 0.01)
    opened = open_sources([folder], InputRules.of(collection, engines.settings))
    tracemalloc.start()
    try:
        with MediaProducer(log, collection, engines.settings, max_in_flight_bytes=4_000_000) as producer:  # type: ignore[arg-type]
            report = ingest_sources(IngestRun(producer), opened)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.items, log.slow.records) == (60, 60)
    assert log.slow.most_held_bytes <= 4_000_000
    assert peak_bytes < 12_000_000  # of 54 MB


def test_many_small_records_are_bounded_by_number(
    engines: Engines, collection: CollectionRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.ingest_run.MAX_IN_FLIGHT_RECORDS", 50)
    write_lines(tmp_path / "m.jsonl", 400)
    log = SlowLog(engines, 0.001)
    opened = open_sources([tmp_path / "m.jsonl"], InputRules.of(collection, engines.settings))
    most = 0

    def watch(report: IngestReport) -> None:
        nonlocal most
        most = max(most, report.not_acknowledged)

    with MediaProducer(log, collection, engines.settings) as producer:  # type: ignore[arg-type]
        report = ingest_sources(IngestRun(producer, watch), opened)
    assert (report.items, most) == (400, 50)
