"""A collection's view with its threads running: what is promised about tail, hot load and replacement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from backends.catalog.admin import delete_collection
from contracts.chain import BatchSpan
from contracts.engines import Engines
from contracts.errors import HeadwaterError, UnavailableError
from contracts.head_lag import HeadLag
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore
from contracts.vectors_batch import BatchItem, batch_headers, build_batch, encode_batch
from query.collection_view import CollectionView
from query.discovery import Collections
from tests.query.conftest import caught_up, ids_of, wait_until
from tests.query.writer import Writer, create, engines_for_test, writer

Open = Callable[[Writer], CollectionView]


def settled(view: CollectionView, made: Writer) -> list[str]:
    wait_until(lambda: caught_up(view, made))
    return ids_of(view.snapshot())


def version(view: CollectionView) -> int:
    return view.snapshot().views[0].loaded.version


def test_a_batch_is_searchable_as_soon_as_it_is_read(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("a")
    made.put("b")
    assert settled(view, made) == ["a", "b"]


def test_a_zombies_batches_and_duplicates_are_dropped_whole(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("a")
    made.send([made.upsert("early", offset=5)], start=5, next_offset=6, zombie=True)
    made.send([made.upsert("late", offset=0)], start=0, next_offset=1, zombie=True)
    made.put("b")
    assert settled(view, made) == ["a", "b"]


def test_a_batch_of_another_incarnation_or_topic_is_dropped(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    value = encode_batch(build_batch([made.upsert("foreign", offset=0)], made.schema))
    for incarnation, topic in (("01ARZ3NDEKTSV4RRFFQ69G5FAV", made.record.source_topic_id), (made.record.incarnation, "other")):
        made._append(value, batch_headers(BatchSpan(incarnation, topic, 0, 1), value))
    made.put("a")
    assert settled(view, made) == ["a"]


def test_rows_below_the_expected_offset_are_trimmed_from_an_accepted_batch(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("a")
    made.send([made.upsert("again", offset=0), made.upsert("b", offset=1)], start=0, next_offset=2)
    assert settled(view, made) == ["a", "b"]


def test_rejects_and_gaps_move_the_offset_and_show_nothing(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.send([BatchItem(0, 0, "reject", "x", reason="decode_failed"), BatchItem(1, 3, "gap")], next_offset=4)
    assert settled(view, made) == []
    assert view.snapshot().views[0].expected == 4


def test_a_commit_notice_alone_loads_the_new_segment(made: Writer, open_view: Open) -> None:
    view = open_view(made)  # polls once an hour
    made.put("a")
    made.put("b")
    made.commit()
    wait_until(lambda: version(view) == 2)
    snapshot = view.snapshot()
    assert ids_of(snapshot) == ["a", "b"]
    assert snapshot.views[0].tail.rows == 0
    assert [part.rows for _, part in snapshot.parts] == [2, 0]


def test_a_notice_costs_a_look_at_its_manifest_and_none_at_what_may_follow(made: Writer, open_view: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    view = open_view(made)
    asked: list[str] = []
    get = made.engines.store.get
    monkeypatch.setattr(made.engines.store, "get", lambda key: asked.append(key) or get(key))
    made.put("a")
    made.commit()
    made.put("b")
    made.commit()
    wait_until(lambda: version(view) == 3)
    view._notice(0, 0)  # only a newer manifest can help: this one looks
    wait_until(lambda: made.keys.manifest(4) in asked)
    told = asked[: asked.index(made.keys.manifest(4))]
    assert [key for key in told if key.startswith(made.keys.manifests_prefix)] == [made.keys.manifest(2), made.keys.manifest(3)]


def test_a_start_reads_the_manifest_that_is_listed_and_is_told_of_what_comes_meanwhile(
    made: Writer, open_view: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.put("a")
    made.commit()
    asked: list[str] = []
    store, get, boundary = made.engines.store, made.engines.store.get, made.keys.boundary

    def commit_meanwhile(key: str) -> object:
        if key == boundary and boundary not in asked:
            asked.append(key)
            made.put("b")
            made.commit()
        asked.append(key)
        return get(key)

    monkeypatch.setattr(store, "get", commit_meanwhile)
    view = open_view(made)
    wait_until(lambda: version(view) == 3)
    assert ids_of(view.snapshot()) == ["a", "b"]
    told = asked[: asked.index(made.keys.manifest(3))]
    assert made.keys.manifest(2) in told and [key for key in told if key == boundary]


def test_a_notice_of_what_was_compacted_away_meanwhile_leads_to_the_newest_manifest(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("a")
    gone = made.commit(notice=False).manifest.segments[0]
    made.compact(notice=False)
    for part in gone.parts.values():
        made.engines.store.delete(part.key)
    view._notice(0, 2)
    wait_until(lambda: version(view) == 3)
    assert ids_of(view.snapshot()) == ["a"]


def test_without_a_notice_the_poll_finds_the_new_manifest() -> None:
    made = writer(engines_for_test(query_poll_seconds=0.05))
    view = CollectionView(made.engines, made.record)
    view.start()
    try:
        made.put("a")
        made.commit(notice=False)
        wait_until(lambda: view.ready and version(view) == 2)
    finally:
        view.stop()


def test_a_node_that_starts_between_commits_shows_segments_and_tail(made: Writer, open_view: Open) -> None:
    made.put("a")
    made.put("b")
    made.commit()
    made.put("b")
    made.remove("a")
    made.put("c")
    view = open_view(made)
    assert settled(view, made) == ["b", "c"]
    assert view.snapshot().views[0].tail.rows == 2


def test_tail_rows_and_deletes_mask_rows_of_segments_that_are_loaded_later(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("kept")
    made.put("renewed")
    made.put("deleted")
    cut = made.next_offset
    made.put("renewed")
    made.remove("deleted")
    assert settled(view, made) == ["kept", "renewed"]
    made.commit(upto=cut)  # a segment with the older versions, loaded after the tail's
    wait_until(lambda: version(view) == 2)
    assert ids_of(view.snapshot()) == ["kept", "renewed"]
    assert view.snapshot().views[0].tail.rows == 1


def test_a_replay_loses_against_what_came_after_its_original(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("first")
    made.put("x")
    made.put("gone")
    made.remove("gone")
    made.commit()
    made.send([made.upsert("x", origin_offset=0, origin_item=0, text="old")])
    made.send([made.upsert("gone", origin_offset=0, origin_item=0)])
    made.send([made.upsert("fresh", origin_offset=0, origin_item=0)])
    assert settled(view, made) == ["first", "fresh", "x"]
    found = view.snapshot().views[0].find("x")
    assert found is not None and found[0].value(found[1], "text") is None


def test_a_manifest_ahead_of_the_tail_moves_the_reader_on(made: Writer, open_view: Open) -> None:
    made.put("a")
    view = open_view(made)
    settled(view, made)
    # a batch that this node cannot read, and a manifest (by a mended builder) beyond it
    value = encode_batch(build_batch([made.upsert("broken", offset=1)], made.schema))
    headers = batch_headers(BatchSpan(made.record.incarnation, made.record.source_topic_id, 1, 2), value)
    made._append(value[:-1] + b"\x01", headers)
    made.next_offset = 2
    made.put("c")
    time.sleep(0.2)
    assert view.snapshot().views[0].expected == 1  # never skips what it cannot read
    made.pending = [entry for entry in made.pending if entry[1].id != "broken"]
    made.commit(notice=False)
    view._notice(0, 0)
    wait_until(lambda: view.snapshot().views[0].expected == 3)
    made.put("d")
    assert settled(view, made) == ["a", "c", "d"]


def test_below_the_logs_start_a_node_reloads_the_manifest_and_goes_on(made: Writer, open_view: Open) -> None:
    made.put("a")
    view = open_view(made)
    settled(view, made)
    topic = made.index.vectors_topic
    view._tail.stop(5)  # the node is cut off from the log while others go on
    made.put("b")
    made.commit(notice=False)
    made.put("c")
    made.engines.log.truncate(topic, {0: made.read.manifest.checkpoint.vectors_offset})
    revived = CollectionView(made.engines, made.record)
    revived._partitions[0].swap(view.snapshot().views[0].loaded)  # the old manifest, whose checkpoint the log has forgotten
    revived.start()
    try:
        wait_until(lambda: caught_up(revived, made))
        assert ids_of(revived.snapshot()) == ["a", "b", "c"]
    finally:
        revived.stop()


def test_no_reader_ever_sees_a_gap_or_a_row_twice_while_segments_replace_the_tail(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    for number in range(20):
        made.put(f"base{number}")
    settled(view, made)
    problems: list[str] = []
    stop, scans = threading.Event(), [0]

    def scan() -> None:
        while not stop.is_set():
            ids = ids_of(view.snapshot())
            scans[0] += 1
            if len(ids) != len(set(ids)):
                problems.append("a row twice")
            if not {f"base{number}" for number in range(20)} <= set(ids):
                problems.append("a row is missing")

    scanner = threading.Thread(target=scan)
    scanner.start()
    try:
        for turn in range(15):
            for number in range(0, 20, 3):
                made.put(f"base{(number + turn) % 20}")
            made.commit()
            if turn % 4 == 3:
                made.compact()
        final = made.read.manifest.version
        wait_until(lambda: version(view) == final)
    finally:
        stop.set()
        scanner.join()
    assert problems == [] and scans[0] > 10


def test_a_segment_that_is_damaged_leaves_the_old_view_in_place(made: Writer, open_view: Open) -> None:
    made.put("a")
    made.commit()
    view = open_view(made)
    made.put("b")
    settled(view, made)
    store: ObjectStore = made.engines.store
    last = made.read
    made.commit(notice=False)
    entry = made.read.manifest.segments[-1].parts["rows"]
    stored = store.get(entry.key)
    assert stored is not None
    store.compare_and_swap(entry.key, stored.data[:-1] + b"\0", stored.etag)
    made.announce()
    wait_until(lambda: bool(view.state()["errors"]))
    assert version(view) == last.manifest.version
    assert ids_of(view.snapshot()) == ["a", "b"]
    labels = {"collection": "things", "stage": "hot_load", "outcome": "corrupt"}
    assert made.engines.metrics.registry.get_sample_value("headwater_records_total", labels) == 1


def test_a_pinned_snapshot_never_changes(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    made.put("a")
    made.put("b")
    settled(view, made)
    pinned = view.snapshot()
    matrix = pinned.views[0].tail.vectors["own"].matrix.copy()
    made.put("a", np.array([0, 1, 0, 0], np.float32))
    made.remove("b")
    made.commit()
    wait_until(lambda: version(view) == 2)
    assert ids_of(pinned) == ["a", "b"] and ids_of(view.snapshot()) == ["a"]
    np.testing.assert_array_equal(pinned.views[0].tail.vectors["own"].matrix, matrix)


def test_a_re_created_collection_replaces_the_old_one_and_a_deleted_one_goes(engines: Engines) -> None:
    made = writer(engines)
    made.put("old")
    found = Collections(engines)
    try:
        found.refresh()
        wait_until(lambda: found.ready and caught_up(found.get("things"), made))
        delete_collection(engines, "things")
        again = Writer(engines, create(engines))
        again.put("new")
        found.refresh()
        view = found.get("things")
        assert view.record.incarnation == again.record.incarnation
        wait_until(lambda: caught_up(view, again))
        assert ids_of(view.snapshot()) == ["new"]
        delete_collection(engines, "things")
        found.refresh()
        assert found.views() == []
    finally:
        found.stop()


def test_a_collection_of_another_cluster_is_not_served_and_says_why(engines: Engines) -> None:
    made = writer(engines)
    other = replace(engines_for_test(), store=engines.store)
    view = CollectionView(other, made.record)
    view.start()
    assert not view.ready
    with pytest.raises(UnavailableError, match="cluster") as raised:
        view.snapshot()
    assert raised.value.error_code == "identity_mismatch" and raised.value.hint


def test_a_manifest_written_for_another_topic_is_refused(engines: Engines) -> None:
    made = writer(engines)
    made.publish(made.read.next(media_topic_id="another-topic"))
    view = CollectionView(engines, made.record)
    view.start()
    try:
        wait_until(lambda: bool(view.state()["errors"]))
        assert not view.ready
    finally:
        view.stop()


def test_staleness_counts_from_the_first_head_that_answers_do_not_hold() -> None:
    staleness = HeadLag()
    assert staleness.seconds({0: 0}, 100.0) == 0
    for head, at in ((10, 100.0), (20, 101.0), (30, 102.0)):
        staleness.observe({0: head}, at)
    assert staleness.seconds({0: 5}, 103.0) == 3.0
    assert staleness.seconds({0: 10}, 103.0) == 2.0
    assert staleness.seconds({0: 30}, 103.0) == 0
    staleness.forget({0: 20})
    assert staleness.seconds({0: 25}, 103.0) == 1.0
    assert staleness.records({0: 25}) == {0: 5}


def test_a_view_says_how_far_it_is_behind_the_media_log(made: Writer, open_view: Open) -> None:
    view = open_view(made)
    producer = made.engines.log.producer()
    producer.send(made.record.source_topic, partition=0, key=b"k", value=b"v").result()
    view.observe()
    time.sleep(0.02)
    assert view.freshness(view.snapshot())["staleness_ms"] >= 20  # type: ignore[operator]
    made.put("a")
    settled(view, made)
    assert view.freshness(view.snapshot())["staleness_ms"] == 0


def test_a_node_whose_manifest_was_collected_takes_the_newest_one(made: Writer, open_view: Open) -> None:
    made.put("a")
    made.commit()
    view = open_view(made)
    store = made.engines.store
    made.put("a")
    made.put("b")
    made.commit(notice=False)
    made.compact(notice=False)
    head = made.read.manifest
    store.compare_and_swap(made.keys.boundary, str(head.version - 1).encode(), None)
    kept = {part.key for segment in head.segments for part in segment.parts.values()} | {entry.key for entry in head.deletes}
    for info in list(store.list(made.keys.prefix)):
        if info.key not in kept | {made.keys.boundary, made.keys.manifest(head.version)}:
            store.delete(info.key)
    made.announce()
    wait_until(lambda: version(view) == head.version)
    assert ids_of(view.snapshot()) == ["a", "b"]


def test_a_new_schema_version_is_served_once_it_is_loaded_and_old_segments_lack_the_new_attribute(engines: Engines) -> None:
    made = writer(engines, attributes={"colour": "keyword"})
    made.put("a", attributes={"colour": "red"})
    made.commit()
    found = Collections(engines)
    try:
        found.refresh()
        wait_until(lambda: found.ready)
        changed = made.record.model_copy(update={"version": 2, "attributes": {"colour": "keyword", "size": "integer"}})
        engines.store.put_if_absent(CollectionKeys("things", made.record.incarnation).version(2), changed.to_bytes())
        before = found.get("things")

        def replaced() -> bool:
            found.refresh()
            return found.get("things") is not before

        wait_until(replaced)
        view = found.get("things")
        assert view.ready and ids_of(view.snapshot()) == ["a"]
        part, row = view.snapshot().views[0].find("a") or (None, 0)
        assert part is not None and part.value(row, "attributes") == {"colour": "red", "size": None, "extra": None}
    finally:
        found.stop()


def test_a_mistake_in_a_thread_ends_the_role_instead_of_serving_ever_older_answers(made: Writer) -> None:
    found = Collections(made.engines)
    try:
        found.refresh()
        wait_until(lambda: found.ready)
        found.check()
        found.get("things")._partitions[0].take_record = lambda record: 1 / 0  # type: ignore[assignment,return-value,method-assign]
        made.put("a")
        wait_until(lambda: found.get("things").failure is not None)
        with pytest.raises(HeadwaterError, match="ZeroDivisionError"):
            found.check()
    finally:
        found.stop()
