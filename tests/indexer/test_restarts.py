"""A partition that starts again in the middle of reading: what was polled at the old position is not taken for what comes at the new one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from ulid import ULID

from contracts.clock import ManualClock
from contracts.engines import Engines
from contracts.errors import UnavailableError
from indexer.build_worker import FENCED_SEALS, BuildWorker
from indexer.commit import Committer
from indexer.embed_worker import RETRY_SECONDS, EmbedWorker
from indexer.partition_source import PartitionSource
from tests.indexer.conftest import make_collection, produce, running
from tests.indexer.stored import read_partition


@pytest.fixture
def timed(engines: Engines) -> tuple[Engines, ManualClock]:
    clock = ManualClock()
    return replace(engines, clock=clock), clock


def test_a_new_run_does_not_begin_with_records_that_were_polled_before_it(timed: tuple[Engines, ManualClock]) -> None:
    """It took them for the first ones after its start, and all between for offsets at which the log has nothing: those records were lost."""
    engines, clock = timed
    collection = make_collection(engines, "feed", partitions=1)
    worker = EmbedWorker(engines, collection, collection.index(), None)
    reader = engines.log.group_reader(collection.source_topic, collection.group("main", "embed"))
    with ThreadPoolExecutor(1) as pool:

        def turn() -> None:
            worker._fetch_once(reader, pool)

        turn()
        produce(engines, collection, 0, ["first"])
        produce(engines, collection, 0, ["second"])
        turn()
        turn()
        assert worker.runs[0].fetched_next == 2
        worker._produce_failed(UnavailableError("nothing was stored"))
        clock.advance(2 * RETRY_SECONDS)
        produce(engines, collection, 0, ["third"])  # the reader's position is still behind "second"
        turn()
        turn()
    newest = [fetched for fetched, _ in worker._queue if fetched.run == worker.runs[0].number]
    assert [record.offset for fetched in newest for record in fetched.records] == [0, 1, 2]
    worker._pool.close()


def test_a_fenced_builder_whose_group_leaves_it_the_partition_claims_it_again_later_and_misses_nothing(timed: tuple[Engines, ManualClock]) -> None:
    """The other owner may have come and gone between two polls: then the group says nothing, and nobody would build any more."""
    engines, clock = timed
    collection = make_collection(engines, "feed", partitions=1)
    index, stop = collection.index(), threading.Event()
    worker = BuildWorker(engines, collection, index)
    worker._producer = engines.log.producer()
    reader = engines.log.group_reader(index.vectors_topic, collection.group("main", "index"))

    def turn() -> None:
        worker._turn(reader, stop)

    def embed(item_id: str) -> None:
        end = engines.log.bounds(index.vectors_topic)[0].next_offset
        produce(engines, collection, 0, [item_id])
        with running(EmbedWorker(engines, collection, index, None).run):
            while engines.log.bounds(index.vectors_topic)[0].next_offset == end:
                pass

    turn()
    turn()
    embed("first")
    turn()
    Committer(PartitionSource(engines, collection, index, 0).chain, "builder", f"other-{ULID()}", clock, lambda: None).claim()
    clock.advance(2 * engines.settings.seal_seconds)
    turn()
    assert not worker.builders, "it was fenced"
    clock.advance(FENCED_SEALS * engines.settings.seal_seconds / 2)
    turn()
    assert not worker.builders, "it does not claim back at once"
    clock.advance(FENCED_SEALS * engines.settings.seal_seconds)
    embed("second")  # the reader's position is behind "first"
    turn()
    turn()
    clock.advance(2 * engines.settings.seal_seconds)
    turn()
    assert set(read_partition(engines, collection, 0).live) == {"first", "second"}
    reader.close()
