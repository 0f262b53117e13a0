"""Promises of --watch: files that appear, grow, change and disappear, and what a second watch does not send again."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import LogRecord, RecordPosition
from contracts.settings import load_settings
from ingest.ingest_run import IngestRun
from ingest.input_item import InputRules
from ingest.producer import MediaProducer
from ingest.sources import open_sources
from ingest.watch import Watch, WatchOptions

JPEG = b"\xff\xd8\xff" + b"j" * 30
Stored = Callable[[CollectionRecord], list[LogRecord]]
SETTLE = 0.2


class FlakyLog(MemoryLog):
    """While it `is_away`, records are not acknowledged and no producer can be opened; a producer that has failed once fails for ever."""

    is_away = False

    def producer(self, *, linger_seconds: float = 0.0) -> Any:
        if self.is_away:
            raise UnavailableError("opening a producer: no broker")
        producer = super().producer(linger_seconds=linger_seconds)
        send, broken = producer.send, threading.Event()

        def flaky_send(topic: str, **record: Any) -> Future[RecordPosition]:
            if self.is_away:
                broken.set()
            if not broken.is_set():
                return send(topic, **record)
            failed: Future[RecordPosition] = Future()
            failed.set_exception(UnavailableError("writing: no broker"))
            return failed

        producer.send = flaky_send  # type: ignore[method-assign]
        return producer


@pytest.fixture
def engines() -> Iterator[Engines]:
    made = Engines(load_settings(log_url="memory://", store_url="memory://"), FlakyLog(), MemoryStore())
    yield made
    made.log.close()


class Watching:
    """A watch in a thread, and what it has put on the media topic."""

    def __init__(self, run: IngestRun, read: Callable[[], list[LogRecord]]) -> None:
        self.run, self._read = run, read

    def values(self, key: str) -> list[bytes | None]:
        return [record.value for record in self._read() if record.key == key.encode()]

    def wait_for(self, is_so: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, [(record.key, record.value) for record in self._read()]
            time.sleep(0.02)


@pytest.fixture
def watching(engines: Engines, collection: CollectionRecord, stored: Stored, tmp_path: Path) -> Callable[..., Iterator[Watching]]:
    @contextmanager
    def watch(path: Path, **options: bool) -> Iterator[Watching]:
        opened = open_sources([path], InputRules.of(collection, engines.settings))
        stop = threading.Event()
        errors: list[BaseException] = []
        with MediaProducer(engines.log, collection, engines.settings, bulk=True) as producer:
            run = IngestRun(producer, stop=stop)
            watch = Watch(run, opened, WatchOptions(0.05, SETTLE, **options), tmp_path / "state")

            def follow() -> None:
                try:
                    watch.follow(stop)
                except BaseException as error:  # raised again below
                    errors.append(error)

            thread = threading.Thread(target=follow)
            thread.start()
            try:
                yield Watching(run, lambda: stored(collection))
            finally:
                stop.set()
                thread.join(20)
        assert not thread.is_alive()
        if errors:
            raise errors[0]

    return watch  # type: ignore[return-value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "media"
    path.mkdir()
    (path / "old.jpg").write_bytes(JPEG)
    os.utime(path / "old.jpg", (1, 1))
    return path


def test_files_that_appear_and_change_are_sent_within_seconds(watching: Callable[..., Iterator[Watching]], folder: Path) -> None:
    with watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("old.jpg") == [JPEG])
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "new.jpg").write_bytes(JPEG + b"1")
        (folder / ".new.jpg.part").write_bytes(JPEG)
        watch.wait_for(lambda: watch.values("deep/er/new.jpg") == [JPEG + b"1"])
        (folder / "deep" / "er" / "new.jpg").write_bytes(JPEG + b"22")
        watch.wait_for(lambda: watch.values("deep/er/new.jpg") == [JPEG + b"1", JPEG + b"22"])
        (folder / "old.txt").write_text("a caption that came later")
        watch.wait_for(lambda: len(watch.values("old.jpg")) == 2)
        (folder / "captions.csv").write_text("file,caption\nold.jpg,the captions file\n")
        watch.wait_for(lambda: len(watch.values("old.jpg")) == 3)
    assert watch.run.report.items == 5
    assert watch.values("old.txt") == []


class SteppedTime:
    """Both clocks of a watch, behind the real ones: a file that was written just now is from their future."""

    def __init__(self) -> None:
        self._now = time.time() - 1000.0

    def step(self, seconds: float) -> None:
        self._now += seconds

    def time(self) -> float:
        return self._now

    monotonic = time


def test_a_file_that_is_still_being_written_is_not_sent_half(
    watching: Callable[..., Iterator[Watching]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, looks, look = SteppedTime(), [0], Watch.look

    def counted(watch: Watch, stop: threading.Event) -> None:
        look(watch, stop)
        looks[0] += 1

    monkeypatch.setattr("ingest.watch.time", clock)
    monkeypatch.setattr(Watch, "look", counted)
    growing = folder / "growing.jpg"
    with watching(folder) as watch, growing.open("wb") as file:  # type: ignore[attr-defined]
        file.write(JPEG)
        for _ in range(8):
            file.write(b"x" * 1000)
            file.flush()
            os.utime(growing, (clock.time(), clock.time()))
            clock.step(SETTLE / 2)
            seen = looks[0]
            watch.wait_for(lambda least=seen + 2: looks[0] >= least)
        assert watch.values("growing.jpg") == []
        clock.step(SETTLE)
        watch.wait_for(lambda: watch.values("growing.jpg") != [])
        assert watch.values("growing.jpg") == [JPEG + b"x" * 8_000]


def test_a_file_from_a_clock_ahead_of_ours_is_sent_once_it_stays_the_same(watching: Callable[..., Iterator[Watching]], folder: Path) -> None:
    (folder / "future.jpg").write_bytes(JPEG)
    os.utime(folder / "future.jpg", (time.time() + 10_000, time.time() + 10_000))
    with watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("future.jpg") == [JPEG])


def test_a_removed_file_is_deleted_only_where_that_is_asked_for(watching: Callable[..., Iterator[Watching]], folder: Path) -> None:
    (folder / "stays.jpg").write_bytes(JPEG)
    with watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.run.report.items == 2)
        (folder / "old.jpg").unlink()
        time.sleep(4 * SETTLE)
        assert watch.values("old.jpg") == [JPEG]
    with watching(folder, delete_missing=True) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("old.jpg") == [JPEG, None])  # it went while nobody watched, or did not ask
        (folder / "back.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: watch.values("back.jpg") == [JPEG])
        (folder / "back.jpg").unlink()
        watch.wait_for(lambda: watch.values("back.jpg") == [JPEG, None])
        (folder / "back.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: watch.values("back.jpg") == [JPEG, None, JPEG])
    assert (watch.run.report.deleted, watch.values("stays.jpg")) == (2, [JPEG])


def test_a_folder_that_is_away_or_empty_deletes_nothing(watching: Callable[..., Iterator[Watching]], folder: Path) -> None:
    with watching(folder, delete_missing=True) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("old.jpg") == [JPEG])
        away = folder.with_name("away")
        folder.rename(away)
        watch.wait_for(lambda: watch.run.report.rejected == {"unreadable": 1})
        time.sleep(3 * SETTLE)
        folder.mkdir()  # an empty mount point
        time.sleep(3 * SETTLE)
        shutil.rmtree(folder)
        away.rename(folder)
        (folder / "new.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: watch.values("new.jpg") == [JPEG])
    assert watch.values("old.jpg") == [JPEG]
    assert watch.run.report.rejected == {"unreadable": 1}  # told once, however often it was tried


def test_the_next_watch_sends_only_what_is_new(watching: Callable[..., Iterator[Watching]], folder: Path) -> None:
    with watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.run.report.items == 1)
    (folder / "new.jpg").write_bytes(JPEG)
    with watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("new.jpg") == [JPEG])
        assert (watch.run.report.items, watch.run.report.earlier.items) == (1, 1)
    assert watch.values("old.jpg") == [JPEG]


def test_a_manifest_that_is_written_anew_is_sent_anew(watching: Callable[..., Iterator[Watching]], tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n')
    with watching(path) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("a") == [b"one"])
        path.write_text('{"id": "a", "text": "two"}\n{"id": "b", "text": "x"}\n')
        watch.wait_for(lambda: watch.values("a") == [b"one", b"two"] and watch.values("b")[-1:] == [b"x"])


def write_anew(path: Path, text: str) -> None:
    """In one step: a file that is written in place is empty for a moment, and an empty manifest is broken too."""
    other = path.with_name("new")
    other.write_text(text)
    other.replace(path)


@pytest.mark.parametrize("broken", ["animal,colour\ncat,red\n", "", "text,text\na,b\n"])
def test_a_manifest_that_is_written_anew_and_broken_is_rejected_and_the_watch_goes_on(
    watching: Callable[..., Iterator[Watching]], tmp_path: Path, broken: str
) -> None:
    path = tmp_path / "m.csv"
    path.write_text("id,text\na,one\n")
    with watching(path) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("a") == [b"one"])
        write_anew(path, broken)
        watch.wait_for(lambda: watch.run.report.rejected == {"unreadable": 1})
        time.sleep(3 * SETTLE)
        write_anew(path, "id,text\na,two\n")
        watch.wait_for(lambda: watch.values("a") == [b"one", b"two"])
    assert watch.run.report.rejected == {"unreadable": 1}


def test_a_watch_outlives_an_outage_of_the_log_and_sends_what_came_meanwhile(
    watching: Callable[..., Iterator[Watching]], folder: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    log = engines.log
    assert isinstance(log, FlakyLog)
    with watching(folder, delete_missing=True) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.values("old.jpg") == [JPEG])
        log.is_away = True
        (folder / "new.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: caplog.text.count("opening a producer: no broker") >= 2)
        (folder / "old.jpg").unlink()
        log.is_away = False
        watch.wait_for(lambda: watch.values("new.jpg") == [JPEG] and watch.values("old.jpg") == [JPEG, None])
        (folder / "later.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: watch.values("later.jpg") == [JPEG])
    assert watch.run.report.not_acknowledged == 0 and watch.values("new.jpg") == [JPEG]


def test_a_watch_that_is_stopped_during_an_outage_says_that_not_everything_is_stored(
    watching: Callable[..., Iterator[Watching]], folder: Path, engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnavailableError), watching(folder) as watch:  # type: ignore[attr-defined]
        watch.wait_for(lambda: watch.run.report.items == 1)
        engines.log.is_away = True  # type: ignore[attr-defined]
        (folder / "new.jpg").write_bytes(JPEG)
        watch.wait_for(lambda: "no broker" in caplog.text)
