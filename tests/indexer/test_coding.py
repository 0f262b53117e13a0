"""Training and the change from flat to coded segments, beside a stream that goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from ulid import ULID

from backends.catalog.generations import newest_generations
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.settings import load_settings
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.index_codecs import IndexCodecs
from tests.indexer.conftest import delete, eventually, make_collection, produce, running, vector_of
from tests.indexer.stored import StoredPartition, read_partition

TRAIN_ROWS = 400


@pytest.fixture
def engines() -> Iterator[Engines]:
    name = str(ULID())
    settings = load_settings(
        log_url=f"memory://{name}", store_url=f"memory://{name}", seal_seconds=0.5, seal_rows=100, embed_watchdog_seconds=0.2, train_rows=TRAIN_ROWS
    )
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


def ids(start: int, end: int) -> list[str]:
    return [f"id-{n}" for n in range(start, end)]


def feed(engines: Engines, collection: CollectionRecord, partition: int, names: list[str]) -> None:
    for start in range(0, len(names), 50):
        produce(engines, collection, partition, names[start : start + 50])


def roles(engines: Engines, collection: CollectionRecord):  # type: ignore[no-untyped-def]
    index = collection.index()
    return EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run


def unit(item_id: str) -> np.ndarray:
    vector = vector_of(item_id)
    return vector / np.linalg.norm(vector)


def assert_holds(stored: StoredPartition, names: list[str]) -> None:
    assert set(stored.live) == set(names) and stored.live_rows == len(names) and stored.is_tiled()
    for name in names:
        assert float(np.array(stored.vectors[name]) @ unit(name)) > 0.9, name  # a few lie outside the ranges of so small a sample


def all_coded(engines: Engines, collection: CollectionRecord, partition: int = 0) -> bool:
    stored = read_partition(engines, collection, partition)
    return bool(stored.layouts) and set(stored.layouts) == {"ivf"}


def test_a_partition_trains_at_its_size_and_every_segment_becomes_coded_while_rows_and_deletes_stay(engines: Engines) -> None:
    collection = make_collection(engines, "feed", partitions=1)
    with running(*roles(engines, collection)):
        feed(engines, collection, 0, ids(0, TRAIN_ROWS - 100))
        eventually(lambda: read_partition(engines, collection, 0).live_rows == TRAIN_ROWS - 100)
        before = read_partition(engines, collection, 0)
        assert set(before.layouts) == {"flat"} and before.manifest.generation == {}
        delete(engines, collection, 0, "id-7")
        feed(engines, collection, 0, ids(TRAIN_ROWS - 100, TRAIN_ROWS + 99))
        eventually(lambda: all_coded(engines, collection), 60, "coded")
        delete(engines, collection, 0, "id-8")
        feed(engines, collection, 0, ids(600, 699))
        names = [name for name in ids(0, TRAIN_ROWS + 99) + ids(600, 699) if name not in ("id-7", "id-8")]
        eventually(lambda: read_partition(engines, collection, 0).live_rows == len(names), 30, "later rows")
    stored = read_partition(engines, collection, 0)
    assert_holds(stored, names)
    assert stored.manifest.generation == {"vec": 1} and set(stored.layouts) == {"ivf"}
    first = before.manifest.segments[0]
    same = stored.manifest.segments[0]
    assert (same.segment_id, same.rows, same.parts["rows"]) == (first.segment_id, first.rows, first.parts["rows"])
    assert same.parts["field.vec"].key != first.parts["field.vec"].key and engines.store.get(first.parts["field.vec"].key) is not None


def test_a_partition_too_small_to_train_codes_in_the_generation_of_another(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.coding.LOOK_SECONDS", 0.2)
    collection = make_collection(engines, "feed", partitions=2)
    with running(*roles(engines, collection)):
        feed(engines, collection, 1, ids(1000, 1100))
        eventually(lambda: read_partition(engines, collection, 1).live_rows == 100)
        feed(engines, collection, 0, ids(0, TRAIN_ROWS))
        eventually(lambda: all_coded(engines, collection, 0) and all_coded(engines, collection, 1), 60, "coded")
    assert_holds(read_partition(engines, collection, 1), ids(1000, 1100))


def test_two_processes_that_train_at_once_code_in_one_generation(engines: Engines) -> None:
    """Each has one partition, both large enough; both begin before either has stored anything."""
    collection = make_collection(engines, "feed", partitions=2)
    begun = threading.Barrier(2, timeout=60)

    class Eager(BuildWorker):
        def __init__(self) -> None:
            super().__init__(engines, collection, collection.index())
            inner = self.coding._trainer._train

            def together(*args: object) -> object:
                begun.wait()
                return inner(*args)  # type: ignore[arg-type]

            self.coding._trainer._train = together  # type: ignore[method-assign, assignment]

    with running(EmbedWorker(engines, collection, collection.index(), None).run):
        for partition in (0, 1):
            feed(engines, collection, partition, [f"{partition}-{n}" for n in range(TRAIN_ROWS)])
        with running(Eager().run, Eager().run):
            eventually(lambda: all_coded(engines, collection, 0) and all_coded(engines, collection, 1), 60, "coded")
    for partition in (0, 1):
        stored = read_partition(engines, collection, partition)
        assert stored.manifest.generation == {"vec": 1}
        assert_holds(stored, [f"{partition}-{n}" for n in range(TRAIN_ROWS)])
    codecs = IndexCodecs(engines.store, collection, collection.index())
    assert newest_generations(engines.store, codecs.keys) == {"vec": 1}


def test_a_flat_index_is_never_trained(engines: Engines) -> None:
    collection = make_collection(engines, "feed", partitions=1, codec="flat")
    with running(*roles(engines, collection)):
        feed(engines, collection, 0, ids(0, TRAIN_ROWS + 200))
        eventually(lambda: read_partition(engines, collection, 0).live_rows == TRAIN_ROWS + 200)
    assert set(read_partition(engines, collection, 0).layouts) == {"flat"}
