"""The doctor warns before retention takes what is not archived, and tells when it did."""

from __future__ import annotations

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.engines import Engines
from contracts.settings import load_settings
from headwater.doctor_archive import archive_findings
from tests.indexer.archived import send
from tests.indexer.conftest import make_collection
from tests.indexer.test_purge import archive_all


def test_the_doctor_tells_of_an_archive_that_falls_behind_retention_and_of_what_was_lost() -> None:
    engines = Engines(load_settings(log_url="memory://", store_url="memory://"), MemoryLog(), MemoryStore())
    collection = make_collection(engines, "feed", partitions=1)

    def told(retention_seconds: float | None) -> list[tuple[str, str]]:
        return [(level, message) for level, message, _ in archive_findings(engines.log, engines.store, collection, retention_seconds)]

    assert told(1.0) == [("ok", "feed: 0 records wait for their tar")]
    send(engines, collection, 0, ["a", "b"])
    assert told(None) == told(10_000.0) == [("ok", "feed: 2 records wait for their tar")]
    ((level, message),) = told(0.0)
    assert level == "warn" and "2 records are not archived" in message
    archive_all(engines, collection)
    assert told(0.0) == [("ok", "feed: 0 records wait for their tar")]
    send(engines, collection, 0, ["c", "d"])
    engines.log.truncate(collection.source_topic, {0: 3})
    assert told(None) == [("warn", "feed: retention took 1 offsets before they were archived")]
    archive_all(engines, collection)
    assert told(None) == [("warn", "feed: retention took 1 offsets before they were archived")]
