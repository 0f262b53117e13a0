"""The SQLite log between real processes, and what it says about files that are not logs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.memory_log import MemoryLog
from backends.open_log import open_log
from backends.sqlite_file import pack_headers, shared_file, sqlite_error, unpack_headers
from backends.sqlite_log import SqliteLog
from contracts.errors import CorruptError, HeadwaterError, NotFoundError, SettingsError, UnavailableError
from contracts.log import GroupReader, Log, TopicSpec
from contracts.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]

PRODUCE = """
import sys
from pathlib import Path
from backends.sqlite_log import SqliteLog
log = SqliteLog(Path(sys.argv[1]))
producer = log.producer()
acknowledged = -1
while True:
    futures = [producer.send("media", partition=n % 2, value=bytes(20_000), headers=[("n", b"x")]) for n in range(20)]
    acknowledged = max(future.result().offset for future in futures if future.result().partition == 0)
    print(acknowledged, flush=True)
"""

CONSUME = """
import sys, time
from pathlib import Path
from backends.sqlite_log import SqliteLog
log = SqliteLog(Path(sys.argv[1]), session_seconds=3.0)
reader = log.group_reader("media", "workers")
owned = set()
while True:
    reader.poll(0.1)
    changed = reader.take_assignment()
    if changed:
        owned = (owned - changed.revoked) | changed.assigned
        print(*sorted(owned), flush=True)
"""


def start(source: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", source, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)


def read_all(log: Log, topic: str) -> dict[int, list[int]]:
    bounds = log.bounds(topic)
    reader = log.reader(topic, {partition: held.start_offset for partition, held in bounds.items()})
    offsets: dict[int, list[int]] = {partition: [] for partition in bounds}
    while records := reader.poll(0.0):
        for record in records:
            assert len(record.value or b"") == 20_000
            offsets[record.partition].append(record.offset)
    reader.close()
    return offsets


def wait_until_owned(reader: GroupReader, owned: set[int], wanted: set[int]) -> None:
    deadline = time.monotonic() + 20
    while owned != wanted and time.monotonic() < deadline:
        reader.poll(0.1)
        changed = reader.take_assignment()
        if changed is not None:
            owned -= changed.revoked
            owned |= changed.assigned
    assert owned == wanted


def test_a_producer_killed_while_writing_leaves_every_acknowledged_record_and_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path)
    log.create_topic(TopicSpec("media", partitions=2, retention_ms=-1))
    process = start(PRODUCE, path)
    assert process.stdout is not None
    for _ in range(10):
        acknowledged = int(process.stdout.readline())
    kill(process)
    for line in process.stdout:  # what it still said before it died
        acknowledged = int(line)
    process.stdout.close()
    offsets = read_all(log, "media")
    bounds = log.bounds("media")
    for partition, found in offsets.items():
        assert found == list(range(bounds[partition].next_offset))
    assert bounds[0].next_offset > acknowledged
    producer = log.producer()
    position = producer.send("media", partition=0, value=bytes(20_000)).result(10)
    assert position.offset == bounds[0].next_offset
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    log.close()


def test_members_in_two_processes_share_the_partitions_and_take_over_from_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path, session_seconds=3.0)
    log.create_topic(TopicSpec("media", partitions=4, retention_ms=-1))
    reader = log.group_reader("media", "workers")
    owned: set[int] = set()
    wait_until_owned(reader, owned, {0, 1, 2, 3})
    process = start(CONSUME, path)
    assert process.stdout is not None
    theirs = {int(number) for number in process.stdout.readline().split()}
    wait_until_owned(reader, owned, {0, 1, 2, 3} - theirs)
    assert len(theirs) == len(owned) == 2
    kill(process)
    process.stdout.close()
    begun = time.monotonic()
    wait_until_owned(reader, owned, {0, 1, 2, 3})
    assert time.monotonic() - begun < 20
    log.close()


def test_a_reader_sees_another_process_s_records_within_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path)
    log.create_topic(TopicSpec("media", partitions=2, retention_ms=-1))
    reader = log.reader("media", {0: 0})
    process = start(PRODUCE, path)
    delays = []
    deadline = time.monotonic() + 20
    while len(delays) < 30 and time.monotonic() < deadline:
        records = reader.poll(1.0)
        now_ms = time.time() * 1000
        delays += [now_ms - record.timestamp_ms for record in records[-1:]]  # of each poll the newest: the others may have waited while nobody polled
    kill(process)
    assert process.stdout is not None
    process.stdout.close()
    assert sorted(delays)[len(delays) // 2] < 250  # on a busy machine; a few milliseconds on an idle one
    log.close()


def last_beats(path: Path) -> list[float]:
    connection = sqlite3.connect(path)
    beats = [seconds for (seconds,) in connection.execute("SELECT seen_seconds FROM members")]
    connection.close()
    return beats


def test_a_member_that_is_busy_keeps_its_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("backends.sqlite_group.time", SimpleNamespace(monotonic=lambda: now[0]))
    log = SqliteLog(tmp_path / "log.sqlite", session_seconds=0.6)
    log.create_topic(TopicSpec("media", partitions=2, retention_ms=-1))
    first, second = log.group_reader("media", "g"), log.group_reader("media", "g")
    mine: set[int] = set()
    deadline = time.monotonic() + 30
    while len(mine) != 1 and time.monotonic() < deadline:
        first.poll(0.1)
        changed = first.take_assignment()
        if changed is not None:
            mine = (mine - changed.revoked) | changed.assigned
    for _ in range(6):  # more than two sessions without a poll of either, by a clock that waits for both of their hearts
        now[0] += 0.25
        deadline = time.monotonic() + 20
        while last_beats(tmp_path / "log.sqlite") != [now[0]] * 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    first.poll(0.6)
    assert first.take_assignment() is None
    second.poll(0.6)
    changed = second.take_assignment()
    assert changed is not None
    assert changed.assigned == {0, 1} - mine
    log.close()


def test_records_past_their_retention_go_and_others_stay(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.sqlite", retention_check_seconds=0.0)
    log.create_topic(TopicSpec("short", partitions=1, retention_ms=60_000))
    log.create_topic(TopicSpec("kept", partitions=1, retention_ms=-1))
    producer = log.producer()
    old_ms = int(time.time() * 1000) - 120_000
    for topic in ("short", "kept"):
        for _ in range(3):
            producer.send(topic, partition=0, value=b"old", timestamp_ms=old_ms)
        producer.send(topic, partition=0, value=b"new")
    producer.flush(10)
    producer.send("short", partition=0, value=b"newer").result(10)
    producer.close()
    assert (log.bounds("short")[0].start_offset, log.bounds("short")[0].next_offset) == (3, 5)
    assert (log.bounds("kept")[0].start_offset, log.bounds("kept")[0].next_offset) == (0, 4)
    log.close()


def test_the_log_survives_being_closed_and_opened(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.sqlite")
    topic = log.create_topic(TopicSpec("media", partitions=1, retention_ms=-1))
    producer = log.producer()
    producer.send("media", partition=0, value=b"x").result(10)
    cluster = log.cluster_id()
    log.close()
    again = SqliteLog(tmp_path / "log.sqlite")
    assert again.cluster_id() == cluster
    assert again.describe_topic("media") == topic
    record = again.read_at("media", 0, 0)
    assert record is not None
    assert record.value == b"x"
    again.close()
    with pytest.raises(SettingsError, match="closed"):
        again.cluster_id()


def test_a_send_to_a_topic_that_was_deleted_meanwhile_fails_and_the_next_topic_works(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.sqlite")
    spec = TopicSpec("media", partitions=1, retention_ms=-1)
    log.create_topic(spec)
    producer = log.producer()
    producer.send("media", partition=0, value=b"x").result(10)
    log.delete_topic("media")
    with pytest.raises(NotFoundError):
        producer.send("media", partition=0, value=b"x").result(10)
    log.create_topic(spec)
    assert producer.send("media", partition=0, value=b"x").result(10).offset == 0
    log.close()


def test_a_file_that_is_not_a_database_is_corrupt_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "picture.sqlite"
    path.write_bytes(b"\xff\xd8\xff" + bytes(5000))
    with pytest.raises(CorruptError, match=r"picture\.sqlite"):
        SqliteLog(path)
    assert path.read_bytes() == b"\xff\xd8\xff" + bytes(5000)


def test_another_program_s_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE contacts (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SettingsError, match="another program"):
        SqliteLog(path)
    assert path.read_bytes() == before


def test_a_log_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    SqliteLog(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SettingsError, match="format 99"):
        SqliteLog(path)


def test_a_folder_that_cannot_be_made_is_a_setting_to_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be made"):
        SqliteLog(tmp_path / "file" / "log.sqlite")


def test_a_lock_held_by_another_process_is_told_as_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path, lock_seconds=0.2)
    log.create_topic(TopicSpec("media", partitions=1, retention_ms=-1))
    producer = log.producer()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        producer.send("media", partition=0, value=b"x").result(10)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert producer.send("media", partition=0, value=b"x").result(10).offset == 0  # nothing of the first was stored
    log.close()


def test_a_full_disk_fails_the_send_and_later_ones_succeed(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = SqliteLog(path)
    log.create_topic(TopicSpec("media", partitions=1, retention_ms=-1))
    producer = log.producer()
    pages = producer._connection.execute("PRAGMA page_count").fetchone()[0]
    producer._connection.execute(f"PRAGMA max_page_count={pages + 2}")  # SQLite's own way to a full disk
    with pytest.raises(UnavailableError, match="disk is full"):
        producer.send("media", partition=0, value=bytes(1_000_000)).result(10)
    producer._connection.execute("PRAGMA max_page_count=1000000")
    assert producer.send("media", partition=0, value=bytes(1_000_000)).result(10).offset == 0
    log.close()


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        (sqlite3.SQLITE_BUSY, UnavailableError),
        (sqlite3.SQLITE_FULL, UnavailableError),
        (sqlite3.SQLITE_IOERR_WRITE, UnavailableError),
        (sqlite3.SQLITE_READONLY_DBMOVED, SettingsError),
        (sqlite3.SQLITE_CANTOPEN, SettingsError),
        (sqlite3.SQLITE_CORRUPT, CorruptError),
        (sqlite3.SQLITE_NOTADB, CorruptError),
    ],
)
def test_sqlite_s_codes_mean_what_the_caller_must_do(code: int, ours: type[HeadwaterError]) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    told = sqlite_error(error, Path("/data/log.sqlite"))
    assert type(told) is ours
    assert "/data/log.sqlite" in str(told)
    assert told.hint


def test_headers_survive_packing() -> None:
    headers = (("content-type", b"image/jpeg"), ("ü", b""), ("", b"\x00" * 70_000))
    assert unpack_headers(pack_headers(headers)) == headers
    assert unpack_headers(pack_headers(())) == ()


def test_handles_of_one_file_share_their_locks(tmp_path: Path) -> None:
    assert shared_file(tmp_path / "a") is shared_file(tmp_path / "a")
    assert shared_file(tmp_path / "a") is not shared_file(tmp_path / "b")


def test_memory_logs_are_shared_by_name_and_private_without_one() -> None:
    first, second = MemoryLog("shared-name"), MemoryLog("shared-name")
    first.create_topic(TopicSpec("media", partitions=1, retention_ms=-1))
    assert list(second.list_topics()) == ["media"]
    assert list(MemoryLog().list_topics()) == []
    first.delete_topic("media")


@pytest.mark.parametrize("url", ["", "log.sqlite", "sqlite://log.sqlite", "sqlite:///", "redis://host:1", "kafka:host:1"])
def test_a_url_that_names_no_log_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="log_url") as caught:
        open_log(load_settings(log_url=url))
    assert "sqlite:///PATH" in caught.value.hint


def test_a_relative_sqlite_url_lies_under_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = open_log(load_settings(log_url="sqlite:///headwater-data/log.sqlite"))
    log.close()
    assert (tmp_path / "headwater-data" / "log.sqlite").exists()
