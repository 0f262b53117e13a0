"""The indexer's single steps: slices and gaps, trimming, sealing, back-pressure, oversized batches."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError
from contracts.item import VersionOrder
from contracts.log import LogRecord
from contracts.settings import load_settings
from contracts.vectors_batch import BatchItem, batch_schema, build_batch
from indexer.partition_builder import trim
from indexer.seal import seal
from indexer.seal_policy import should_seal
from indexer.slices import fetched_slices, gap_rows
from indexer.ulids import UlidSource
from tests.indexer.conftest import DIMENSION


def record(offset: int) -> LogRecord:
    return LogRecord("t", 0, offset, 0, b"k", b"v")


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 7))
def test_slices_and_their_gaps_tile_the_offsets_whatever_the_log_skips(offsets: set[int], size: int) -> None:
    records = [record(offset) for offset in sorted(offsets)]
    slices = fetched_slices(records, 1, 0, size)
    assert slices[0].start_offset == 0 and slices[-1].next_offset == max(offsets) + 1
    assert all(a.next_offset == b.start_offset for a, b in zip(slices, slices[1:], strict=False))
    covered = list(offsets)
    for part in slices:
        for gap in gap_rows(part.start_offset, part.records, part.next_offset):
            covered += range(gap.offset, gap.offset + gap.item)
    assert sorted(covered) == list(range(max(offsets) + 1))


def batch(collection: CollectionRecord, *items: BatchItem) -> pa.RecordBatch:
    return build_batch(items, batch_schema(collection.index(), collection.attributes))


def up(offset: int, item: int, item_id: str, origin: int | None = None) -> BatchItem:
    vectors = {"vec": np.full(DIMENSION, offset, np.float32)}
    return BatchItem(offset, item, "upsert", item_id, origin, None if origin is None else 0, vectors=vectors, event_time_us=1, produced_at_us=1)


def test_trimming_drops_rows_below_and_cuts_a_gap_that_reaches_across(collection: CollectionRecord) -> None:
    whole = batch(collection, up(3, 0, "a"), BatchItem(4, 6, "gap"), up(10, 0, "b"))
    kept = trim(whole, 7).to_pylist()
    assert [(row["op"], row["offset"], row["item"]) for row in kept] == [("gap", 7, 3), ("upsert", 10, 0)]
    assert trim(whole, 3) is whole


def seal_one(collection: CollectionRecord, *items: BatchItem, prior: VersionOrder | None = None):  # type: ignore[no-untyped-def]
    return seal([batch(collection, *items)], collection, collection.index(), lambda ids: [prior] * len(ids))


def test_a_replayed_record_loses_to_anything_newer_than_its_origin(collection: CollectionRecord) -> None:
    lost = seal_one(collection, up(5, 0, "a"), up(9, 0, "a", origin=2))
    assert lost.rows.column("offset").to_pylist() == [5]
    committed_later = seal_one(collection, up(9, 0, "a", origin=2), prior=VersionOrder(4, 0, 4, 0))
    assert committed_later.rows.num_rows == 0 and len(committed_later.touched) == 0
    won = seal_one(collection, up(9, 0, "a", origin=2), prior=VersionOrder(1, 0, 1, 0))
    assert won.rows.column("offset").to_pylist() == [9]


def test_the_ledger_names_every_item_once(collection: CollectionRecord) -> None:
    sealed = seal_one(collection, up(0, 0, "a"), up(0, 1, "b"), BatchItem(1, 0, "reject", reason="empty"), BatchItem(2, 3, "gap"), up(5, 0, "a"))
    assert [(r.start_offset, r.next_offset, r.start_item, r.next_item, r.verdict) for r in sealed.ledger] == [
        (0, 1, 0, 1, "superseded"),
        (0, 1, 1, 2, "row"),
        (1, 2, 0, 1, "reject"),
        (2, 5, 0, 0, "gap"),
        (5, 6, 0, 1, "row"),
    ]


def test_vectors_follow_their_rows_and_missing_ones_are_left_out(collection: CollectionRecord) -> None:
    bare = BatchItem(1, 0, "upsert", "b", reason="decode_failed", event_time_us=1)
    sealed = seal_one(collection, up(7, 0, "a"), bare)
    matrix, present = sealed.vectors["vec"]
    assert sealed.rows.column("id").to_pylist() == ["b", "a"] and present.tolist() == [False, True]
    assert matrix[1].tolist() == [7.0] * DIMENSION
    assert [(run.verdict, run.partial) for run in sealed.ledger] == [("row", True), ("row", False)]


def test_a_patch_from_a_newer_worker_stops_the_builder_instead_of_being_lost(collection: CollectionRecord) -> None:
    with pytest.raises(CorruptError, match="upgrade"):
        seal_one(collection, BatchItem(0, 0, "patch", "a", patch="{}"))


def test_a_segment_is_sealed_by_rows_bytes_or_age() -> None:
    limits = load_settings(seal_rows=10, seal_bytes=100, seal_seconds=5)
    assert not should_seal(9, 99, 4.9, limits)
    assert should_seal(10, 0, 0, limits) and should_seal(0, 100, 0, limits) and should_seal(0, 0, 5, limits)


def test_ulids_of_one_writer_only_rise() -> None:
    source = UlidSource()
    minted = [source.mint() for _ in range(1000)]
    assert minted == sorted(set(minted))


def test_a_full_queue_pauses_fetching_and_everything_still_arrives(engines: Engines) -> None:
    from contracts.settings import MEBIBYTE
    from indexer.build_worker import BuildWorker
    from indexer.embed_worker import EmbedWorker
    from tests.indexer.conftest import eventually, make_collection, produce, running
    from tests.indexer.stored import read_partition

    small = Engines(engines.settings.model_copy(update={"embed_queue_bytes": MEBIBYTE}), engines.log, engines.store)
    collection = make_collection(small, "full", partitions=1)
    for n in range(12):
        produce(small, collection, 0, [f"{n}-{k}" for k in range(40)], ["x" * 8000] * 40)
    worker = EmbedWorker(small, collection, collection.index(), None)
    with running(worker.run, BuildWorker(small, collection, collection.index()).run):
        eventually(lambda: read_partition(small, collection, 0).manifest.checkpoint.media_offset == 12)
    assert read_partition(small, collection, 0).live_rows == 480
    assert worker._queued_bytes == 0


def test_a_batch_that_would_be_too_large_is_cut_between_records(engines: Engines) -> None:
    from contracts.vectors_batch import read_headers
    from indexer.build_worker import BuildWorker
    from indexer.embed_worker import EmbedWorker
    from tests.indexer.conftest import eventually, make_collection, produce, running
    from tests.indexer.stored import read_partition

    small = Engines(engines.settings.model_copy(update={"max_record_bytes": 300_000}), engines.log, engines.store)
    collection = make_collection(small, "cut", partitions=1)
    for n in range(6):
        produce(small, collection, 0, [f"{n}-{k}" for k in range(10)], ["y" * 10_000] * 10)
    with running(EmbedWorker(small, collection, collection.index(), None).run, BuildWorker(small, collection, collection.index()).run):
        eventually(lambda: read_partition(small, collection, 0).manifest.checkpoint.media_offset == 6)
    assert read_partition(small, collection, 0).live_rows == 60
    topic = collection.index().vectors_topic
    records = [small.log.read_at(topic, 0, offset) for offset in range(small.log.bounds(topic)[0].next_offset)]
    batches = [r for r in records if r is not None and r.value is not None]
    assert len(batches) >= 3 and all(len(r.value or b"") <= 300_000 for r in batches)
    assert read_headers(batches[0]).start_offset == 0  # type: ignore[union-attr]
