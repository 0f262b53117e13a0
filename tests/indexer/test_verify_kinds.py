"""`verify` on what else a collection can hold: coded segments, patches, replays, compacted segments; and every kind of object with a flipped bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ulid import ULID

from backends.catalog.collections import CollectionCatalog
from backends.catalog.objects import upload
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.deletes import decode_delete_delta
from contracts.engines import Engines
from contracts.errors import CorruptError
from contracts.ledger import LedgerRun, decode_ledger, encode_ledger, merge_runs
from contracts.manifest import LedgerEntry, SegmentEntry
from contracts.media_record import ARROW_TYPE
from contracts.object_keys import CollectionKeys
from contracts.segment import CodedPart, FieldPart, read_field_part, read_rows_part, write_coded_part, write_field_part, write_rows_part
from contracts.settings import load_settings
from indexer.dead_letter_states import LetterFilter, list_letters
from indexer.replay import replay
from tests.indexer.audited import (
    all_roles,
    audit,
    bytes_of,
    chain,
    flip,
    head,
    kinds,
    make_feed,
    only,
    recommit,
    settle,
    stored_again,
    told,
    with_part,
)
from tests.indexer.conftest import arrow_rows, eventually, make_collection, produce, running
from tests.indexer.stored import read_partition

TRAIN_ROWS = 300


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    name = str(ULID())
    settings = load_settings(
        log_url=f"memory://{name}",
        store_url=f"memory://{name}",
        seal_seconds=0.3,
        seal_rows=100,
        embed_watchdog_seconds=0.5,
        archive_seconds=0.3,
        train_rows=TRAIN_ROWS,
    )
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


@pytest.fixture
def room(tmp_path: Path) -> Path:
    return tmp_path / "room"


# ---- coded segments --------------------------------------------------------------------------------------------------


@pytest.fixture
def coded(engines: Engines) -> CollectionRecord:
    """A partition that has trained itself, with every segment coded."""
    collection = make_collection(engines, "coded", partitions=1)
    with running(*all_roles(engines, collection)):
        for start in range(0, TRAIN_ROWS + 100, 50):
            produce(engines, collection, 0, [f"id-{n}" for n in range(start, start + 50)])
        settle(engines, collection)
        eventually(lambda: set(read_partition(engines, collection, 0).layouts) == {"ivf"}, 60, "coded")
    return collection


def test_coded_segments_are_whole_and_a_damaged_or_missing_generation_is_named(engines: Engines, coded: CollectionRecord, room: Path) -> None:
    report = audit(engines, coded, room)
    assert not told(report) and report.partitions[0].generations == {("vec", 1)} and report.partitions[0].states["indexed"] == TRAIN_ROWS + 100
    key = CollectionKeys(coded.name, coded.incarnation).index("main").generation(1, "vec")
    flip(engines, key)
    found = only(audit(engines, coded, room))
    assert (found.kind, found.index, found.object) == ("object_damaged", "main", key)
    engines.store.delete(key)
    assert [(one.kind, one.object) for one in told(audit(engines, coded, room))] == [("object_missing", key)]


def test_lists_that_hold_other_rows_than_their_part_are_told(engines: Engines, coded: CollectionRecord, room: Path) -> None:
    manifest, field = head(engines, coded, 0), coded.index().fields[0]
    segment = manifest.segments[0]
    old = segment.parts["field.vec"]
    part = read_field_part(bytes_of(engines, old), field, "")
    assert isinstance(part, CodedPart)
    entry = stored_again(engines, old, write_coded_part(field, replace(part, rows=part.rows[:-1], refine=part.refine[:-1])))
    recommit(engines, coded, 0, segments=(with_part(segment, "field.vec", entry), *manifest.segments[1:]))
    found = only(audit(engines, coded, room))
    assert (found.kind, found.partition, found.object, found.start_offset) == ("object_unreadable", 0, entry.key, segment.start_offset)


# ---- patches, replays, records of many items ---------------------------------------------------------------------------


def test_patches_replays_and_records_of_many_items_are_whole(engines: Engines, room: Path) -> None:
    collection = make_collection(engines, "feed", partitions=1, attributes={"colour": "keyword"})
    producer = engines.log.producer()

    def send(key: str | None, value: bytes, *headers: tuple[str, bytes]) -> None:
        producer.send(collection.source_topic, partition=0, key=None if key is None else key.encode(), value=value, headers=headers)
        producer.flush(10)

    with running(*all_roles(engines, collection)):
        send(None, arrow_rows(["a", "b", "", "c"]), ("content-type", ARROW_TYPE.encode()))  # one of four is rejected
        settle(engines, collection)
        send("a", b'{"attributes": {"colour": "red"}}', ("hw_op", b"patch"))
        send("nobody", b'{"attributes": {"colour": "red"}}', ("hw_op", b"patch"))
        settle(engines, collection)
        letters = list_letters(engines, collection, collection.index(), LetterFilter())
        assert letters and len(replay(engines, collection, letters, lambda done: None).replayed) == len(letters)
        for n in range(4):  # the first items of neighbours end alike, the rest does not
            produce(engines, collection, 0, ["one"])
            produce(engines, collection, 0, [f"two-{n}", "both", "both"])
        settle(engines, collection)
    producer.close()
    report = audit(engines, collection, room)
    assert not told(report)
    states = report.partitions[0].states
    # a, b, c, then a patched; the rejected item twice, and the replay's three other items; a missed patch; one, two-n, both
    assert states["indexed"] == 3 + 1 + 4 + 1 and states["dead_lettered"] == 2 and states["applied"] == 1
    assert states["superseded"] == 1 + 3 + 3 + 7


# ---- compacted -------------------------------------------------------------------------------------------------------


def compact(engines: Engines, collection: CollectionRecord, partition: int, dropped_as: str | None = None) -> tuple[SegmentEntry, LedgerEntry]:
    """All segments of a partition in one, without dead rows, all ledgers in one with their new verdicts, and no bitmaps, as a compaction leaves them.

    `dropped_as`: what the ledger says of dropped rows; None for what is right.
    """
    manifest, field = head(engines, collection, partition), collection.index().fields[0]
    deltas = [decode_delete_delta(bytes_of(engines, entry), "") for entry in manifest.deletes]
    batches, matrices, verdicts = [], [], {}
    for segment in manifest.segments:
        rows = read_rows_part(bytes_of(engines, segment.parts["rows"]), "").batch
        part = read_field_part(bytes_of(engines, segment.parts["field.vec"]), field, "")
        assert isinstance(part, FieldPart)
        dead = {row for delta in deltas for row in delta.bitmaps.get(segment.segment_id, ())}
        for row in dead:
            is_deleted = rows.column("id")[row].as_py().endswith("-7")
            place = rows.column("offset")[row].as_py(), rows.column("item")[row].as_py()
            verdicts[place] = dropped_as or ("deleted" if is_deleted else "superseded")
        kept = [row for row in range(rows.num_rows) if row not in dead]
        batches.append(rows.take(pa.array(kept)))
        matrices += [part.matrix[row] for row in kept]
    merged = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    runs = [run for entry in manifest.ledger for run in decode_ledger(bytes_of(engines, entry.object), "")]
    split = [
        LedgerRun(o, o + 1, i, i + 1, verdicts.get((o, i), run.verdict) if run.verdict == "row" else run.verdict, run.reason, run.partial)
        for run in runs
        for o in range(run.start_offset, run.next_offset)
        for i in range(run.start_item, run.next_item)
    ]
    keys, ulid = chain(engines, collection, partition).keys, str(ULID())
    matrix = np.array(matrices)
    parts = {
        "rows": upload(engines.store, keys.part("m", 1, ulid, "rows"), write_rows_part(merged, {})),
        "field.vec": upload(engines.store, keys.part("m", 1, ulid, "field.vec"), write_field_part(field, matrix, np.ones(len(matrix), bool))),
    }
    span = {"start_offset": manifest.segments[0].start_offset, "next_offset": manifest.segments[-1].next_offset}
    entry = SegmentEntry(segment_id=ulid, rows=merged.num_rows, schema_version=1, parts=parts, **span)
    ledger = upload(engines.store, keys.part("m", 1, str(ULID()), "ledger"), encode_ledger(merge_runs(split)))
    whole = LedgerEntry(object=ledger, start_offset=manifest.origin_offset, next_offset=manifest.checkpoint.media_offset)
    epochs = manifest.epochs.model_copy(update={"compactor": 1})
    recommit(engines, collection, partition, segments=(entry,), deletes=(), ledger=(whole,), epochs=epochs)
    return entry, whole


def test_compacted_segments_and_ledgers_say_the_same_states(engines: Engines, room: Path) -> None:
    collection = make_feed(engines)
    before = audit(engines, collection, room)
    compact(engines, collection, 0)
    after = audit(engines, collection, room)
    assert not told(after) and len(after.partitions[0].manifest.segments) == 1  # type: ignore[union-attr]
    assert after.partitions[0].states == before.partitions[0].states
    for key in {info.key for info in engines.store.list("c/") if "/p00000/b" in info.key and "/i/" in info.key}:
        engines.store.delete(key)  # collected: only older versions name them
    assert not told(audit(engines, collection, room))


def test_rows_that_expired_and_were_dropped_are_expired_still(engines: Engines, room: Path) -> None:
    collection = make_feed(engines)
    compact(engines, collection, 1, "expired")
    report = audit(engines, collection, room)
    assert not told(report) and (report.partitions[1].states["expired"], report.partitions[1].states["deleted"]) == (6, 0)


def test_a_compaction_that_dropped_a_row_and_kept_its_verdict_is_told(engines: Engines, room: Path) -> None:
    collection = make_feed(engines)
    compact(engines, collection, 0, "row")
    report = audit(engines, collection, room)
    places = sorted((one.start_offset, one.start_item, one.next_item) for one in report.findings.of("row_missing"))
    assert kinds(report) == {"row_missing"} and places == [(0, 0, 5), (0, 7, 8)]


# ---- every kind of object ----------------------------------------------------------------------------------------------


def test_damage_to_every_kind_of_object_is_an_error_or_a_finding_that_names_it(engines: Engines, coded: CollectionRecord, room: Path) -> None:
    """A flip in the middle and of the first byte, of each object; names and records have no hash: they are refused where they cannot be read."""
    newest = head(engines, coded, 0)
    named = {entry.key for segment in newest.segments for entry in segment.parts.values()} | {entry.object.key for entry in newest.ledger}
    kinds_seen = set()
    for info in list(engines.store.list("")):
        if "/collection/" in info.key or info.key.startswith("n/"):
            flip(engines, info.key, 0)
            with pytest.raises(CorruptError, match="00000000000000000001.json"):
                CollectionCatalog(engines.store).get(coded.name)
            flip(engines, info.key, 0)
            continue
        is_old = "/p00000/b" in info.key and "/i/" in info.key and info.key not in named
        flip(engines, info.key, 0)
        report = audit(engines, coded, room)
        flip(engines, info.key, 0)
        assert ({one.object for one in told(report)} == {info.key}) is not is_old, (info.key, told(report))
        kinds_seen |= kinds(report)
    assert kinds_seen == {"object_damaged", "manifest_unreadable"}
    assert not told(audit(engines, coded, room))
