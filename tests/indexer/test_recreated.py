"""A collection deleted and created again under the same name: what old workers still write reaches neither its index nor its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from backends.catalog.admin import delete_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import DataLossError
from indexer import role
from indexer.archive_role import run_archive
from indexer.decode import Decoder
from indexer.embed_role import run_embed
from indexer.index_role import run_index
from indexer.partition_archiver import PartitionArchiver
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.publish import Publisher
from indexer.slices import FetchedSlice
from indexer.ulids import UlidSource
from query import discovery
from query.discovery import Collections
from tests.indexer.archived import head as archive_head
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition
from tests.query.conftest import ids_of


@pytest.fixture
def engines(engines: Engines) -> Engines:
    return replace(engines, settings=engines.settings.model_copy(update={"archive_seconds": 0.2}))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.2)
    monkeypatch.setattr(discovery, "DISCOVERY_SECONDS", 0.1)


def work(engines: Engines) -> Sequence[Any]:
    return [
        lambda stop: run_embed(engines, None, stop),
        lambda stop: run_index(engines, None, stop),
        lambda stop: run_archive(engines, None, stop),
    ]


def zombie_slice(engines: Engines, old: CollectionRecord) -> FetchedSlice:
    record = engines.log.read_at(old.source_topic, 0, 0)
    assert record is not None
    return FetchedSlice(0, 1, 0, 1, [record])


def test_what_zombies_of_the_old_incarnation_write_changes_nothing(engines: Engines) -> None:
    old = make_collection(engines, "feed", partitions=1)
    produce(engines, old, 0, ["of the old one"])
    slow = zombie_slice(engines, old)  # fetched, then the process stands still
    builder = PartitionBuilder(PartitionSource(engines, old, old.index(), 0), "zombie", UlidSource())
    builder.start()
    archiver = PartitionArchiver(engines, old, 0, "zombie", UlidSource())
    archiver.start()
    delete_collection(engines, "feed")
    new = make_collection(engines, "feed", partitions=1)
    assert new.incarnation != old.incarnation and new.source_topic == old.source_topic

    publisher = Publisher(engines, old, old.index(), lambda error: None)  # wakes up, and writes to the topics of the same names
    decoder = Decoder(old, old.index(), None, engines.settings, engines.store, None)  # type: ignore[arg-type]
    for _ in range(2):
        publisher.publish(decoder.decode(slow))
    publisher.producer.flush(10)
    publisher.close()
    before = engines.log.bounds(new.index().vectors_topic)[0].next_offset
    assert before == 2, "its batches lie in front of everything"

    collections = Collections(engines)
    collections.start()
    with running(*work(engines)):
        produce(engines, new, 0, ["of the new one"])
        eventually(lambda: sorted(read_partition(engines, new, 0).live) == ["of the new one"])
        eventually(lambda: collections.ready and bool(collections.views()))
        eventually(lambda: ids_of(collections.get("feed").snapshot()) == ["of the new one"])
        for record in (engines.log.read_at(new.index().vectors_topic, 0, offset) for offset in range(before)):
            assert record is not None
            builder.feed(record)  # the zombie reads its own batches and commits them, where nobody looks
        builder.commit()
        archiver.feed(slow.records[0])
        archiver.close()
        archiver.commit()
        produce(engines, new, 0, ["more of the new one"])
        eventually(lambda: sorted(read_partition(engines, new, 0).live) == ["more of the new one", "of the new one"])
        eventually(lambda: archive_head(engines, new, 0).checkpoint.media_offset >= 1, 20)
    collections.stop()
    stored = read_partition(engines, new, 0)
    assert stored.is_tiled() and stored.manifest.origin_offset == 0
    assert sorted(read_partition(engines, old, 0).live) == ["of the old one"], "under its own prefix"
    assert {tar.key.split("/")[1] for tar in archive_head(engines, new, 0).tars} <= {f"feed-{new.incarnation}"}


def test_an_old_worker_that_starts_again_on_the_new_topics_refuses_them(engines: Engines) -> None:
    old = make_collection(engines, "feed", partitions=1)
    delete_collection(engines, "feed")
    make_collection(engines, "feed", partitions=1)
    with pytest.raises(DataLossError, match="was written for"):
        PartitionBuilder(PartitionSource(engines, old, old.index(), 0), "zombie", UlidSource()).start()
    with pytest.raises(DataLossError):
        PartitionArchiver(engines, old, 0, "zombie", UlidSource()).start()


def test_roles_that_run_all_the_time_let_go_of_the_old_one_and_take_the_new_one_up(engines: Engines) -> None:
    old = make_collection(engines, "feed", partitions=2)
    collections = Collections(engines)
    collections.start()
    with running(*work(engines)):
        for turn in range(3):
            for partition in (0, 1):
                produce(engines, old, partition, [f"{turn}-{partition}"])
            eventually(lambda c=old, t=turn: [sorted(read_partition(engines, c, p).live) for p in (0, 1)] == [[f"{t}-0"], [f"{t}-1"]])  # type: ignore[misc]
            eventually(lambda: collections.ready and bool(collections.views()))
            eventually(lambda t=turn: ids_of(collections.get("feed").snapshot()) == [f"{t}-0", f"{t}-1"])  # type: ignore[misc]
            delete_collection(engines, "feed")
            old = make_collection(engines, "feed", partitions=2)
    collections.stop()
