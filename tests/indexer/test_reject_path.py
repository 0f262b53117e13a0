"""What a rejected update does to the row that it meant: kept or removed, and found by a later record of the id."""

import json

import pyarrow as pa
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from contracts.ledger import LedgerRun
from contracts.log import TopicSpec
from contracts.media_record import ARROW_TYPE
from contracts.partitioner import partition_of
from indexer.build_worker import BuildWorker
from indexer.dead_letter_states import LetterFilter, list_letters
from indexer.embed_worker import EmbedWorker
from indexer.replay import plan_replay, replay
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import DIMENSION, eventually, make_collection, produce, running, vector_of
from tests.indexer.stored import read_partition
from tests.indexer.test_claim_check_path import index_all, send, store_payload
from tests.indexer.test_picture_path import jpeg

RED, BROKEN = jpeg((250, 10, 10)), jpeg((0, 0, 250))[:150]


def pictures(engines: Engines, **options: object) -> CollectionRecord:
    return create_collection(engines, CollectionRequest("pictures", colour_fields(), 1, **options))  # type: ignore[arg-type]


def test_a_rejected_update_leaves_the_older_row_unless_the_collection_removes_it(engines: Engines) -> None:
    for name, on_reject, left in (("keeps", "keep", {"cat": (0, 0)}), ("removes", "remove", {})):
        collection = create_collection(engines, CollectionRequest(name, colour_fields(), 1, on_reject=on_reject))
        send(engines, collection, b"cat", RED, content_type="image/jpeg")
        send(engines, collection, b"cat", BROKEN, content_type="image/jpeg")
        stored = index_all(engines, collection, 2)
        assert stored.live == left and stored.is_tiled()
        letter = engines.log.read_at(collection.dead_letter_topic, 0, 0)
        assert letter is not None and letter.value == BROKEN and letter.header("hw_reason") == b"decode_failed"
        last = "delete" if on_reject == "remove" else "reject"
        assert stored.ledger[-1] == LedgerRun(1, 2, 0, 1, last, "decode_failed")


def test_what_was_removed_by_a_rejection_comes_back_with_the_next_good_record(engines: Engines) -> None:
    collection = pictures(engines, on_reject="remove")
    send(engines, collection, b"cat", RED, content_type="image/jpeg")
    send(engines, collection, b"cat", RED, content_type="image/jpeg", hw_attributes="[]")
    send(engines, collection, b"cat", RED, content_type="image/jpeg", hw_caption="again")
    send(engines, collection, None, b"%PDF", content_type="application/pdf")  # an id of its own: there is nothing else to remove
    send(engines, collection, b"\xff", RED, content_type="image/jpeg")  # no id at all
    stored = index_all(engines, collection, 5)
    assert stored.live == {"cat": (2, 0)} and stored.texts == {"cat": "again"}
    assert stored.verdicts()[(4, 0)] == "reject"


def test_a_rejected_row_of_a_record_removes_its_own_id_alone(engines: Engines) -> None:
    collection = make_collection(engines, "rows", 1, on_reject="remove")
    produce(engines, collection, 0, ["a", "b", "c"])
    vectors = [vector_of("a").tolist(), [0.0] * DIMENSION, None]
    table = pa.table({"id": ["a", "b", "c"], "vec": pa.array(vectors, pa.list_(pa.float32(), DIMENSION))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    send(engines, collection, None, sink.getvalue().to_pybytes(), content_type=ARROW_TYPE)
    index = collection.index()
    with running(EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 2)
    assert read_partition(engines, collection, 0).live == {"a": (1, 0)}


def test_a_misplaced_record_removes_nothing(engines: Engines) -> None:
    collection = create_collection(engines, CollectionRequest("placed", colour_fields(), 2, partitioner="murmur2", on_reject="remove"))
    home = next(name for name in map(str, range(50)) if partition_of("murmur2", name.encode(), 2) == 0)
    stray = next(name for name in map(str, range(50)) if partition_of("murmur2", name.encode(), 2) == 1)
    send(engines, collection, home.encode(), RED, content_type="image/jpeg")
    send(engines, collection, stray.encode(), RED, content_type="image/jpeg")
    stored = index_all(engines, collection, 2)
    assert stored.live == {home: (0, 0)}
    assert stored.ledger[-1] == LedgerRun(1, 2, 0, 1, "reject", "wrong_partition")


def test_a_bad_part_rejects_the_whole_item_where_the_collection_says_so(engines: Engines) -> None:
    collection = pictures(engines, on_partial="reject")
    send(engines, collection, b"cat", BROKEN, content_type="image/jpeg", hw_caption="a good caption")
    stored = index_all(engines, collection, 1)
    assert stored.live == {} and stored.ledger == [LedgerRun(0, 1, 0, 1, "reject", "decode_failed")]


def test_objects_of_bucket_notifications_are_fetched_checked_and_removed(engines: Engines) -> None:
    bucket = engines.settings.store_url.removeprefix("memory://")  # in memory a bucket is a store by its name: here our own
    engines.store.put_if_absent("red.jpg", RED)
    engines.store.put_if_absent("broken.jpg", BROKEN)
    etag = engines.store.get("red.jpg").etag  # type: ignore[union-attr]
    engines.log.create_topic(TopicSpec("drops", 1, -1))
    collection = pictures(engines, source_topic="drops", notifications=True)

    def notify(*changes: dict[str, object], event: str = "s3:ObjectCreated:Put") -> None:
        base: dict[str, object] = {"key": "red.jpg", "size": len(RED), "eTag": etag}
        found = [{"eventName": event, "s3": {"bucket": {"name": bucket}, "object": base | change}} for change in changes]
        send(engines, collection, None, json.dumps({"Records": found}).encode())

    notify({}, {"key": "gone.jpg"}, {"eTag": "other"}, {"size": 5}, {"key": "broken.jpg", "size": len(BROKEN), "eTag": None}, {"size": 10**9})
    notify({"key": "was-there.jpg"}, event="s3:ObjectRemoved:Delete")
    stored = index_all(engines, collection, 2)
    assert stored.live == {f"{bucket}/red.jpg": (0, 0)} and stored.is_tiled()
    reasons = {run.start_item: run.reason for run in stored.ledger if run.verdict == "reject"}
    assert reasons == {1: "payload_missing", 2: "payload_mismatch", 4: "decode_failed", 5: "too_large"}
    assert stored.verdicts()[(1, 0)] == "delete" and stored.verdicts()[(0, 3)] == "reject"
    letters = [
        engines.log.read_at(collection.dead_letter_topic, 0, at) for at in range(engines.log.bounds(collection.dead_letter_topic)[0].next_offset)
    ]
    assert [letter.header("hw_items") for letter in letters if letter is not None] == [b"1-5"]


def test_old_versions_and_late_events_remove_nothing_and_expired_objects_go(engines: Engines) -> None:
    bucket = engines.settings.store_url.removeprefix("memory://")
    for name in ("kept.jpg", "expired.jpg", "gone.jpg"):
        engines.store.put_if_absent(name, RED)
    engines.log.create_topic(TopicSpec("drops", 1, -1))
    collection = pictures(engines, source_topic="drops", notifications=True, on_reject="remove")

    def notify(name: str, event: str, **more: str) -> None:
        entry = {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": name} | more}}
        send(engines, collection, None, json.dumps({"Records": [entry]}).encode())

    for name in ("kept.jpg", "expired.jpg", "gone.jpg"):
        notify(name, "ObjectCreated:Put", size=str(len(RED)))
    assert index_all(engines, collection, 3).live.keys() == {f"{bucket}/{name}" for name in ("kept.jpg", "expired.jpg", "gone.jpg")}
    engines.store.delete("expired.jpg")
    engines.store.delete("gone.jpg")
    notify("kept.jpg", "ObjectRemoved:Delete", versionId="old")  # of a version that nobody reads any more
    notify("kept.jpg", "LifecycleExpiration:Delete", versionId="older")
    notify("kept.jpg", "ObjectCreated:Put", eTag="earlier")  # came after the event of the object that is there now
    notify("expired.jpg", "LifecycleExpiration:DeleteMarkerCreated", versionId="marker")
    notify("gone.jpg", "ObjectRemoved:Delete", versionId="last")
    stored = index_all(engines, collection, 8)
    assert stored.live == {f"{bucket}/kept.jpg": (0, 0)} and stored.is_tiled()
    verdicts = stored.verdicts()
    assert [verdicts[offset, 0] for offset in range(3, 8)] == ["superseded", "superseded", "reject", "delete", "delete"]


@pytest.mark.parametrize("options", [{"source_topic": None}, {"partitioner": "murmur2"}])
def test_a_collection_of_notifications_that_could_not_work_is_refused_with_a_hint(engines: Engines, options: dict[str, object]) -> None:
    engines.log.create_topic(TopicSpec("drops", 1, -1))
    with pytest.raises(SettingsError, match="--"):
        pictures(engines, **({"source_topic": "drops", "notifications": True} | options))


@pytest.mark.parametrize("committed", [False, True])
def test_an_update_that_removed_its_row_is_still_dead_and_its_replay_brings_the_item_back(engines: Engines, committed: bool) -> None:
    collection = pictures(engines, on_reject="remove")
    ref = store_payload(engines, collection, RED)
    engines.store.delete(str(ref["key"]))
    send(engines, collection, b"cat", RED, content_type="image/jpeg", hw_caption="old")
    send(engines, collection, b"cat", b"", content_type="image/jpeg", hw_payload_ref=json.dumps(ref))
    if committed:
        assert index_all(engines, collection, 2).live == {}
    else:
        with running(EmbedWorker(engines, collection, collection.index(), ColourEncoder()).run):
            eventually(lambda: [one.state for one in list_letters(engines, collection, collection.index(), LetterFilter())] == ["dead"])
    [listed] = list_letters(engines, collection, collection.index(), LetterFilter())
    assert (listed.state, listed.dead_items) == ("dead", [0])
    store_payload(engines, collection, RED)
    replay(engines, collection, plan_replay([listed]).letters, lambda done: None)
    stored = index_all(engines, collection, 3)
    assert stored.live == {"cat": (2, 0)} and stored.texts == {"cat": None}
    [listed] = list_letters(engines, collection, collection.index(), LetterFilter())
    assert listed.state == "replayed"
