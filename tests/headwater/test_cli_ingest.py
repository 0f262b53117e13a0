"""Promises of `headwater ingest` as a process: exit codes, one line per mistake, and nothing lost when it is killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest

from contracts.errors import UnavailableError
from contracts.log import RecordPosition
from contracts.settings import load_settings
from headwater.wiring import open_engines
from ingest.ingest_run import JOURNAL_RECORDS, MAX_IN_FLIGHT_RECORDS
from ingest.producer import MediaProducer
from ingest.records import OutgoingRecord
from tests.headwater.conftest import Headwater

JPEG = b"\xff\xd8\xff" + b"j" * 30
ROOT = Path(__file__).parents[2]


def create(headwater: Headwater) -> None:
    assert headwater("collection", "create", "vecs", "--vector", "v:4", "--partitions", "2", "--attribute", "year:integer").code == 0


def stored_keys() -> Counter[str]:
    """Keys on the media topic with how often each is there, deletes left out."""
    keys: Counter[str] = Counter()
    with open_engines(load_settings()) as engines:
        for partition, held in engines.log.bounds("headwater.vecs.media").items():
            reader = engines.log.reader("headwater.vecs.media", {partition: held.start_offset})
            while sum(keys.values()) < 10**9 and reader.position(partition) < held.next_offset:
                keys.update((record.key or b"").decode() for record in reader.poll(5.0, 5000) if record.value is not None)
            reader.close()
    return keys


def process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from headwater.cli import main; main()", "ingest", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # noqa: TID251 - an environment for another process
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )


def interruptible() -> None:
    """Ctrl-C ends the process, also where these tests run in the background of a shell that has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (("none",), "none does not exist", "name a folder or a file"),
        (("m.csv",), "no column with anything to index", "the columns are id, path"),
        (("m.parquet",), "not a Parquet file", "written as Parquet"),
        (("m.tar",), "not a tar", "WebDataset"),
        (("notes.md",), "none of a picture", "manifests .csv"),
        ((".", "--captions", "none.csv"), "cannot be read", "--captions"),
        ((".", "--delete-missing"), "--delete-missing needs --watch", "add --watch"),
        (("-", "--watch"), "standard input cannot be watched", "leave --watch out"),
        (("good.csv", "--rejects", "no/such/folder"), "cannot be written", "--rejects"),
        (("good.csv", "good.csv"), "named twice", "once"),
    ],
)
def test_a_mistake_is_one_line_with_a_hint_and_exit_code_2(
    headwater: Headwater, workplace: Path, arguments: tuple[str, ...], says: str, hint: str
) -> None:
    create(headwater)
    (workplace / "m.csv").write_text("id,year\na,1\n")
    (workplace / "good.csv").write_text("id,text\na,x\n")
    (workplace / "m.parquet").write_bytes(b"no")
    (workplace / "m.tar").write_bytes(b"no")
    (workplace / "notes.md").write_text("no")
    ended = headwater("ingest", *arguments, "-c", "vecs")
    assert ended.code == 2
    error, line = ended.err.strip().splitlines()
    assert error.startswith("error: ")
    assert line.startswith("hint: ")
    assert (says in error, hint in line) == (True, True), ended.err
    assert stored_keys() == {}


def test_every_kind_of_input_in_one_command_is_counted_and_the_rejects_are_named(headwater: Headwater, workplace: Path) -> None:
    create(headwater)
    (workplace / "media").mkdir()
    (workplace / "media" / "a.jpg").write_bytes(JPEG)
    (workplace / "media" / "bad.txt").write_bytes(b"\xff")
    (workplace / "m.csv").write_text("id,text,year\nb,text,2020\nc,text,last\nd\n")
    (workplace / "m.jsonl").write_text('{"id": "e", "v": [1, 2, 3, 4]}\n{"id": "f", "v": [1]}\n')
    ended = headwater("ingest", "media", "m.csv", "m.jsonl", "-c", "vecs", "--rejects", "rejects.jsonl", "--json")
    assert ended.code == 1
    report = json.loads(ended.out)
    assert (report["items"], report["rejected"]) == (3, {"bad_text": 1, "bad_attributes": 1, "bad_row": 1, "bad_vector": 1})
    rejects = [json.loads(line) for line in (workplace / "rejects.jsonl").read_text().splitlines()]
    assert [(line["name"], line["reason"]) for line in rejects] == [
        ("media/bad.txt", "bad_text"),
        ("m.csv:3", "bad_attributes"),
        ("m.csv:4", "bad_row"),
        ("m.jsonl:2", "bad_vector"),
    ]
    assert report["first_rejected"] == rejects
    shown = headwater("ingest", "m.csv", "-c", "vecs")
    assert (shown.code, "1 items (1 records" in shown.out, "2 rejected" in shown.out) == (1, True, True)
    assert "rejected bad_row: m.csv:4: 1 columns, not 3" in shown.err


def test_a_file_name_that_is_no_text_is_rejected_and_can_be_shown(headwater: Headwater, workplace: Path) -> None:
    create(headwater)
    (workplace / "media").mkdir()
    (workplace / "media" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
    ended = headwater("ingest", "media", "-c", "vecs", "--json", "--rejects", "rejects.jsonl")
    (rejected,) = json.loads(ended.out)["first_rejected"]
    assert (ended.code, rejected["name"], rejected["reason"]) == (1, "media/caf\\udce9.jpg", "bad_id")
    assert json.loads((workplace / "rejects.jsonl").read_text()) == rejected
    assert headwater("ingest", "media", "-c", "vecs").code == 1


def test_records_come_through_a_pipe(headwater: Headwater, workplace: Path) -> None:
    create(headwater)
    running = process("-", "-c", "vecs", "--json")
    out, err = running.communicate("".join(json.dumps({"id": f"p{number}", "text": "x"}) + "\n" for number in range(100)), timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out)["items"] == 100
    assert len(stored_keys()) == 100


def log_size(path: Path) -> int:
    """Records in the SQLite log, read beside the process that writes them."""
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT coalesce(sum(next_offset), 0) FROM partitions").fetchone()[0])
    finally:
        connection.close()


def is_noted(cache: Path) -> bool:
    """Whether a journal says that something is acknowledged: a machine that is fast enough fills a share of the log before the first note."""
    return any('\n["' in path.read_text() for path in cache.rglob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["manifest", "folder"])
def test_an_ingest_that_is_killed_again_and_again_loses_nothing_and_repeats_little(headwater: Headwater, workplace: Path, kind: str) -> None:
    create(headwater)
    count = 15_000 if kind == "manifest" else 6_000
    source = workplace / ("m.jsonl" if kind == "manifest" else "media")
    if kind == "manifest":
        source.write_text("".join(json.dumps({"id": f"i{number}", "text": f"text {number} " + "x" * 200}) + "\n" for number in range(count)))
    else:
        source.mkdir()
        for number in range(count):
            (source / f"i{number}").write_bytes(JPEG + bytes(2000))
    killed, before = 0, 0
    for share in (0.2, 0.4, 0.6):
        running = process(str(source), "-c", "vecs")
        deadline = time.monotonic() + 60
        while running.poll() is None and not (
            log_size(workplace / "log.sqlite") >= max(before + count // 20, share * count) and is_noted(workplace / "cache")
        ):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        killed += running.returncode == -signal.SIGKILL
        before = log_size(workplace / "log.sqlite")
    assert killed == 3
    ended = headwater("ingest", str(source), "-c", "vecs", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["earlier"]["items"] > 0
    keys = stored_keys()
    assert set(keys) == {f"i{number}" for number in range(count)}
    repeated = sum(keys.values()) - count
    assert repeated <= killed * (MAX_IN_FLIGHT_RECORDS + JOURNAL_RECORDS + 1)


def test_the_rejects_of_an_interrupted_ingest_stay_in_the_file_and_a_finished_one_begins_it_anew(
    headwater: Headwater, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(headwater)
    (workplace / "m.jsonl").write_text('{"id": "a", "text": 1}\n{"id": "b", "text": "x"}\n{"id": "c", "text": "y"}\n{"id": "d", "text": 2}\n')
    command = ("ingest", "m.jsonl", "-c", "vecs", "--rejects", "rejects.jsonl")
    send = MediaProducer.send

    def away(producer: MediaProducer, record: OutgoingRecord, item_id: str) -> Future[RecordPosition]:
        if item_id == "c":
            raise UnavailableError("no broker")
        return send(producer, record, item_id)

    def rejected() -> list[str]:
        return [json.loads(line)["name"] for line in (workplace / "rejects.jsonl").read_text().splitlines()]

    with monkeypatch.context() as patched:
        patched.setattr(MediaProducer, "send", away)
        assert headwater(*command).code == 4
    assert rejected() == ["m.jsonl:1"]
    assert headwater(*command).code == 1
    assert rejected() == ["m.jsonl:1", "m.jsonl:4"]
    assert headwater(*command).code == 1  # the one before was finished: this one begins again
    assert rejected() == ["m.jsonl:1", "m.jsonl:4"]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(headwater: Headwater, workplace: Path) -> None:
    create(headwater)
    count = 15_000
    (workplace / "m.jsonl").write_text("".join(json.dumps({"id": f"i{number}", "text": "x" * 200}) + "\n" for number in range(count)))
    running = process("m.jsonl", "-c", "vecs")
    while log_size(workplace / "log.sqlite") < count // 5:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, "interrupted" in err, "Traceback" in err) == (130, True, False), err
    assert "items" in out
    report = json.loads(headwater("ingest", "m.jsonl", "-c", "vecs", "--json").out)
    assert report["items"] + report["earlier"]["items"] == count
    assert sum(stored_keys().values()) == count  # what was in flight was waited for: nothing twice


def test_a_watch_ends_in_order_on_sigterm(headwater: Headwater, workplace: Path) -> None:
    create(headwater)
    (workplace / "media").mkdir()
    (workplace / "media" / "a.jpg").write_bytes(JPEG)
    running = process("media", "-c", "vecs", "--watch", "--settle-seconds", "0.2", "--json")
    deadline = time.monotonic() + 60
    while log_size(workplace / "log.sqlite") < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, json.loads(out)["items"]) == (0, 1), err
    assert "watching media" in err
