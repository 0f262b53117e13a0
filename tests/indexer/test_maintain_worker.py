"""The maintain role beside builders on a shared log: everything at once, and then a purge whose bytes are nowhere in the store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.object_keys import CollectionKeys
from indexer.archive_worker import ArchiveWorker
from indexer.build_worker import BuildWorker
from indexer.compactor import PartitionCompactor
from indexer.embed_worker import EmbedWorker
from indexer.garbage import named_by
from indexer.index_codecs import IndexCodecs
from indexer.maintain_worker import MaintainWorker
from indexer.partition_source import PartitionSource
from indexer.purge import Purge
from indexer.ulids import UlidSource
from tests.indexer.conftest import delete, engines_on, eventually, make_collection, produce, running
from tests.indexer.stored import read_partition
from tests.system.sites import unique

QUICK = {"seal_seconds": 0.1, "embed_watchdog_seconds": 0.5, "archive_seconds": 0.5, "maintain_seconds": 0.1, "gc_seconds": 0.3, "compact_fan_in": 3}


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.minio])])
def engines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engines]:
    with engines_on(request.param, tmp_path, **QUICK) as made:
        yield made


def new_collection(engines: Engines) -> CollectionRecord:
    return make_collection(engines, unique("feed"), partitions=2)


def head(engines: Engines, collection: CollectionRecord, partition: int):  # type: ignore[no-untyped-def]
    keys = CollectionKeys(collection.name, collection.incarnation).index("main").partition(partition)
    read = ManifestChain(engines.store, keys).head()
    assert read is not None
    return keys, read.manifest


def left_over(engines: Engines, collection: CollectionRecord) -> set[str]:
    """Objects of the index that the newest manifests do not name, and older manifests."""
    out: set[str] = set()
    for partition in range(collection.partitions):
        keys, manifest = head(engines, collection, partition)
        named = {*named_by(manifest), keys.manifest(manifest.version), keys.boundary}
        out |= {info.key for info in engines.store.list(keys.prefix)} - named
    return out


def store_bytes(engines: Engines) -> bytes:
    """All objects, and what Arrow would show of those that it compresses."""
    return b"\n".join(found.data for info in engines.store.list("") if (found := engines.store.get(info.key)) is not None)


def workers(engines: Engines, collection: CollectionRecord) -> list:  # type: ignore[type-arg]
    index = collection.index()
    return [
        EmbedWorker(engines, collection, index, None).run,
        BuildWorker(engines, collection, index).run,
        ArchiveWorker(engines, collection).run,
        MaintainWorker(engines, collection).run,
    ]


@pytest.mark.slow
def test_a_stream_with_all_roles_ends_with_few_objects_no_orphans_and_a_short_log(engines: Engines) -> None:
    collection = new_collection(engines)
    choice, live = random.Random(5), {0: set(), 1: set()}  # type: ignore[var-annotated]
    with running(*workers(engines, collection)):
        for turn in range(40):
            partition = turn % 2
            ids = [f"{partition}-{choice.randrange(30)}" for _ in range(4)]
            produce(engines, collection, partition, list(dict.fromkeys(ids)), [f"{i} in turn {turn}" for i in dict.fromkeys(ids)])
            live[partition] |= set(ids)
            gone = choice.choice(sorted(live[partition]))
            delete(engines, collection, partition, gone)
            live[partition].discard(gone)
            time.sleep(0.05)
        ends = {p: b.next_offset for p, b in engines.log.bounds(collection.source_topic).items()}

        def is_done(partition: int) -> bool:
            return head(engines, collection, partition)[1].checkpoint.media_offset == ends[partition]

        eventually(lambda: is_done(0) and is_done(1), 30)
        eventually(lambda: not left_over(engines, collection), 30, "nothing is left over")
        for partition in (0, 1):
            stored = read_partition(engines, collection, partition)
            assert set(stored.live) == live[partition] and stored.is_tiled() and len(stored.manifest.segments) <= 6
            assert sum(run.items for run in stored.ledger if run.verdict == "row") == stored.manifest.rows
        topic = collection.index().vectors_topic
        eventually(
            lambda: all(b.start_offset == head(engines, collection, p)[1].checkpoint.vectors_offset for p, b in engines.log.bounds(topic).items()), 30
        )


@pytest.mark.slow
def test_after_a_purge_and_maintenance_ids_and_captions_are_nowhere_in_the_store(engines: Engines) -> None:
    collection = new_collection(engines)
    victims = ["alice-with-a-long-name", "bob-with-a-long-name", "carol-with-a-long-name"]
    with running(*workers(engines, collection)):
        for turn in range(4):
            for partition in (0, 1):
                ids = [f"{partition}-{turn}-{n}" for n in range(5)] + (victims if partition == 0 else [])
                offset = produce(engines, collection, partition, ids, [f"the secret caption of {i}" for i in ids])
            eventually(lambda p=partition, o=offset: head(engines, collection, p)[1].checkpoint.media_offset > o, 30)  # type: ignore[misc]
        eventually(lambda: len(read_partition(engines, collection, 0).live) == 23, 30)
        assert all(f"the secret caption of {name}".encode() in store_bytes(engines) for name in victims)
        work = Purge(engines, collection, victims)
        work.run(work.find())
        eventually(lambda: not any(name.encode() in store_bytes(engines) for name in victims), 30, "their bytes are nowhere")
        eventually(lambda: not left_over(engines, collection), 30, "the requests are fulfilled and gone")
        assert len(read_partition(engines, collection, 0).live) == len(read_partition(engines, collection, 1).live) == 20
        produce(engines, collection, 0, [victims[0]], ["back again"])
        eventually(lambda: victims[0] in read_partition(engines, collection, 0).live, 30)
        assert b"back again" in store_bytes(engines) and f"the secret caption of {victims[0]}".encode() not in store_bytes(engines)


def test_two_maintain_processes_share_the_partitions_and_one_that_ends_leaves_them_to_the_other(engines: Engines) -> None:
    collection = new_collection(engines)
    index = collection.index()
    one, two = threading.Event(), threading.Event()
    threads = [threading.Thread(target=MaintainWorker(engines, collection).run, args=(stop,)) for stop in (one, two)]
    with running(EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run):
        for thread in threads:
            thread.start()
        eventually(lambda: all(head(engines, collection, p)[1].epochs.compactor >= 1 for p in (0, 1)), 30, "both are claimed")
        one.set()
        threads[0].join(20)
        for turn in range(9):
            for partition in (0, 1):
                offset = produce(engines, collection, partition, [f"{partition}-{turn}"])
            eventually(lambda p=partition, o=offset: head(engines, collection, p)[1].checkpoint.media_offset > o, 30)  # type: ignore[misc]
        eventually(lambda: all(len(head(engines, collection, p)[1].segments) <= 4 for p in (0, 1)), 30, "the other one compacts both")
        two.set()
        threads[1].join(20)
    assert all(len(read_partition(engines, collection, p).live) == 9 for p in (0, 1))


def test_a_worker_that_was_fenced_and_keeps_its_partitions_claims_them_again_much_later(engines: Engines) -> None:
    collection = new_collection(engines)
    with running(MaintainWorker(engines, collection).run):
        eventually(lambda: all(head(engines, collection, p)[1].epochs.compactor >= 1 for p in (0, 1)), 30)
        for partition in (0, 1):  # another one came and went between two polls of the group
            source = PartitionSource(engines, collection, collection.index(), partition)
            PartitionCompactor(source, "compactor-passing", UlidSource(), IndexCodecs(engines.store, collection, collection.index())).start()
        with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
            for turn in range(9):
                offset = produce(engines, collection, 0, [f"id-{turn}"])
                eventually(lambda o=offset: head(engines, collection, 0)[1].checkpoint.media_offset > o, 30)  # type: ignore[misc]
            eventually(lambda: len(head(engines, collection, 0)[1].segments) <= 4, 30, "it is compacted again")
        assert head(engines, collection, 0)[1].epochs.compactor == 3
