"""The indexer's single steps: slices and gaps, trimming, sealing, back-pressure, oversized batches."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError
from contracts.item import VersionOrder, id_hashes
from contracts.ledger import LedgerRun, merge_runs, untiled
from contracts.log import LogRecord
from contracts.segment import write_rows_part
from contracts.settings import load_settings
from contracts.vectors_batch import BatchItem, batch_schema, build_batch
from indexer.partition_builder import trim
from indexer.seal import seal
from indexer.seal_policy import should_seal
from indexer.slices import fetched_slices, gap_rows
from indexer.ulids import UlidSource
from indexer.verdicts import Coded, ledger_runs
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
    return seal([batch(collection, *items)], collection, collection.index(), lambda ids: [prior] * len(ids), lambda ids: [None] * len(ids))


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


def test_a_sealed_segment_finds_its_rows_by_id_and_the_part_stores_that_index(collection: CollectionRecord) -> None:
    sealed = seal_one(collection, up(7, 0, "c"), up(3, 0, "a"), BatchItem(4, 0, "delete", "d"), up(5, 0, "c"), up(6, 1, "b"))
    names = sealed.rows.column("id").to_pylist()
    assert names == ["a", "b", "c"] and sealed.ids.find(id_hashes([*names, "d"])).tolist() == [0, 1, 2, -1]
    assert write_rows_part(sealed.rows, {}, sealed.ids) == write_rows_part(sealed.rows, {})


def test_vectors_of_whole_batches_are_not_copied_and_those_of_patches_are(collection: CollectionRecord) -> None:
    whole = batch(collection, up(0, 0, "a"), up(1, 0, "b"))
    nobody = lambda ids: [None] * len(ids)  # noqa: E731
    sealed = seal([whole], collection, collection.index(), nobody, nobody)
    assert np.shares_memory(sealed.vectors["vec"][0], whole.column("vector.vec").values.to_numpy())
    patched = batch(collection, up(0, 0, "a"), BatchItem(1, 0, "patch", "a", patch='{"x":1}'))
    sealed = seal([patched], collection, collection.index(), nobody, nobody)
    assert not np.shares_memory(sealed.vectors["vec"][0], patched.column("vector.vec").values.to_numpy())


def test_a_patch_without_a_live_row_is_missed_and_takes_nothing_away(collection: CollectionRecord) -> None:
    patch = BatchItem(2, 0, "patch", "b", patch='{"x":1}')
    sealed = seal_one(collection, up(0, 0, "a"), BatchItem(1, 0, "delete", "b"), patch)
    assert sealed.rows.column("id").to_pylist() == ["a"] and [t[0] for t in sealed.tombstones] == ["b"]
    assert [(run.verdict, run.reason) for run in sealed.ledger] == [("row", None), ("delete", None), ("patch", "missed")]


def test_a_patched_row_has_its_base_rows_vector_and_media_and_its_own_version(collection: CollectionRecord) -> None:
    patches = [BatchItem(n, 0, "patch", "a", patch=patch, acl=acl) for n, patch, acl in ((1, '{"x":1}', ["me"]), (2, '{"y":2}', None))]
    sealed = seal_one(collection, up(0, 3, "a"), *patches)
    (row,) = sealed.rows.to_pylist()
    assert (row["offset"], row["item"], row["media_offset"], row["media_item"], row["event_time"].microsecond) == (2, 0, 0, 3, 1)
    assert row["attributes"]["extra"] == '{"x":1,"y":2}' and row["acl"] == ["me"]
    assert sealed.vectors["vec"][0].tolist() == [[0.0] * DIMENSION] and sealed.vectors["vec"][1].tolist() == [True]
    assert [run.verdict for run in sealed.ledger] == ["superseded", "superseded", "row"]


def test_patches_cannot_grow_extra_without_bound(collection: CollectionRecord) -> None:
    patches = [BatchItem(n, 0, "patch", "a", patch=json.dumps({f"k{n}": "x" * 200_000})) for n in (1, 2)]
    sealed = seal_one(collection, up(0, 0, "a"), *patches, BatchItem(3, 0, "patch", "a", patch='{"k1":null,"k4":4}'))
    assert sealed.rows.column("attributes").to_pylist()[0]["extra"] == '{"k4":4}'
    assert [(run.verdict, run.reason) for run in sealed.ledger][1:] == [("patch", "too_large"), ("row", None)]


def test_a_patch_that_no_embed_worker_wrote_stops_the_builder(collection: CollectionRecord) -> None:
    for text in (None, "", "[]", "{"):
        with pytest.raises(CorruptError, match="patch"):
            seal_one(collection, up(0, 0, "a"), BatchItem(1, 0, "patch", "a", patch=text))


def loop(offsets: list[int], items: list[int], verdicts: list[str], reasons: list[str | None]) -> list[LedgerRun]:
    """The plain way: a run for every row, joined by the contract's `merge_runs`."""
    runs = []
    for offset, item, verdict, reason in sorted(zip(offsets, items, verdicts, reasons, strict=True), key=lambda row: row[:2]):
        if verdict in ("gap", "lost"):
            runs.append(LedgerRun(offset, offset + item, 0, 0, verdict, reason))
        else:
            runs.append(LedgerRun(offset, offset + 1, item, item + 1, verdict, reason, partial=verdict == "row" and reason is not None))
    return merge_runs(runs)


ROWS = st.tuples(
    st.integers(0, 12), st.integers(0, 4), st.sampled_from(["row", "row", "row", "superseded", "delete", "reject", "gap", "lost"]),
    st.sampled_from([None, None, "empty", "decode_failed"]),
)  # fmt: skip


@given(st.lists(ROWS, max_size=60, unique_by=lambda row: row[:2]))
def test_the_ledgers_runs_are_those_of_a_loop_over_the_rows(rows: list[tuple[int, int, str, str | None]]) -> None:
    offsets, items, verdicts, reasons = ([row[at] for row in rows] for at in range(4))
    found = ledger_runs(
        np.array(offsets, np.int64), np.array(items, np.int64), Coded.of(pa.array(verdicts, pa.utf8())), Coded.of(pa.array(reasons, pa.utf8()))
    )
    assert found == loop(offsets, items, verdicts, reasons)


@given(st.integers(1, 9), st.integers(0, 3), st.sets(st.integers(0, 80), max_size=9), st.integers(0, 30))
def test_the_ledger_of_a_stream_with_gaps_and_many_items_tiles_it(items: int, kinds: int, odd: set[int], gap: int) -> None:
    verdicts = ["row" if n not in odd else ("superseded", "reject", "delete", "patch")[kinds] for n in range(81)]
    offsets, numbers = [n // items for n in range(81)], [n % items for n in range(81)]
    if gap:
        offsets, numbers, verdicts = [*offsets, offsets[-1] + 1], [*numbers, gap], [*verdicts, "gap"]
    reasons = [None] * len(offsets)
    found = ledger_runs(
        np.array(offsets, np.int64), np.array(numbers, np.int64), Coded.of(pa.array(verdicts)), Coded.of(pa.array(reasons, pa.utf8()))
    )
    assert found == loop(offsets, numbers, verdicts, list(reasons))
    assert untiled(found, 0, offsets[-1] + (gap or 1)) == []


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
    assert worker.queue.size_bytes == 0


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
