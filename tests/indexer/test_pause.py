"""A paused partition embeds nothing, tells its lag, and goes on where it stopped; skipped records are lost by name and nothing else is."""

from __future__ import annotations

import threading
import time

import pytest

from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError, SnapshotError
from indexer import embed_worker, role
from indexer.embed_role import run_embed
from indexer.index_role import run_index
from indexer.partition_source import PartitionSource
from indexer.skip import REASON, plan_skip, skip
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.2)
    monkeypatch.setattr(embed_worker, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(embed_worker, "STOPPED_SECONDS", 0.3)


def roles(engines: Engines) -> list[object]:
    return [lambda stop: run_embed(engines, None, stop), lambda stop: run_index(engines, None, stop)]


def embedded_to(engines: Engines, collection: CollectionRecord, partition: int) -> int:
    scan = PartitionSource(engines, collection, collection.index(), partition).chain_scan()
    end = scan.advance()
    scan.close()
    return end


def metric(engines: Engines, name: str, **labels: str) -> float | None:
    return engines.metrics.registry.get_sample_value(f"headwater_{name}", labels)


def lag_records(engines: Engines, partition: int) -> float | None:
    return metric(engines, "lag_records", collection="feed", stage="embed", partition=str(partition))


def lag_seconds(engines: Engines) -> float:
    return metric(engines, "lag_seconds", collection="feed", stage="embed") or 0.0


def test_a_pause_holds_one_partition_tells_its_lag_and_loses_nothing(engines: Engines, collection: CollectionRecord) -> None:
    catalog = CollectionCatalog(engines.store)
    with running(*roles(engines)):  # type: ignore[arg-type]
        for partition in (0, 1):
            produce(engines, collection, partition, [f"{partition}-before"])
        eventually(lambda: embedded_to(engines, collection, 0) == embedded_to(engines, collection, 1) == 1)
        paused = catalog.update(collection, paused_partitions=(1,))
        eventually(lambda: metric(engines, "paused_partitions", collection="feed", stage="embed") == 1)
        produced_at = time.monotonic()
        for partition in (0, 1):
            for number in range(3):
                produce(engines, collection, partition, [f"{partition}-{number}"])
        eventually(lambda: embedded_to(engines, collection, 0) == 4 and lag_records(engines, 1) == 3)
        eventually(lambda: lag_seconds(engines) > 0.5)
        assert lag_seconds(engines) <= time.monotonic() - produced_at
        assert embedded_to(engines, collection, 1) == 1 and lag_records(engines, 0) == 0
        catalog.update(paused, paused_partitions=())
        eventually(lambda: embedded_to(engines, collection, 1) == 4)
        eventually(lambda: lag_records(engines, 1) == 0 and lag_seconds(engines) == 0)
        eventually(lambda: read_partition(engines, collection, 1).manifest.checkpoint.media_offset == 4)
    stored = read_partition(engines, collection, 1)
    assert sorted(stored.live) == ["1-0", "1-1", "1-2", "1-before"] and stored.is_tiled()


def test_a_worker_that_starts_while_a_pause_lasts_tells_since_when_the_records_wait(engines: Engines, collection: CollectionRecord) -> None:
    CollectionCatalog(engines.store).update(collection, paused_partitions=(0, 1))
    produced_at = time.time()
    for _ in range(2):
        produce(engines, collection, 0, ["waiting"])
    time.sleep(1.0)  # by the log's own clock
    with running(*roles(engines)):  # type: ignore[arg-type]
        eventually(lambda: lag_records(engines, 0) == 2 and lag_seconds(engines) > 0)
        assert 1.0 <= lag_seconds(engines) <= time.time() - produced_at + 0.01  # the log's times are milliseconds
        assert embedded_to(engines, collection, 0) == 0


def test_what_waits_cannot_be_older_than_the_collection_whatever_a_producers_clock_says(engines: Engines, collection: CollectionRecord) -> None:
    producer = engines.log.producer()
    producer.send(collection.source_topic, partition=0, key=b"old", value=b"x", timestamp_ms=int((time.time() - 3 * 86400) * 1000))
    producer.close()
    CollectionCatalog(engines.store).update(collection, paused_partitions=(0, 1))
    with running(*roles(engines)):  # type: ignore[arg-type]
        eventually(lambda: lag_records(engines, 0) == 1 and lag_seconds(engines) > 0)
        assert lag_seconds(engines) < 60.0


def test_two_changes_of_a_collection_at_one_time_are_not_both_written(engines: Engines, collection: CollectionRecord) -> None:
    catalog = CollectionCatalog(engines.store)
    catalog.update(collection, paused_partitions=(0,))
    with pytest.raises(SnapshotError, match="changed by someone else"):
        catalog.update(collection, paused_partitions=(1,))
    assert catalog.get("feed").paused_partitions == (0,)


def test_skipped_records_are_lost_in_the_ledger_and_what_follows_is_indexed(engines: Engines, collection: CollectionRecord) -> None:
    catalog = CollectionCatalog(engines.store)
    paused = catalog.update(collection, paused_partitions=(0,))
    for number in range(6):
        produce(engines, collection, 0, [f"r{number}"])
    (planned,) = plan_skip(engines, paused, {0: 4})
    assert (planned.start_offset, planned.next_offset, planned.count, planned.in_log) == (0, 4, 4, 4)
    assert skip(engines, paused, planned) == planned
    assert plan_skip(engines, paused, {0: 4}) == [] and skip(engines, paused, planned) is None
    catalog.update(paused, paused_partitions=())
    with running(*roles(engines)):  # type: ignore[arg-type]
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 6)
    stored = read_partition(engines, collection, 0)
    assert sorted(stored.live) == ["r4", "r5"] and stored.is_tiled()
    first = stored.ledger[0]
    assert (first.start_offset, first.next_offset, first.verdict, first.reason, first.items) == (0, 4, "lost", REASON, 0)


def test_a_skip_past_the_topics_end_is_refused(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 0, ["only"])
    with pytest.raises(SettingsError, match="beyond the end"):
        plan_skip(engines, collection, {0: 2})


def test_a_running_worker_follows_a_skip_and_goes_on_behind_it(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 0, ["first"])
    with running(*roles(engines)):  # type: ignore[arg-type]
        eventually(lambda: embedded_to(engines, collection, 0) == 1)
        stop = threading.Event()

        def flood() -> None:
            number = 0
            while not stop.is_set():
                produce(engines, collection, 0, [f"f{number}"])
                number += 1

        thread = threading.Thread(target=flood)
        thread.start()
        taken: list[tuple[int, int]] = []
        for _ in range(20):  # against a worker that embeds all the time: both kinds of ends, and never a hole
            head = engines.log.bounds(collection.source_topic)[0].next_offset
            for planned in plan_skip(engines, collection, {0: head}):
                done = skip(engines, collection, planned)
                taken += [] if done is None else [(done.start_offset, done.next_offset)]
            time.sleep(0.05)
        stop.set()
        thread.join()
        head = engines.log.bounds(collection.source_topic)[0].next_offset
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == head, what="caught up behind the skips")
    stored = read_partition(engines, collection, 0)
    lost = {offset for run in stored.ledger if run.verdict == "lost" for offset in range(run.start_offset, run.next_offset)}
    assert stored.is_tiled() and lost == {offset for start, end in taken for offset in range(start, end)}
    assert len(stored.live) == head - len(lost)


def test_a_partition_whose_records_are_gone_goes_on_by_itself_after_the_skip(engines: Engines) -> None:
    collection = make_collection(engines, "feed", partitions=2)
    for number in range(4):
        produce(engines, collection, 0, [f"r{number}"])
    engines.log.truncate(collection.source_topic, {0: 3})  # retention was faster
    with running(*roles(engines)):  # type: ignore[arg-type]
        produce(engines, collection, 1, ["other"])
        eventually(lambda: embedded_to(engines, collection, 1) == 1, what="the other partition goes on")
        eventually(lambda: metric(engines, "records_total", collection="feed", stage="embed", outcome="stopped") == 1)
        (planned,) = plan_skip(engines, collection, {0: 3})
        assert (planned.count, planned.in_log) == (3, 0)
        skip(engines, collection, planned)
        eventually(lambda: embedded_to(engines, collection, 0) == 4)
        assert metric(engines, "records_total", collection="feed", stage="embed", outcome="stopped") == 1, "told once"


def test_records_that_go_while_a_worker_reads_stop_their_partition_and_not_the_process(engines: Engines, collection: CollectionRecord) -> None:
    with running(*roles(engines)):  # type: ignore[arg-type]
        produce(engines, collection, 0, ["r0"])
        eventually(lambda: embedded_to(engines, collection, 0) == 1)
        paused = CollectionCatalog(engines.store).update(collection, paused_partitions=(0,))
        eventually(lambda: metric(engines, "paused_partitions", collection="feed", stage="embed") == 1)
        for number in range(1, 4):
            produce(engines, collection, 0, [f"r{number}"])
        engines.log.truncate(collection.source_topic, {0: 3})
        CollectionCatalog(engines.store).update(paused, paused_partitions=())
        eventually(lambda: metric(engines, "records_total", collection="feed", stage="embed", outcome="stopped") == 1)
        (planned,) = plan_skip(engines, collection, {0: 3})
        skip(engines, collection, planned)
        eventually(lambda: embedded_to(engines, collection, 0) == 4)
