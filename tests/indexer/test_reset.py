"""Another index from an earlier offset: built beside the one that answers, under a stream, switched to and back without a gap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.catalog.collections import CollectionCatalog
from backends.catalog.indexes import add_index, drop_index, switch_index
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from indexer import role
from indexer.embed_role import run_embed
from indexer.index_role import run_index
from indexer.reset import PlannedReset, catch_up, plan_reset
from query import discovery
from query.discovery import Collections
from tests.indexer.conftest import delete, eventually, produce, running
from tests.indexer.stored import read_partition
from tests.query.conftest import ids_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.2)
    monkeypatch.setattr(discovery, "DISCOVERY_SECONDS", 0.1)


def work(engines: Engines) -> list[object]:
    return [lambda stop: run_embed(engines, None, stop), lambda stop: run_index(engines, None, stop)]


@contextmanager
def serving(engines: Engines) -> Iterator[Collections]:
    collections = Collections(engines)
    collections.start()
    try:
        eventually(lambda: collections.ready and bool(collections.views()))
        yield collections
    finally:
        collections.stop()


def found(collections: Collections) -> list[str]:
    return ids_of(collections.get("feed").snapshot())


def served_index(collections: Collections) -> str:
    return collections.get("feed").index.name


def origins(planned: list[PlannedReset]) -> dict[int, int]:
    return {one.partition: one.origin_offset for one in planned}


def test_a_reset_under_a_stream_switches_without_a_gap_and_goes_back(engines: Engines, collection: CollectionRecord) -> None:
    catalog = CollectionCatalog(engines.store)
    for number in range(10):
        produce(engines, collection, number % 2, [f"r{number}"])
    delete(engines, collection, 0, "r0")
    stop, sent, missed = threading.Event(), [f"r{number}" for number in range(1, 10)], []

    def stream() -> None:
        number = 10
        while not stop.is_set():
            produce(engines, collection, number % 2, [f"r{number}"])
            sent.append(f"r{number}")
            number += 1
            time.sleep(0.005)

    def ask(collections: Collections) -> None:
        known = set(found(collections))
        while not stop.is_set():
            now = set(found(collections))
            missed.extend(known - now)
            known |= now
            time.sleep(0.002)

    with running(*work(engines)), serving(engines) as collections:  # type: ignore[arg-type]
        eventually(lambda: found(collections) == sorted(sent))
        threads = [threading.Thread(target=stream), threading.Thread(target=ask, args=(collections,))]
        for thread in threads:
            thread.start()
        planned = plan_reset(engines, collection, {0: 0, 1: 0})
        assert origins(planned) == {0: 0, 1: 0} and all(one.left_out_rows == 0 for one in planned)
        begun = add_index(engines, collection, origins(planned))
        name = begun.indexes[-1].name
        eventually(lambda: catch_up(engines, begun, name).is_complete)
        switched = switch_index(engines, begun, name)
        eventually(lambda: served_index(collections) == name)
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        assert missed == [], "an id that was found was not found later"
        eventually(lambda: found(collections) == sorted(sent))
        back = switch_index(engines, switched, "main")
        eventually(lambda: served_index(collections) == "main")
        eventually(lambda: found(collections) == sorted(sent))
        again = switch_index(engines, back, name)
        dropped = drop_index(engines, again, "main")
        assert [index.name for index in dropped.indexes] == [name] and engines.log.describe_topic("headwater.feed.main.vectors") is None
        eventually(lambda: served_index(collections) == name)
        produce(engines, collection, 0, ["last"])
        eventually(lambda: found(collections) == sorted([*sent, "last"]))
        head = engines.log.bounds(collection.source_topic)[0].next_offset
        eventually(lambda: read_partition(engines, catalog.get("feed"), 0).manifest.checkpoint.media_offset == head)
    assert read_partition(engines, catalog.get("feed"), 0).is_tiled()


def test_a_later_origin_leaves_out_what_was_not_sent_again_and_says_how_much(engines: Engines, collection: CollectionRecord) -> None:
    with running(*work(engines)):  # type: ignore[arg-type]
        for number in range(3):
            produce(engines, collection, 0, [f"r{number}"])
            eventually(lambda n=number + 1: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == n)  # type: ignore[misc]
        produce(engines, collection, 0, ["r0"])
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 4)
        planned = plan_reset(engines, collection, {0: 2})
        assert planned == [PlannedReset(0, 2, 4, 2), PlannedReset(1, 0, 0, 0)]
        begun = add_index(engines, collection, origins(planned))
        name = begun.indexes[-1].name
        eventually(lambda: catch_up(engines, begun, name).is_complete)
        switched = switch_index(engines, begun, name)
        eventually(lambda: sorted(read_partition(engines, switched, 0).live) == ["r0", "r2"])
    manifest = read_partition(engines, switched, 0).manifest
    assert (manifest.origin_offset, manifest.checkpoint.media_offset) == (2, 4)


def test_what_is_gone_or_not_embedded_yet_is_no_target_and_there_are_two_indexes_at_most(engines: Engines, collection: CollectionRecord) -> None:
    with running(*work(engines)):  # type: ignore[arg-type]
        for number in range(4):
            produce(engines, collection, 0, [f"r{number}"])
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 4)
    engines.log.truncate(collection.source_topic, {0: 2})
    with pytest.raises(SettingsError, match="offset 1 is gone, the topic begins at 2"):
        plan_reset(engines, collection, {0: 1})
    with pytest.raises(SettingsError, match="offset 0 is gone"):
        plan_reset(engines, collection, {1: 0})  # partition 0 would begin where the old index began
    with pytest.raises(SettingsError, match="offset 5 is not embedded yet"):
        plan_reset(engines, collection, {0: 5})
    begun = add_index(engines, collection, {0: 2, 1: 0})
    with pytest.raises(SettingsError, match="has another index already"):
        add_index(engines, begun, {0: 2, 1: 0})
    with pytest.raises(NotFoundError, match="it has|has no index"):
        switch_index(engines, begun, "other")
    with pytest.raises(SettingsError, match="is the one that answers"):
        drop_index(engines, begun, "main")
    found = catch_up(engines, begun, begun.indexes[-1].name)
    assert (found.done, found.total, found.is_complete) == (0, 2, False)
