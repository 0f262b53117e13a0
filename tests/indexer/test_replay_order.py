"""Replays meet updates and deletes: whatever is newer than the original wins, committed or still in the tail, in the builder as in a query node."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ulid import ULID

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.item import VersionOrder, version_order
from contracts.log import LogRecord
from contracts.media_origin import Items, MediaOrigin, replay_headers
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from query.partition import Partition
from tests.examples import examples
from tests.indexer.conftest import delete, eventually, make_collection, produce, running
from tests.indexer.stored import read_partition
from tests.query.loading import partition_loader

Place = tuple[int, int]


def send(engines: Engines, record: LogRecord, headers: object = None) -> int:
    producer = engines.log.producer()
    sent = producer.send(record.topic, partition=record.partition, key=record.key, value=record.value, headers=headers or record.headers)  # type: ignore[arg-type]
    producer.flush(10)
    producer.close()
    return sent.result(10).offset


def replay(engines: Engines, collection: CollectionRecord, offset: int, items: Items | None = None) -> int:
    """Produce a record again as a replay of itself (or of its own original)."""
    original = engines.log.read_at(collection.source_topic, 0, offset)
    assert original is not None
    return send(engines, original, replay_headers(original, MediaOrigin(offset, items)))


@dataclass
class Oracle:
    """Newest version of each id, kept as the design says it."""

    newest: dict[str, tuple[VersionOrder, Place | None]] = field(default_factory=dict)
    records: dict[int, list[str] | str] = field(default_factory=dict)

    def take(self, offset: int, ids: list[str] | str, origin: int | None = None, items: Items | None = None) -> None:
        for at, item_id in enumerate([ids] if isinstance(ids, str) else ids):
            if items is not None and at not in items:
                continue
            order = version_order(offset, at, origin, None if origin is None else at)
            if item_id not in self.newest or order > self.newest[item_id][0]:
                self.newest[item_id] = (order, None if isinstance(ids, str) else (offset, at))

    @property
    def live(self) -> dict[str, Place]:
        return {item_id: place for item_id, (_, place) in self.newest.items() if place is not None}


def tail_of(engines: Engines, collection: CollectionRecord) -> dict[str, Place]:
    """Live rows of a query node that began with the newest manifest and read the rest as tail."""
    partition = Partition(collection, collection.index(), 0)
    loaded = partition_loader(engines, collection, collection.index()).load(None)
    assert loaded is not None
    partition.swap(loaded)
    topic = collection.index().vectors_topic
    for offset in range(partition.vectors_offset, engines.log.bounds(topic)[0].next_offset):
        record = engines.log.read_at(topic, 0, offset)
        if record is not None:
            partition.take_record(record)
    assert partition.view is not None
    return {
        part.value(row, "id"): (int(part.columns.offsets[row]), int(part.columns.items[row]))
        for part in partition.view.parts
        for row in range(part.rows)
        if part.live[row]
    }


STEPS = st.one_of(
    st.tuples(st.just("up"), st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True)),
    st.tuples(st.just("del"), st.integers(0, 4)),
    st.tuples(st.just("replay"), st.integers(0, 10)),
    st.tuples(st.just("replay item"), st.integers(0, 10)),
    st.tuples(st.just("commit"), st.none()),
)


@settings(max_examples=examples(12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=2, max_size=12))
def test_any_mix_of_updates_deletes_and_replays_leaves_the_newest_by_origin(engines: Engines, steps: list) -> None:  # type: ignore[type-arg]
    collection = make_collection(engines, f"replays-{ULID()}", partitions=1)
    index, oracle, end = collection.index(), Oracle(), 0
    with running(EmbedWorker(engines, collection, index, None).run):
        for kind, what in steps:
            if kind == "up":
                ids = [f"i{n}" for n in what]
                end = produce(engines, collection, 0, ids) + 1
                oracle.records[end - 1] = ids
                oracle.take(end - 1, ids)
            elif kind == "del":
                end = delete(engines, collection, 0, f"i{what}") + 1
                oracle.records[end - 1] = f"i{what}"
                oracle.take(end - 1, f"i{what}")
            elif kind.startswith("replay") and oracle.records:
                origin = sorted(oracle.records)[what % len(oracle.records)]
                items = Items.of([0]) if kind == "replay item" else None
                end = replay(engines, collection, origin, items) + 1
                oracle.take(end - 1, oracle.records[origin], origin, items)
            elif kind == "commit":
                wait_embedded(engines, collection, end)
                commit_all(engines, collection, end)
                assert read_partition(engines, collection, 0).live == oracle.live
        wait_embedded(engines, collection, end)
    assert tail_of(engines, collection) == oracle.live
    commit_all(engines, collection, end)
    stored = read_partition(engines, collection, 0)
    assert stored.live == oracle.live and stored.is_tiled()


def embedded(engines: Engines, collection: CollectionRecord) -> int:
    """Media offset behind the newest batch of the only worker."""
    topic = collection.index().vectors_topic
    for offset in range(engines.log.bounds(topic)[0].next_offset - 1, -1, -1):
        record = engines.log.read_at(topic, 0, offset)
        if record is not None and (found := record.header("hw_next_offset")) is not None:
            return int(found)
    return 0


def wait_embedded(engines: Engines, collection: CollectionRecord, end: int) -> None:
    eventually(lambda: embedded(engines, collection) == end)


def commit_all(engines: Engines, collection: CollectionRecord, end: int) -> None:
    with running(BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == end)


@pytest.mark.parametrize("is_committed", [True, False], ids=["committed", "in the tail"])
def test_a_replayed_record_stays_dead_where_its_id_was_deleted_since(engines: Engines, is_committed: bool) -> None:
    collection = make_collection(engines, "deleted-since", partitions=1)
    embed, build = EmbedWorker(engines, collection, collection.index(), None), BuildWorker(engines, collection, collection.index())
    produce(engines, collection, 0, ["gone", "kept"])
    delete(engines, collection, 0, "gone")
    if is_committed:
        with running(embed.run, build.run):
            eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 2)
        embed, build = EmbedWorker(engines, collection, collection.index(), None), BuildWorker(engines, collection, collection.index())
    replay(engines, collection, 0)
    with running(embed.run):
        eventually(lambda: embedded(engines, collection) == 3)
    assert tail_of(engines, collection) == {"kept": (2, 1)}
    with running(build.run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 3)
    stored = read_partition(engines, collection, 0)
    assert stored.live == {"kept": (2, 1)} and stored.verdicts()[2, 0] == "superseded" and stored.verdicts()[2, 1] == "row"


def test_items_that_the_replay_does_not_name_are_superseded_in_the_ledger(engines: Engines) -> None:
    collection = make_collection(engines, "named-items", partitions=1)
    produce(engines, collection, 0, ["a", "b", "c"])
    replay(engines, collection, 0, Items.of([1]))
    with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 2)
    stored = read_partition(engines, collection, 0)
    assert stored.live == {"a": (0, 0), "b": (1, 1), "c": (0, 2)}
    assert [stored.verdicts()[1, item] for item in range(3)] == ["superseded", "row", "superseded"]


def test_a_replay_from_another_partition_is_rejected_as_bad_origin(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 0, ["a"])
    original = engines.log.read_at(collection.source_topic, 0, 0)
    assert original is not None
    send(engines, replace(original, partition=1), (*original.headers, ("hw_origin", b"0/0")))
    with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: read_partition(engines, collection, 1).manifest.checkpoint.media_offset == 1)
    assert [(run.verdict, run.reason) for run in read_partition(engines, collection, 1).ledger] == [("reject", "bad_origin")]
