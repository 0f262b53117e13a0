"""A record that ends the archiver again and again is archived unread, byte by byte, and costs nobody else anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.catalog.archive import ArchiveReader
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.settings import load_settings
from indexer import archive_care
from indexer.archive_worker import ArchiveWorker
from indexer.attempts import Attempts
from indexer.purge import Purge
from tests.indexer.archived import all_bytes, archived, logged, media, send
from tests.indexer.conftest import eventually, make_collection, running
from tests.indexer.test_archive import caught_up

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    return {"log_url": f"sqlite:///{tmp_path}/log.sqlite", "store_url": f"file:///{tmp_path}/store"}


@pytest.fixture
def embedded(places: dict[str, str]) -> Iterator[Engines]:
    settings = load_settings(**places, archive_seconds=0.2)
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


def live_once(collection: CollectionRecord, places: dict[str, str]) -> int:
    """One life of the archiver; its exit code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}  # noqa: TID251 - for another process
    variables = {f"HEADWATER_{name.upper()}": value for name, value in places.items()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.indexer.crashing_archiver", collection.name],
        cwd=ROOT,
        env=kept | variables | {"PYTHONPATH": str(ROOT), "HEADWATER_ARCHIVE_SECONDS": "0.2"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode <= 0, done.stderr.decode()[-3000:]
    return done.returncode


def attempts(engines: Engines, collection: CollectionRecord) -> Attempts:
    with closing(engines.log.group_reader(collection.source_topic, collection.archive_group)) as reader:
        committed = reader.committed(0)
    return Attempts() if committed is None else Attempts.from_metadata(committed.metadata)


@pytest.mark.slow
@pytest.mark.parametrize("before", [5, archive_care.CAREFUL_RECORDS + 40])
def test_a_record_that_kills_the_archiver_is_archived_unread_and_all_others_as_always(embedded: Engines, places: dict[str, str], before: int) -> None:
    collection = make_collection(embedded, "feed", partitions=1)
    send(embedded, collection, 0, [f"a{number}" for number in range(before)])
    (poison,) = send(embedded, collection, 0, ["poison"])
    send(embedded, collection, 0, [f"b{number}" for number in range(6)])
    codes = [live_once(collection, places)]
    while codes[-1] != 0 and len(codes) < 10:
        codes.append(live_once(collection, places))
    assert set(codes[:-1]) == {-signal.SIGKILL} and codes[-1] == 0 and 5 <= len(codes) <= 8
    assert archived(embedded, collection, 0) == logged(embedded, collection, 0), "byte by byte, the poison too"
    assert ArchiveReader(embedded.store).read(collection, 0, poison) is not None
    assert attempts(embedded, collection) == Attempts(), "nothing is left of it"


@pytest.mark.slow
def test_a_record_that_was_archived_unread_is_found_by_purge(embedded: Engines, places: dict[str, str]) -> None:
    collection = make_collection(embedded, "feed", partitions=1)
    send(embedded, collection, 0, ["poison"])
    codes = [live_once(collection, places)]
    while codes[-1] != 0 and len(codes) < 10:
        codes.append(live_once(collection, places))
    tars = f"c/feed-{collection.incarnation}/archive"
    assert media("poison") in all_bytes(embedded, tars)
    work = Purge(embedded, collection, ["poison"], lambda *told: None)
    work.run(work.find())
    assert media("poison") not in all_bytes(embedded, tars)


def test_an_archiver_that_ends_in_order_is_not_counted(embedded: Engines) -> None:
    collection = make_collection(embedded, "feed", partitions=1)
    slow = Engines(load_settings(log_url=embedded.settings.log_url, store_url=embedded.settings.store_url), embedded.log, embedded.store)
    for number in range(4):  # the first record lies in an open tar: the checkpoint does not move
        send(embedded, collection, 0, [f"a{number}"])
        worker = ArchiveWorker(slow, collection)
        with running(worker.run):
            eventually(lambda w=worker, n=number: bool(w.archivers) and w.archivers[0].next_offset == n + 1)  # type: ignore[misc]
            assert attempts(embedded, collection).attempts == 1
        assert attempts(embedded, collection) == Attempts()
    with running(ArchiveWorker(embedded, collection).run):
        eventually(lambda: caught_up(embedded, collection))
    assert archived(embedded, collection, 0) == logged(embedded, collection, 0)
