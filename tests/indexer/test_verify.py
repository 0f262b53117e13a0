"""`headwater verify` on collections that our own roles made: a healthy one has no findings, each planted fault is named exactly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from pyroaring import BitMap
from ulid import ULID

from backends.folder_store import FolderStore
from backends.open_store import folder_of_url
from contracts.collection import CollectionRecord
from contracts.deletes import DeleteDelta, decode_delete_delta, encode_delete_delta
from contracts.engines import Engines
from contracts.hashed_json import with_hash, without_hash
from contracts.ledger import LedgerRun, decode_ledger, encode_ledger
from contracts.manifest import ObjectEntry
from contracts.object_keys import CollectionKeys
from contracts.segment import read_rows_part, write_rows_part
from contracts.store import ObjectInfo, StoredObject
from indexer.verify.audit import Audit, AuditReport
from tests.indexer.audited import (
    DAYS,
    audit,
    bytes_of,
    chain,
    flip,
    head,
    kinds,
    make_feed,
    only,
    opened,
    overwrite,
    recommit,
    stored_again,
    tars,
    told,
    with_part,
)  # fmt: skip


@dataclass
class Site:
    """One test's own copy of a collection."""

    engines: Engines
    collection: CollectionRecord
    folder: Path

    def audit(self, **more: object) -> AuditReport:
        return audit(self.engines, self.collection, self.folder, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, CollectionRecord]]:
    folder, log = tmp_path_factory.mktemp("original") / "store", f"memory://{ULID()}"
    engines = opened(log, folder)
    yield log, folder, make_feed(engines)
    engines.log.close()
    engines.store.close()


@pytest.fixture
def site(original: tuple[str, Path, CollectionRecord], tmp_path: Path) -> Iterator[Site]:
    log, folder, collection = original
    shutil.copytree(folder, tmp_path / "store")
    engines = opened(log, tmp_path / "store")
    yield Site(engines, collection, tmp_path / "room")
    engines.store.close()


# ---- whole -----------------------------------------------------------------------------------------------------------


def test_a_healthy_collection_has_no_findings_and_every_item_in_one_state(site: Site) -> None:
    report = site.audit()
    assert not report.findings.kept and report.findings.exit_code == 0
    assert not list(site.folder.glob("*")), "the room for sorting is given back"
    for partition in report.partitions:
        assert partition.manifest is not None and len(partition.manifest.segments) >= 3
        states = {name: count for name, count in partition.states.items() if count}
        # 40 rows, 5 of them updated and 1 deleted; 6 + 5 + 3 new rows and one of two equal ids; deletes of an id that is there and of one that is not
        assert states == {"indexed": 40 - 5 - 1 + 5 + 6 + 1 + 3, "superseded": 5 + 1, "deleted": 1, "applied": 2, "dead_lettered": 2}
        assert not partition.gaps and partition.attempts == 1
    assert all(archive.manifest is not None and archive.manifest.records == 14 for archive in report.archives)
    assert {(p.embedded_offset, p.next_offset) for p in report.positions.values()} == {(14, 14)}


def test_the_store_alone_is_enough_and_what_was_not_asked_is_said(site: Site) -> None:
    report = site.audit(with_log=False)
    assert [finding.kind for finding in report.findings.kept] == ["not_checked"] and report.findings.exit_code == 0
    assert sum(partition.states["indexed"] for partition in report.partitions) == 98


def test_expired_rows_are_counted_as_such(site: Site) -> None:
    collection = site.collection.model_copy(update={"retention_seconds": DAYS})
    report = audit(site.engines, collection, site.folder, later_seconds=2 * DAYS)
    assert not told(report)
    assert {(one.states["indexed"], one.states["expired"]) for one in report.partitions} == {(0, 49)}


@pytest.mark.parametrize("times", [1, 3])
def test_objects_that_are_compacted_away_while_they_are_read_are_no_fault(site: Site, times: int) -> None:
    left = [times]

    class Compacting(FolderStore):
        """Moves the first segment's rows to another object just before they are read, as a compaction and a collection would."""

        def get(self, key: str) -> StoredObject | None:
            entry = head(site.engines, site.collection, 0).segments[0].parts["rows"]
            if key == entry.key and left[0]:
                left[0] -= 1
                manifest = head(site.engines, site.collection, 0)
                moved = with_part(manifest.segments[0], "rows", stored_again(site.engines, entry, bytes_of(site.engines, entry)))
                recommit(site.engines, site.collection, 0, segments=(moved, *manifest.segments[1:]))
                site.engines.store.delete(entry.key)
            return super().get(key)

    store = Compacting(folder_of_url(urlsplit(site.engines.settings.store_url)))
    report = Audit(store, site.engines.log, site.collection, site.folder, site.engines.clock.now_seconds()).run()
    assert not report.findings.kept and [one.attempts for one in report.partitions] == [times + 1, 1]
    assert {one.states["indexed"] for one in report.partitions} == {49}


def test_what_is_committed_while_the_store_is_listed_is_no_orphan(site: Site) -> None:
    class Committing(FolderStore):
        """Commits twice before the whole collection is listed: the first commit's object is named by a version that is neither read nor the head."""

        def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
            if prefix == CollectionKeys(site.collection.name, site.collection.incarnation).prefix:
                for _ in range(2):
                    manifest = head(site.engines, site.collection, 0)
                    entry = manifest.segments[0].parts["rows"]
                    moved = with_part(manifest.segments[0], "rows", stored_again(site.engines, entry, bytes_of(site.engines, entry)))
                    recommit(site.engines, site.collection, 0, segments=(moved, *manifest.segments[1:]))
            return super().list(prefix, start_after)

    before = head(site.engines, site.collection, 0).version
    store = Committing(folder_of_url(urlsplit(site.engines.settings.store_url)))
    report = Audit(store, site.engines.log, site.collection, site.folder, site.engines.clock.now_seconds()).run()
    assert not report.findings.kept and head(site.engines, site.collection, 0).version == before + 2


# ---- objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["rows", "field.vec"])
def test_a_deleted_segment_is_named_and_its_rows_are_not_told_a_second_time(site: Site, part: str) -> None:
    segment = head(site.engines, site.collection, 1).segments[1]
    site.engines.store.delete(segment.parts[part].key)
    found = only(site.audit())
    assert (found.kind, found.index, found.partition, found.object) == ("object_missing", "main", 1, segment.parts[part].key)
    assert (found.start_offset, found.next_offset) == (segment.start_offset, segment.next_offset)


def entries(site: Site, partition: int) -> dict[str, ObjectEntry]:
    manifest = head(site.engines, site.collection, partition)
    segment = manifest.segments[0]
    return {"rows": segment.parts["rows"], "field": segment.parts["field.vec"], "deletes": manifest.deletes[0], "ledger": manifest.ledger[0].object}


@pytest.mark.parametrize("kind", ["rows", "field", "deletes", "ledger"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_bit_is_found_wherever_it_is_and_names_the_object_alone(site: Site, kind: str, place: float) -> None:
    entry = entries(site, 0)[kind]
    flip(site.engines, entry.key, int(place * (entry.size_bytes - 1)))
    found = only(site.audit())
    assert (found.kind, found.partition, found.object) == ("object_damaged", 0, entry.key) and "sha256 differs" in found.what


def test_a_flipped_bit_in_a_tar_names_the_records_that_it_damages(site: Site) -> None:
    tar = next(one for one in tars(site.engines, site.collection, 0).head().manifest.tars if one.start_offset == 0)  # type: ignore[union-attr]
    flip(site.engines, tar.key, 700)
    found = only(site.audit())
    assert (found.kind, found.index, found.partition, found.object) == ("object_damaged", None, 0, tar.key)
    assert "damaged records: offsets 0" in found.what


def test_an_object_that_is_shorter_or_longer_is_told_by_its_size(site: Site) -> None:
    entry = entries(site, 0)["rows"]
    data = bytes_of(site.engines, entry)
    for other in (data[:-1], data + b"x", b""):
        overwrite(site.engines, entry.key, other)
        assert only(site.audit()).what == f"{len(other)} bytes, the manifest says {len(data)}"


def test_chunk_digests_that_are_not_the_objects_are_told(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    wrong = manifest.segments[0].parts["rows"].model_copy(update={"chunks_sha256": "AAAA"})
    recommit(site.engines, site.collection, 0, segments=(with_part(manifest.segments[0], "rows", wrong), *manifest.segments[1:]))
    found = only(site.audit())
    assert (found.kind, found.object) == ("object_damaged", wrong.key) and "chunk digests" in found.what


def test_a_tar_that_was_cut_short_is_named_with_its_offsets(site: Site) -> None:
    tar = tars(site.engines, site.collection, 1).head().manifest.tars[-1]  # type: ignore[union-attr]
    found = site.engines.store.get(tar.key)
    assert found is not None
    overwrite(site.engines, tar.key, found.data[:-1500])
    told_of = only(site.audit())
    assert (told_of.kind, told_of.partition, told_of.object) == ("object_damaged", 1, tar.key)
    assert (told_of.start_offset, told_of.next_offset) == (tar.start_offset, tar.next_offset) and "cut short by 1500" in told_of.what


def test_a_missing_tar_and_a_missing_payload_hash(site: Site) -> None:
    tar = tars(site.engines, site.collection, 0).head().manifest.tars[0]  # type: ignore[union-attr]
    site.engines.store.delete(tar.key)
    payload = f"c/{site.collection.name}-{site.collection.incarnation}/claim/{'ab' * 32}"
    site.engines.store.put_if_absent(payload, b"not what the key says")
    found = {one.kind: one.object for one in told(site.audit())}
    assert found == {"object_missing": tar.key, "object_damaged": payload}


def test_objects_that_nothing_names_are_notes(site: Site) -> None:
    keys = chain(site.engines, site.collection, 0).keys
    strange = f"{keys.index.collection.prefix}somebody/else"
    left = keys.part("b", 1, str(ULID()), "rows")
    for key in (strange, left):
        site.engines.store.put_if_absent(key, b"left behind")
    report = site.audit()
    assert {(one.kind, one.object, one.partition, one.code.level) for one in report.findings.kept} == {
        ("orphan", strange, None, "note"),
        ("orphan", left, 0, "note"),
    }
    assert report.findings.exit_code == 0 and not any(orphan.is_dead for orphan in report.orphans), "too young to be called dead"


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_a_replaced_manifest_is_named(site: Site) -> None:
    where = chain(site.engines, site.collection, 0)
    read = where.read(3)
    assert read is not None
    overwrite(site.engines, where.keys.manifest(3), read.manifest.model_copy(update={"writer": "someone else"}).to_bytes())
    found = only(site.audit())
    assert (found.kind, found.index, found.partition, found.object) == ("manifest_replaced", "main", 0, where.keys.manifest(3))


def test_a_replaced_manifest_whose_own_link_is_broken_too_is_named_once(site: Site) -> None:
    where = chain(site.engines, site.collection, 0)
    read = where.read(3)
    assert read is not None and read.manifest.previous is not None
    previous = read.manifest.previous.model_copy(update={"sha256": "0" * 64})
    overwrite(site.engines, where.keys.manifest(3), read.manifest.model_copy(update={"previous": previous}).to_bytes())
    assert only(site.audit()).object == where.keys.manifest(3)


def test_a_head_that_was_put_back_to_an_older_state_is_told(site: Site) -> None:
    where = chain(site.engines, site.collection, 0)
    newest = where.head()
    assert newest is not None
    first = where.read(2)
    assert first is not None
    forged = newest.manifest.model_copy(update={"checkpoint": first.manifest.checkpoint, "segments": (), "ledger": (), "deletes": ()})
    overwrite(site.engines, where.keys.manifest(newest.manifest.version), forged.to_bytes())
    found = {(one.kind, one.object) for one in told(site.audit())}
    assert found == {("manifest_out_of_order", where.keys.manifest(newest.manifest.version))}


@pytest.mark.parametrize("archive", [False, True])
def test_a_missing_and_an_edited_manifest_are_named(site: Site, archive: bool) -> None:
    where = tars(site.engines, site.collection, 1) if archive else chain(site.engines, site.collection, 1)
    site.engines.store.delete(where.keys.manifest(2))
    found = site.engines.store.get(where.keys.manifest(3))
    assert found is not None
    overwrite(site.engines, where.keys.manifest(3), found.data + b"\n")
    told_of = {(one.kind, one.object, one.index) for one in told(site.audit())}
    index = None if archive else "main"
    missing, edited = ("manifest_missing", where.keys.manifest(2), index), ("manifest_unreadable", where.keys.manifest(3), index)
    assert {missing, edited} <= told_of and told_of - {missing, edited} <= {("manifest_replaced", where.keys.manifest(3), index)}


def test_a_manifest_of_a_newer_format_and_a_boundary_that_is_no_number_are_named(site: Site) -> None:
    where = chain(site.engines, site.collection, 0)
    found = site.engines.store.get(where.keys.manifest(3))
    assert found is not None
    overwrite(site.engines, where.keys.manifest(3), with_hash(without_hash(found.data, "here").replace(b'"format":1', b'"format":2')))
    site.engines.store.put_if_absent(chain(site.engines, site.collection, 1).keys.boundary, b"1x")
    site.engines.store.delete(chain(site.engines, site.collection, 1).keys.manifest(2))
    told_of = {(one.object, one.partition): one.what for one in told(site.audit()) if one.kind == "manifest_unreadable"}
    assert "format 2, this version reads 1" in told_of[where.keys.manifest(3), 0]
    assert "no number" in told_of[chain(site.engines, site.collection, 1).keys.boundary, 1]
    assert chain(site.engines, site.collection, 1).keys.manifest(2) in {one.object for one in told(site.audit()) if one.kind == "manifest_missing"}


def test_collected_versions_below_the_boundary_are_not_missed(site: Site) -> None:
    where = chain(site.engines, site.collection, 0)
    for version in (1, 2):
        site.engines.store.delete(where.keys.manifest(version))
    assert where.keys.manifest(1) in {one.object for one in told(site.audit())}
    site.engines.store.put_if_absent(where.keys.boundary, b"2")
    assert not told(site.audit())


# ---- rows, ledgers, ids ----------------------------------------------------------------------------------------------


def test_a_row_doubled_within_a_segment_and_a_segment_listed_twice_are_named(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    segment = manifest.segments[0]
    again = segment.model_copy(update={"segment_id": str(ULID())})
    recommit(site.engines, site.collection, 0, segments=(*manifest.segments, again))
    report = site.audit()
    assert kinds(report) == {"row_twice", "id_twice", "deleted_row_live"}  # the copy has no deletes of its own
    assert report.findings.counts["row_twice"] == 40
    assert {one.object for one in report.findings.of("row_twice")} == {segment.parts["rows"].key}


def test_a_row_doubled_under_another_id_is_named_by_its_place(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    segment = manifest.segments[0]
    part = read_rows_part(bytes_of(site.engines, segment.parts["rows"]), "")
    ids = part.batch.column("id").to_pylist()
    doubled = pa.Table.from_batches([part.batch, part.batch.slice(3, 1)]).combine_chunks().to_batches()[0]
    named = doubled.set_column(doubled.schema.get_field_index("id"), "id", pa.array([*ids, "copy"])).take(pa.array([0, 1, 2, 3, 40, *range(4, 40)]))
    entry = stored_again(site.engines, segment.parts["rows"], write_rows_part(named, {}))
    recommit(site.engines, site.collection, 0, segments=(with_part(segment, "rows", entry, rows=41), *manifest.segments[1:]))
    found = {one.kind: one for one in told(site.audit())}
    assert (found["row_twice"].object, found["row_twice"].start_offset, found["row_twice"].start_item) == (entry.key, 0, 3)
    assert found["object_unreadable"].what == "vectors of 40 rows, the segment has 41"


def test_rows_that_a_segment_has_lost_are_named_by_offset_and_items(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    segment = manifest.segments[0]
    part = read_rows_part(bytes_of(site.engines, segment.parts["rows"]), "")
    kept = part.batch.take(pa.array([*range(10), *range(13, 40)]))
    entry = stored_again(site.engines, segment.parts["rows"], write_rows_part(kept, {}))
    recommit(site.engines, site.collection, 0, segments=(with_part(segment, "rows", entry, rows=37), *manifest.segments[1:]))
    missing = site.audit().findings.of("row_missing")
    assert [(one.partition, one.start_offset, one.next_offset, one.start_item, one.next_item) for one in missing] == [(0, 0, 1, 10, 13)]


def test_an_offset_range_that_is_gone_from_segment_and_ledger_is_named(site: Site) -> None:
    manifest = head(site.engines, site.collection, 1)
    entry = manifest.ledger[-2]
    ledger = tuple(one for one in manifest.ledger if one != entry)
    segments = tuple(one for one in manifest.segments if one.start_offset != entry.start_offset)
    recommit(site.engines, site.collection, 1, ledger=ledger, segments=segments)
    found = site.audit().findings.of("offsets_without_verdict")
    assert [(one.index, one.partition, one.start_offset, one.next_offset) for one in found] == [("main", 1, entry.start_offset, entry.next_offset)]


def with_runs(site: Site, partition: int, change: object) -> AuditReport:
    """The audit after the first ledger of a partition got other runs."""
    manifest = head(site.engines, site.collection, partition)
    first = manifest.ledger[0]
    runs = change(decode_ledger(bytes_of(site.engines, first.object), ""))  # type: ignore[operator]
    entry = first.model_copy(update={"object": stored_again(site.engines, first.object, encode_ledger(runs))})
    recommit(site.engines, site.collection, partition, ledger=(entry, *manifest.ledger[1:]))
    return site.audit()


def test_runs_of_a_ledger_that_leave_out_or_repeat_items_and_offsets_are_named(site: Site) -> None:
    gone = with_runs(site, 0, lambda runs: [run for run in runs if run.start_offset != 0])
    assert {(one.start_offset, one.next_offset) for one in gone.findings.of("offsets_without_verdict")} == {(0, 1)}
    assert gone.findings.counts["row_without_verdict"] == 40
    some = with_runs(site, 0, lambda runs: [LedgerRun(0, 1, 2, 40, "row"), *runs])
    assert [(one.start_offset, one.start_item, one.next_item) for one in some.findings.of("items_without_verdict")] == [(0, 0, 2)]
    twice = with_runs(site, 0, lambda runs: [LedgerRun(0, 1, 0, 40, "row"), LedgerRun(0, 1, 38, 41, "reject", "empty"), *runs[1:]])
    assert [(one.start_item, one.next_item) for one in twice.findings.of("items_with_two_verdicts")] == [(38, 40)]


def test_a_row_that_the_ledger_calls_superseded_is_named(site: Site) -> None:
    runs = [LedgerRun(0, 1, 0, 39, "row"), LedgerRun(0, 1, 39, 40, "superseded"), LedgerRun(1, 2, 0, 1, "reject", "bad_envelope")]
    found = only(with_runs(site, 0, lambda old: [*runs, *(run for run in old if run.start_offset >= 2)]))
    assert (found.kind, found.start_offset, found.start_item) == ("row_without_verdict", 0, 39)


def test_a_record_that_the_ledger_calls_a_gap_is_found_in_the_archive(site: Site) -> None:
    report = with_runs(site, 0, lambda runs: [run if run.start_offset != 1 else LedgerRun(1, 2, 0, 0, "gap") for run in runs])
    found = only(report)
    assert (found.kind, found.partition, found.start_offset, found.next_offset) == ("gap_holds_record", 0, 1, 2)
    assert report.findings.counts["dead_letter_extra"] == 1


def test_offsets_that_an_operator_gave_up_are_a_note_and_a_state(site: Site) -> None:
    report = with_runs(site, 0, lambda runs: [run if run.start_offset != 1 else LedgerRun(1, 2, 0, 0, "lost") for run in runs])
    assert not told(report) and report.partitions[0].states["lost"] == 1
    (note,) = report.findings.of("offsets_lost")
    assert (note.index, note.partition, note.start_offset, note.next_offset) == ("main", 0, 1, 2)


def test_a_delete_delta_that_is_forgotten_brings_ids_back_and_each_is_named(site: Site) -> None:
    recommit(site.engines, site.collection, 0, deletes=())
    report = site.audit()
    assert kinds(report) == {"id_twice"}
    assert {one.id for one in report.findings.of("id_twice")} == {f"0-{n}" for n in range(5)}
    assert report.findings.of("id_twice")[0].what.startswith("live at 0/0/")


def test_a_row_that_outlives_its_delete_and_one_that_dies_of_nothing_are_named(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    first = manifest.segments[0].segment_id
    ids = read_rows_part(bytes_of(site.engines, manifest.segments[0].parts["rows"]), "").batch.column("id").to_pylist()
    deltas = [decode_delete_delta(bytes_of(site.engines, entry), "") for entry in manifest.deletes]
    changed = []
    for entry, delta in zip(manifest.deletes, deltas, strict=True):
        bitmaps = {name: BitMap(rows) for name, rows in delta.bitmaps.items()}
        if ids.index("0-7") in bitmaps.get(first, BitMap()):
            bitmaps[first] ^= BitMap([ids.index("0-7"), ids.index("0-20")])
        changed.append(stored_again(site.engines, entry, encode_delete_delta(DeleteDelta(bitmaps, delta.tombstones))))
    recommit(site.engines, site.collection, 0, deletes=tuple(changed))
    found = {one.kind: (one.id, one.partition, one.start_offset, one.object) for one in told(site.audit())}
    key = manifest.segments[0].parts["rows"].key
    assert found == {"deleted_row_live": ("0-7", 0, 0, key), "row_dead_without_cause": ("0-20", 0, 0, key)}
    later = site.audit(later_seconds=40 * DAYS)
    assert kinds(later) == {"deleted_row_live", "row_dead_without_cause"}, "nothing was compacted: causes cannot have gone"


def test_an_id_index_that_is_not_the_rows_is_named(site: Site) -> None:
    manifest = head(site.engines, site.collection, 0)
    segment = manifest.segments[1]
    data = bytes_of(site.engines, segment.parts["rows"])
    part = read_rows_part(data, "")
    renamed = part.batch.set_column(part.batch.schema.get_field_index("id"), "id", pa.array([f"other-{n}" for n in range(part.batch.num_rows)]))
    right, wrong = part.ids.hashes.astype(">u8").tobytes(), read_rows_part(write_rows_part(renamed, {}), "").ids.hashes.astype(">u8").tobytes()
    entry = stored_again(site.engines, segment.parts["rows"], data.replace(right, wrong))
    segments = tuple(with_part(one, "rows", entry) if one == segment else one for one in manifest.segments)
    recommit(site.engines, site.collection, 0, segments=segments)
    assert [(one.kind, one.object) for one in told(site.audit())] == [("id_index_wrong", entry.key)]
