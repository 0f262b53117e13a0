"""A builder whose commit stays open goes on reading; nothing that it reads meanwhile is lost when the commit lands."""

from __future__ import annotations

import pytest
from ulid import ULID

from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.settings import load_settings
from contracts.store import PutOutcome
from contracts.vectors_batch import BatchItem
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.maintained import Site, unit
from tests.indexer.stored import read_partition


class Mute(MemoryStore):
    """Does not say what becomes of a manifest while `mute`; stores it or not."""

    mute = False
    stores = False

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if self.mute and "/manifest/" in key:
            if self.stores:
                super().put_if_absent(key, data)
            return PutOutcome.UNKNOWN
        return super().put_if_absent(key, data)

    def get(self, key: str):  # type: ignore[no-untyped-def]
        if self.mute and "/manifest/" in key:
            raise UnavailableError("the store is away")
        return super().get(key)


@pytest.mark.parametrize("stores", [True, False])
def test_rows_that_arrive_while_a_commit_is_open_are_in_the_next_segment(stores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from indexer.embed_worker import EmbedWorker

    monkeypatch.setattr("backends.catalog.manifests.time.sleep", lambda seconds: None)
    store = Mute()
    engines = Engines(load_settings(log_url="memory://", store_url="memory://"), MemoryLog(), store)
    collection = make_collection(engines, "feed", partitions=1)
    index = collection.index()
    topic = index.vectors_topic
    builder = PartitionBuilder(PartitionSource(engines, collection, index, 0), f"builder-{ULID()}", UlidSource())
    at = builder.start()
    with running(EmbedWorker(engines, collection, index, None).run):

        def feed(item_id: str) -> None:
            nonlocal at
            end = engines.log.bounds(topic)[0].next_offset
            produce(engines, collection, 0, [item_id])
            eventually(lambda: engines.log.bounds(topic)[0].next_offset > end, what="embedded")
            while at < engines.log.bounds(topic)[0].next_offset:
                record = engines.log.read_at(topic, 0, at)
                assert record is not None
                builder.feed(record)
                at += 1

        feed("first")
        store.mute, store.stores = True, stores
        with pytest.raises(UnavailableError):
            builder.commit()
        feed("second")
        store.mute = False
        assert builder.commit() is not None
        feed("third")
        while builder.growing is not None or builder.pending is not None:
            builder.commit()
    stored = read_partition(engines, collection, 0)
    assert set(stored.live) == {"first", "second", "third"} and stored.is_tiled()
    assert stored.manifest.checkpoint.media_offset == 3


def test_what_a_builder_has_written_it_does_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    site, read = Site(), list[str]()
    for reading in ("get", "get_range"):
        whole = getattr(site.store, reading)
        monkeypatch.setattr(site.store, reading, lambda key, *rest, whole=whole: (read.append(key), whole(key, *rest))[1])
    for number in range(4):
        site.commit(*(BatchItem(0, 0, "upsert", item_id, vectors={"vec": unit(item_id)}) for item_id in (f"id-{number}", "again")))
    assert not [key for key in read if key.endswith(".rows")]
    assert set(site.check().live) == {"id-0", "id-1", "id-2", "id-3", "again"}
    deleted = [len(site.builder.live.deleted(segment.segment_id)) for segment in site.builder.manifest.segments]
    assert deleted[:2] == [1, 1], "a newer row replaces the older one, whose ids were kept"
