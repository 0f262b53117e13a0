"""Who is woken by a commit to an SQLite log, and that nobody watches when nobody reads."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from backends.sqlite_file import shared_file
from backends.sqlite_log import SqliteLog
from backends.sqlite_watch import TopicWatch
from contracts.errors import SettingsError
from contracts.log import TopicSpec
from tests.backends.test_sqlite_log import start

PRODUCE_ONE = """
import sys, time
from pathlib import Path
from backends.sqlite_log import SqliteLog
producer = SqliteLog(Path(sys.argv[1])).producer()
time.sleep(0.5)
producer.send("media", partition=1, value=b"x").result()
"""


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    log = SqliteLog(tmp_path / "log.sqlite")
    for name in ("media", "other"):
        log.create_topic(TopicSpec(name, 2, retention_ms=-1))
    return log


def changes_after(watch: TopicWatch, topic: str, seen: int, seconds: float = 30.0) -> int:
    watch.wait(topic, seen, seconds)
    return watch.changes(topic)


def settled(watch: TopicWatch, topic: str) -> int:
    """Number of changes once the first look, at which every topic is new, is over."""
    seen = changes_after(watch, topic, 0)
    assert seen == 1
    return seen


def test_an_append_wakes_the_readers_of_its_topic_alone(log: SqliteLog, tmp_path: Path) -> None:
    reader, watch = log.reader("media", {0: 0}), shared_file(tmp_path / "log.sqlite").watch
    media, other = settled(watch, "media"), settled(watch, "other")
    producer = log.producer()
    producer.send("other", partition=0, value=b"x").result()
    assert changes_after(watch, "other", other) == other + 1
    assert watch.changes("media") == media
    producer.send("media", partition=0, value=b"x").result()
    assert changes_after(watch, "media", media) == media + 1
    assert watch.changes("other") == other + 1
    reader.close()
    log.close()


def test_a_heartbeat_wakes_nobody(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.sqlite", session_seconds=0.9)
    log.create_topic(TopicSpec("media", 2, retention_ms=-1))
    reader, watch = log.group_reader("media", "workers"), shared_file(tmp_path / "log.sqlite").watch
    seen = settled(watch, "media")
    assert changes_after(watch, "media", seen, 0.8) == seen  # two heartbeats of 0.3 seconds each
    reader.close()
    log.close()


def test_another_process_wakes_a_waiting_poll(log: SqliteLog, tmp_path: Path) -> None:
    reader = log.reader("media", {0: 0, 1: 0})
    with start(PRODUCE_ONE, tmp_path / "log.sqlite"):
        begin = time.monotonic()
        assert [record.partition for record in reader.poll(30.0)] == [1]
        assert time.monotonic() - begin < 20.0
    log.close()


def test_closing_ends_a_waiting_poll(log: SqliteLog) -> None:
    reader = log.reader("media", {0: 0})
    ended: list[type[BaseException]] = []

    def poll() -> None:
        try:
            reader.poll(60.0)
        except SettingsError as error:
            ended.append(type(error))

    thread = threading.Thread(target=poll)
    thread.start()
    time.sleep(0.1)
    reader.close()
    thread.join(30.0)
    assert ended == [SettingsError]
    log.close()


def test_the_thread_ends_with_the_last_reader_and_comes_back(log: SqliteLog, tmp_path: Path) -> None:
    def threads() -> int:
        return sum(thread.name == "sqlite-watch" for thread in threading.enumerate())

    before = threads()
    first, second = log.reader("media", {0: 0}), log.reader("other", {0: 0})
    assert threads() == before + 1
    first.close()
    second.close()
    deadline = time.monotonic() + 30.0
    while threads() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before
    again = log.reader("media", {0: 0})
    log.producer().send("media", partition=0, value=b"x").result()
    assert len(again.poll(30.0)) == 1
    log.close()


def test_a_file_that_cannot_be_read_leaves_it_to_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    path.write_bytes(b"no database" * 1000)
    watch = TopicWatch(path)
    watch.join()
    assert changes_after(watch, "media", 0, 0.3) == 0  # nothing is known to have changed
    watch.leave("media")
    assert watch.changes("media") == 1
