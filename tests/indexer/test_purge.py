"""Purge: nothing of the ids is left in the archive, byte by byte, everything else reads as before, and a kill leaves nothing behind."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
import pytest

from backends.catalog.archive import ArchiveReader
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import FencedError, RecordError
from contracts.item import id_hash
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from contracts.object_keys import CollectionKeys
from contracts.partitioner import partition_of
from contracts.store import ObjectStore
from indexer.archive_rewrite import empty_rows
from indexer.partition_archiver import PartitionArchiver
from indexer.purge import Purge
from tests.indexer.archived import all_bytes, archived, head, logged, media, send, tar_keys
from tests.indexer.conftest import arrow_rows, make_collection, produce
from tests.indexer.test_archive import archiver, feed, tuned

VICTIMS = ["alice", "bob", "carol"]


def archive_all(engines: Engines, collection: CollectionRecord, archive_bytes: int = 9000) -> None:
    """Archive what the log holds now."""
    for partition in range(collection.partitions):
        mine = archiver(tuned(engines, archive_bytes=archive_bytes), collection, partition)
        mine.start()
        feed(mine, engines, collection)
        mine.close()
        mine.commit()


def archive_bytes(engines: Engines, collection: CollectionRecord) -> bytes:
    return all_bytes(engines, CollectionKeys(collection.name, collection.incarnation).prefix + "archive/")


def filled(engines: Engines, collection: CollectionRecord) -> dict[int, dict[int, object]]:
    """Thirty ids a partition, the victims among them in three versions; what must still read afterwards."""
    for partition in range(collection.partitions):
        for turn in range(3):
            send(engines, collection, partition, [f"{partition}-{turn}-{n}" for n in range(10)])
            send(engines, collection, partition, VICTIMS if partition == 0 else ["dave"])
    archive_all(engines, collection)
    found = {p: archived(engines, collection, p) for p in range(collection.partitions)}
    return {p: {o: record for o, record in records.items() if (record.key or b"").decode() not in VICTIMS} for p, records in found.items()}


def test_after_a_purge_of_three_ids_their_bytes_are_nowhere_in_the_tars_and_everything_else_reads_as_before(
    engines: Engines, collection: CollectionRecord
) -> None:
    rest = filled(engines, collection)
    before = archive_bytes(engines, collection)
    assert all(before.count(media(name)) == 3 and f"caption of {name}".encode() in before for name in VICTIMS)
    others = {p: set(head(engines, collection, p).tars) for p in (0, 1)}
    work = Purge(engines, collection, VICTIMS)
    findings = work.find()
    assert (findings.archived, findings.unarchived) == ({0: 9}, {})
    report = work.run(findings)
    assert (report.records_removed, report.tars_rewritten) == (9, len(findings.tars))
    after = archive_bytes(engines, collection)
    for name in VICTIMS:
        assert name.encode() not in after and f"<{name}>".encode() not in after
    for partition in (0, 1):
        assert archived(engines, collection, partition) == rest[partition]
    assert set(head(engines, collection, 1).tars) == others[1], "tars without the ids stay as they are"
    assert head(engines, collection, 0).condemned == () and tar_keys(engines, collection) == {
        t.key for p in (0, 1) for t in head(engines, collection, p).tars
    }
    deletes = logged(engines, collection, 0)
    assert {deletes[offset].key for offset in range(39, 42)} == {name.encode() for name in VICTIMS}
    assert all(deletes[offset].value is None for offset in range(39, 42))
    reader = ArchiveReader(engines.store)
    assert reader.read(collection, 0, 10) is None and reader.read(collection, 0, 9) == rest[0][9]
    assert Purge(engines, collection, VICTIMS).find().archived == {}


def test_a_record_that_lies_in_the_log_only_is_left_out_when_it_is_archived_later(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["x", "alice", "y", "alice"])
    work = Purge(engines, collection, ["alice"])
    findings = work.find()
    assert (findings.archived, findings.unarchived) == ({}, {0: 2})
    work.run(findings)
    send(engines, collection, 0, ["alice", "z"])  # after the purge: a new item, which stays
    archive_all(engines, collection)
    found = archived(engines, collection, 0)
    assert [(offset, record.key, record.value is None) for offset, record in sorted(found.items())] == [
        (0, b"x", False), (2, b"y", False), (5, b"alice", False), (6, b"z", False),
    ]  # fmt: skip
    assert archive_bytes(engines, collection).count(media("alice")) == 1
    assert head(engines, collection, 0).purges == (), "forgotten once the archive has passed it"


def test_an_archiver_that_was_about_to_commit_the_ids_leaves_them_out(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["x", "alice", "y"])
    mine = archiver(tuned(engines, archive_bytes=100_000), collection)
    mine.start()
    feed(mine, engines, collection)
    mine.close()
    entry = mine._upload(mine.closed[0], mine.closed[0].tar)  # type: ignore[arg-type]
    mine.closed[0].entry = entry  # uploaded, not committed
    assert media("alice") in archive_bytes(engines, collection)
    work = Purge(engines, collection, ["alice"])
    work.run(work.find())
    mine.commit()
    assert set(archived(engines, collection, 0)) == {0, 2}
    assert b"alice" not in archive_bytes(engines, collection), "the tar that was uploaded first is deleted"
    assert tar_keys(engines, collection) == {tar.key for tar in head(engines, collection, 0).tars}


def uploaded(engines: Engines, collection: CollectionRecord) -> PartitionArchiver:
    """An archiver of partition 0 that has uploaded a tar of everything and not committed it."""
    mine = archiver(tuned(engines, archive_bytes=100_000), collection)
    mine.start()
    feed(mine, engines, collection)
    mine.close()
    mine.closed[0].entry = mine._upload(mine.closed[0], mine.closed[0].tar)  # type: ignore[arg-type]
    return mine


def test_a_tar_that_a_dead_archiver_left_uncommitted_is_deleted_by_the_purge(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["x", "alice"])
    uploaded(engines, collection)
    assert media("alice") in archive_bytes(engines, collection)
    work = Purge(engines, collection, ["alice"])
    assert work.run(work.find()).dead_tars_deleted == 1
    assert b"alice" not in archive_bytes(engines, collection) and tar_keys(engines, collection) == set()
    archive_all(engines, collection)
    assert set(archived(engines, collection, 0)) == {0} and b"alice" not in archive_bytes(engines, collection)


def test_a_living_archiver_whose_tar_a_purge_took_for_a_dead_one_uploads_it_again(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["x", "y"])
    mine = uploaded(engines, collection)
    wanted = logged(engines, collection, 0)
    work = Purge(engines, collection, ["somebody"])
    work.run(work.find())
    assert tar_keys(engines, collection) == set()
    mine.commit()
    assert archived(engines, collection, 0) == wanted
    assert tar_keys(engines, collection) == {tar.key for tar in head(engines, collection, 0).tars}


class StopsAt:
    """A store of which one call raises, as if the process ended there."""

    def __init__(self, inner: ObjectStore, method: str, part: str) -> None:
        self._inner, self._method, self._part = inner, method, part

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        def call(key: str, *args: object):  # type: ignore[no-untyped-def]
            if name == self._method and self._part in key:
                raise KeyboardInterrupt
            return getattr(self._inner, name)(key, *args)

        return call


@pytest.mark.parametrize(("method", "part"), [("delete", ".tar"), ("put_if_absent", "/m00"), ("put_if_absent", "/manifest/"), ("get", ".tar")])
def test_a_purge_that_was_killed_is_finished_by_the_next_one(engines: Engines, collection: CollectionRecord, method: str, part: str) -> None:
    rest = filled(engines, collection)
    dying = Engines(engines.settings, engines.log, StopsAt(engines.store, method, part), engines.metrics)  # type: ignore[arg-type]
    work = Purge(dying, collection, VICTIMS)
    with pytest.raises(KeyboardInterrupt):
        work.run(work.find())
    again = Purge(engines, collection, VICTIMS)
    again.run(again.find())
    assert b"alice" not in archive_bytes(engines, collection)
    assert {p: archived(engines, collection, p) for p in (0, 1)} == rest
    assert tar_keys(engines, collection) == {t.key for p in (0, 1) for t in head(engines, collection, p).tars}


def test_a_purge_that_was_killed_before_it_deleted_the_old_tar_is_finished_by_the_next_archiver(
    engines: Engines, collection: CollectionRecord
) -> None:
    filled(engines, collection)
    dying = Engines(engines.settings, engines.log, StopsAt(engines.store, "delete", ".tar"), engines.metrics)  # type: ignore[arg-type]
    work = Purge(dying, collection, ["bob"])
    with pytest.raises(KeyboardInterrupt):
        work.run(work.find())
    condemned = head(engines, collection, 0).condemned
    assert condemned and set(condemned) <= tar_keys(engines, collection)
    archiver(engines, collection).start()
    assert head(engines, collection, 0).condemned == () and not set(condemned) & tar_keys(engines, collection)


def test_of_two_purges_at_once_the_older_is_fenced(engines: Engines, collection: CollectionRecord) -> None:
    filled(engines, collection)
    first = Purge(engines, collection, ["alice"])
    findings, told = first.find(), []

    class Meanwhile(StopsAt):
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            def call(key: str, *args: object):  # type: ignore[no-untyped-def]
                if name == "put_if_absent" and "/m00" in key and not told:
                    told.append(key)
                    second = Purge(engines, collection, ["bob"])
                    second.run(second.find())
                return getattr(self._inner, name)(key, *args)

            return call

    first.engines = Engines(engines.settings, engines.log, Meanwhile(engines.store, "", ""), engines.metrics)  # type: ignore[arg-type]
    with pytest.raises(FencedError):
        first.run(findings)
    again = Purge(engines, collection, ["alice"])
    again.run(again.find())
    left = archive_bytes(engines, collection)
    assert b"<alice>" not in left and b"<bob>" not in left and media("carol") in left


def test_of_rows_that_share_a_record_only_the_purged_ones_are_emptied_and_the_others_keep_their_numbers(
    engines: Engines, collection: CollectionRecord
) -> None:
    produce(engines, collection, 0, ["row-a", "row-b", "row-c"], ["text a", "text b", "text c"])
    archive_all(engines, collection)
    whole = archived(engines, collection, 0)[0]
    work = Purge(engines, collection, ["row-b"])
    report = work.run(work.find())
    assert (report.records_removed, report.records_emptied) == (0, 1)
    left = archived(engines, collection, 0)[0]
    assert (left.headers, left.timestamp_ms, left.offset) == (whole.headers, whole.timestamp_ms, whole.offset)
    items = {i.item: i for i in read_media_record(left, collection, RecordLimits()) if isinstance(i, MediaItem)}
    assert {number: (item.id, item.text) for number, item in items.items()} == {0: ("row-a", "text a"), 2: ("row-c", "text c")}
    vector = next(i for i in read_media_record(whole, collection, RecordLimits()) if isinstance(i, MediaItem) and i.id == "row-b").vectors["vec"]
    left_bytes = archive_bytes(engines, collection)
    assert b"row-b" not in left_bytes and b"text b" not in left_bytes and vector.tobytes() not in left_bytes
    every = Purge(engines, collection, ["row-a", "row-c"])
    every.run(every.find())
    assert b"text a" not in archive_bytes(engines, collection)
    assert Purge(engines, collection, ["row-a", "row-b", "row-c"]).find().archived == {}


def test_dictionaries_of_a_stream_keep_nothing_of_emptied_rows() -> None:
    table = pa.table({"id": pa.array(["keep", "gone"]).dictionary_encode(), "vec": pa.array([[1.0] * 8] * 2, pa.list_(pa.float32(), 8))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    emptied = empty_rows(bytes(sink.getvalue()), {1})
    assert emptied is not None and b"gone" not in emptied and b"keep" in emptied
    assert pa.ipc.open_stream(emptied).read_all().to_pylist()[1] == {"id": None, "vec": None}
    assert empty_rows(b"no stream", {0}) is None
    assert arrow_rows(["a"]) != empty_rows(arrow_rows(["a"]), {0})


def payload(engines: Engines, collection: CollectionRecord, data: bytes) -> tuple[str, str]:
    digest = hashlib.sha256(data).hexdigest()
    key = CollectionKeys(collection.name, collection.incarnation).claim(digest)
    engines.store.put_if_absent(key, data)
    return key, json.dumps({"key": key, "sha256": digest, "size": len(data)})


def test_payloads_of_purged_ids_are_deleted_unless_another_id_refers_to_them(engines: Engines, collection: CollectionRecord) -> None:
    own, own_reference = payload(engines, collection, media("own"))
    common, common_reference = payload(engines, collection, media("common"))
    tail, tail_reference = payload(engines, collection, media("tail"))
    send(engines, collection, 0, ["alice"], hw_payload_ref=own_reference)
    send(engines, collection, 0, ["alice", "dave"], hw_payload_ref=common_reference)
    archive_all(engines, collection)
    send(engines, collection, 0, ["alice"], hw_payload_ref=tail_reference)
    send(engines, collection, 1, ["erin"], hw_payload_ref=common_reference)
    work = Purge(engines, collection, ["alice"])
    report = work.run(work.find())
    assert (report.claims_deleted, report.claims_kept) == (2, 1)
    assert [engines.store.get(key) is None for key in (own, common, tail)] == [True, False, True]


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_payload_that_a_newer_record_names_stays_when_it_came_while_the_purge_was_asked(
    engines: Engines, collection: CollectionRecord, is_archived: bool
) -> None:
    shared, shared_reference = payload(engines, collection, media("shared"))
    again, again_reference = payload(engines, collection, media("again"))
    late, late_reference = payload(engines, collection, media("late"))
    send(engines, collection, 0, ["alice"], hw_payload_ref=shared_reference)
    archive_all(engines, collection)
    work = Purge(engines, collection, ["alice"])
    findings = work.find()
    send(engines, collection, 1, ["erin"], hw_payload_ref=shared_reference)  # the same bytes: the object is reused
    send(engines, collection, 0, ["alice"], hw_payload_ref=late_reference)  # goes too: it lies below the delete

    class Meanwhile(Purge):
        def _purge_partition(self, *arguments):  # type: ignore[no-untyped-def]
            send(engines, collection, 0, ["alice"], hw_payload_ref=again_reference)  # after the delete: a new item, which stays
            super()._purge_partition(*arguments)
            if is_archived:
                archive_all(engines, collection)

    work.__class__ = Meanwhile
    report = work.run(findings)
    assert [engines.store.get(key) is None for key in (shared, again, late)] == [False, False, True]
    assert (report.claims_deleted, report.claims_kept) == (1, 1)


def test_deletes_go_where_the_id_lives_by_the_collections_partitioner(engines: Engines) -> None:
    named = make_collection(engines, "named", partitions=4, partitioner="murmur2", id_from="header:x-id")
    home = partition_of("murmur2", b"alice", 4)
    stray = (home + 1) % 4
    send(engines, named, stray, ["other-key"], **{"x-id": "alice"})  # where the partitioner would not put it
    archive_all(engines, named)
    work = Purge(engines, named, ["alice", "alice"])
    report = work.run(work.find())
    assert list(report.deletes) == [home]
    (sent,) = logged(engines, named, home).values()
    assert (sent.key, sent.value, sent.header("x-id")) == (b"alice", None, b"alice")
    assert archived(engines, named, stray) == {} and report.records_removed == 1


def test_a_rejected_record_of_the_id_is_purged_too(engines: Engines, collection: CollectionRecord) -> None:
    send(engines, collection, 0, ["alice"], hw_attributes="{")
    archive_all(engines, collection)
    work = Purge(engines, collection, ["alice"])
    work.run(work.find())
    assert b"alice" not in archive_bytes(engines, collection)


def test_an_id_that_no_record_can_have_is_refused(engines: Engines, collection: CollectionRecord) -> None:
    for wrong in ("", "x" * 513, "a\0b"):
        with pytest.raises(RecordError):
            Purge(engines, collection, [wrong])


def test_looking_changes_nothing(engines: Engines, collection: CollectionRecord) -> None:
    filled(engines, collection)
    before, steps = archive_bytes(engines, collection), []
    findings = Purge(engines, collection, VICTIMS, lambda step, done, total: steps.append(step)).find()
    assert findings.partitions == {0} and "looking through tars" in steps
    assert archive_bytes(engines, collection) == before and len(logged(engines, collection, 0)) == 39
    assert {id_hash(name) for name in VICTIMS} == Purge(engines, collection, VICTIMS).hashes
