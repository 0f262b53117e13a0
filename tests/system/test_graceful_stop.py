"""SIGTERM under load: every role ends in order within ten seconds, and what it was doing is neither lost nor done twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from tests.indexer.conftest import eventually, make_collection, produce
from tests.indexer.stored import read_partition
from tests.system.processes import role
from tests.system.sites import Site, open_site, unique

STOP_SECONDS = 10.0
QUICK = {"seal_seconds": 0.3, "archive_seconds": 0.5, "embed_watchdog_seconds": 0.5}


def stream(engines: Engines, collection: CollectionRecord, stop: threading.Event, sent: list[str]) -> None:
    while not stop.is_set():
        item_id = f"i{len(sent)}"
        produce(engines, collection, len(sent) % 2, [item_id])
        sent.append(item_id)
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.minio])])
def test_each_role_ends_in_order_within_ten_seconds_while_records_come(kind: str, tmp_path: Path) -> None:
    with open_site(kind, tmp_path, **QUICK) as site, site.engines() as engines:
        collection = make_collection(engines, unique("stop"), partitions=2)
        stop, sent = threading.Event(), list[str]()
        thread = threading.Thread(target=stream, args=(engines, collection, stop, sent))
        thread.start()
        took: dict[str, float] = {}
        try:
            for _ in range(2):
                for name in ("embed", "index", "archive", "query", "up"):
                    took[name] = max(took.get(name, 0.0), stopped_after(name, site))
        finally:
            stop.set()
            thread.join()
        assert max(took.values()) < STOP_SECONDS, took
        last = role("up", site)
        last.start()
        try:
            last.wait_ready()
            heads = {p: b.next_offset for p, b in engines.log.bounds(collection.source_topic).items()}
            eventually(lambda: all(read_partition(engines, collection, p).manifest.checkpoint.media_offset >= h for p, h in heads.items()), 60)
        finally:
            assert last.stop() == 0
        stored = [read_partition(engines, collection, partition) for partition in heads]
    assert sorted(item for one in stored for item in one.live) == sorted(sent) and all(one.is_tiled() for one in stored)


def stopped_after(name: str, site: Site) -> float:
    """Seconds from SIGTERM to the end of a role that works; it must end with exit code 0 and say so."""
    process = role(name, site)
    process.start()
    try:
        process.wait_ready()
        time.sleep(1.5)
        began = time.monotonic()
        assert process.stop(30.0) == 0, process.stderr()[-3000:]
        seconds = time.monotonic() - began
    finally:
        process.end()
    assert "stopped" in process.stderr().splitlines()[-1]
    return seconds
