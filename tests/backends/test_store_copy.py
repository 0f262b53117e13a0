"""Copies of a store: the order, interruptions, and a collector that is faster."""

from __future__ import annotations

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.manifests import ManifestChain
from backends.catalog.store_copy import copy_store, named_keys
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, SnapshotError, UnavailableError
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from contracts.store import PutOutcome, StoredObject
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition

SETTINGS = {"log_url": "memory://", "store_url": "memory://", "seal_seconds": 0.05, "embed_watchdog_seconds": 0.2}


def engines_over(store: MemoryStore, log: MemoryLog | None = None) -> Engines:
    return Engines(load_settings(**SETTINGS), log or MemoryLog(), store)


def build(engines: Engines, collection: CollectionRecord, ids: list[str]) -> None:
    with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
        for item_id in ids:
            offset = produce(engines, collection, 0, [item_id])
            eventually(lambda o=offset: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == o + 1)  # type: ignore[misc]


class Recording(MemoryStore):
    """Notes the order in which keys were created, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[str] = []
        self.most = 10**9

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        if len(self.created) >= self.most:
            raise UnavailableError("cut short")
        outcome = super().put_if_absent(key, data)
        self.created += [key] if outcome is PutOutcome.CREATED else []
        return outcome


def test_a_copy_that_is_cut_short_anywhere_names_nothing_that_is_missing_in_it() -> None:
    engines = engines_over(MemoryStore())
    collection = make_collection(engines, "feed", partitions=1)
    build(engines, collection, ["a", "b", "c"])
    whole = Recording()
    report = copy_store(engines.store, whole)
    assert report.copied == len(whole.created) == len(list(engines.store.list("")))
    for most in range(report.copied):
        cut = Recording()
        cut.most = most
        with pytest.raises(UnavailableError):
            copy_store(engines.store, cut)
        chain = ManifestChain(cut, CollectionKeys(collection.name, collection.incarnation).index("main").partition(0))
        read = chain.head()
        if read is not None:
            read_partition(engines_over(cut), collection, 0)
        cut.most = 10**9
        copy_store(engines.store, cut)
        assert {i.key: i.size_bytes for i in cut.list("")} == {i.key: i.size_bytes for i in engines.store.list("")}


class Cleaned(MemoryStore):
    """As if compaction and collection took an object away as soon as the copy had listed it."""

    victim = ""

    def get(self, key: str) -> StoredObject | None:
        return None if key == self.victim else super().get(key)


def test_a_copy_that_lost_the_race_against_the_collector_is_no_copy_and_says_so() -> None:
    store = Cleaned()
    engines = engines_over(store)
    collection = make_collection(engines, "feed", partitions=1)
    build(engines, collection, ["a"])
    manifest = read_partition(engines, collection, 0).manifest
    target = MemoryStore()
    store.victim = manifest.segments[0].parts["rows"].key
    with pytest.raises(SnapshotError, match="was cleaned up while it was copied"):
        copy_store(store, target)
    assert list(target.list("n/")) == [], "the copy is not named"
    store.victim = ""
    copy_store(store, target)
    assert sorted(read_partition(engines_over(target), collection, 0).live) == ["a"]


def test_a_boundary_is_never_above_the_manifests_of_the_copy() -> None:
    engines = engines_over(MemoryStore())
    collection = make_collection(engines, "feed", partitions=1)
    build(engines, collection, ["a", "b"])
    keys = CollectionKeys(collection.name, collection.incarnation).index("main").partition(0)
    engines.store.compare_and_swap(keys.boundary, b"2", None)
    target = MemoryStore()
    copy_store(engines.store, target)
    assert ManifestChain(target, keys).boundary() == 2
    found = target.get(keys.boundary)
    engines.store.compare_and_swap(keys.boundary, b"3", engines.store.get(keys.boundary).etag)  # type: ignore[union-attr]
    copy_store(engines.store, target)
    assert found is not None and ManifestChain(target, keys).boundary() == 3


def test_a_store_of_something_else_is_no_target() -> None:
    one, other = engines_over(MemoryStore()), MemoryStore()
    make_collection(one, "feed", partitions=1)
    copy_store(one.store, other)
    two = engines_over(MemoryStore(), MemoryLog())
    make_collection(two, "feed", partitions=1)
    with pytest.raises(CorruptError, match="the target holds other bytes"):
        copy_store(two.store, other)


def test_strange_objects_beside_ours_stay_where_they_are() -> None:
    engines = engines_over(MemoryStore())
    create_collection(engines, CollectionRequest("feed", make_collection(engines_over(MemoryStore()), "x").index().fields, 1))
    engines.store.put_if_absent("doctor/leftover", b"x")
    engines.store.put_if_absent("notes.txt", b"x")
    target = MemoryStore()
    copy_store(engines.store, target)
    assert not {"doctor/leftover", "notes.txt"} & {info.key for info in target.list("")}


def test_every_key_of_a_manifest_is_found() -> None:
    value = {"segments": [{"parts": {"rows": {"key": "a"}, "field.v": {"key": "b"}}}], "ledger": [{"object": {"key": "c"}}], "tars": [{"key": "d"}]}
    assert sorted(named_keys(value)) == ["a", "b", "c", "d"]
