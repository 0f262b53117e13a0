"""Random histories against a dictionary: after every step of a query node its view equals the log's own verdict.

The steps and the check are those of the protocol model (`node` and `check_view`), on the real formats. From some moment on a generation is there:
nodes code what they hold and rebuild tiers at any time, and what a search finds is compared with every row of the same view.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.item import VersionOrder, version_order
from contracts.vectors_batch import BatchItem
from query import tail
from query.coding import Coder
from query.collection_view import CollectionSnapshot
from query.field_indexes import FieldIndexes
from query.field_numbers import FieldNumbersCache
from query.found import FoundRows, bare_point
from query.hot_load import PartitionLoader
from query.node import Node as Shared
from query.partition import Partition
from query.partition_view import PartitionView
from query.search import Effort, VectorSearch, search_many
from query.segments import SegmentLoader
from tests.examples import examples
from tests.query.writer import DIMENSION, Writer, engines_for_test, unit, writer

Rows = list[tuple[str, int, int]]


def shown(view: PartitionView) -> Rows:
    rows = []
    for part in view.parts:
        for row in range(part.rows):
            if part.live[row]:
                rows.append((part.value(row, "id"), int(part.columns.offsets[row]), int(part.columns.items[row])))
    return sorted(rows)


def check_hits(snapshot: CollectionSnapshot, rng: random.Random, where: str) -> None:
    """Every live row is found exactly once, with its score, by codes and by an exact scan, alone and in a batch."""
    view, target = snapshot.views[0], snapshot.index.fields[0]
    rows = shown(view)
    vectors = {
        (part.value(row, "id"), int(part.columns.offsets[row]), int(part.columns.items[row])): part.vectors[target.name].vector(row)
        for part in view.parts
        for row in range(part.rows)
        if part.live[row]
    }
    queries = [unit(*(rng.gauss(0, 1) for _ in range(DIMENSION))) for _ in range(2)]
    everything = VectorSearch(target, queries[0], len(rows) + 5, effort=Effort(nprobe=1000))
    wanted = [everything, VectorSearch(target, queries[1], len(rows) + 5, effort=Effort(nprobe=1000))]
    wanted += [VectorSearch(target, queries[0], len(rows) + 5, effort=Effort(exact=True))]
    for asked, (refs, _) in zip(wanted, search_many(snapshot, wanted), strict=True):
        hits = [(ref.part.value(ref.row, "id"), int(ref.part.columns.offsets[ref.row]), int(ref.part.columns.items[ref.row])) for ref in refs]
        assert sorted(hits) == rows, f"{where}: rows are lost, or found twice"
        scores = [ref.score for ref in refs]
        points = refs.bare_points() if isinstance(refs, FoundRows) else [bare_point(ref) for ref in refs]
        assert points == [{"id": hit[0], "version": hit[1], "score": ref.score} for hit, ref in zip(hits, refs, strict=True)], (
            f"{where}: shown wrongly"
        )
        assert scores == sorted(scores, reverse=True), f"{where}: not best first"
        np.testing.assert_allclose(scores, [vectors[hit] @ asked.vector for hit in hits], atol=0.03, err_msg=where)


@dataclass
class Node:
    made: Writer
    partition: Partition = field(init=False)
    loader: PartitionLoader = field(init=False)
    indexes: FieldIndexes = field(init=False)
    position: int = 0

    def __post_init__(self) -> None:
        self.node = Shared.of(self.made.engines)
        self.restart()

    def restart(self) -> None:
        self.partition = Partition(self.made.record, self.made.index, 0)
        made = self.made
        self.indexes = FieldIndexes(made.engines.store, made.record, made.index)
        segments = SegmentLoader(self.node, made.index, made.record.attributes, self.indexes)
        self.loader = PartitionLoader(made.engines.store, made.record, made.index, 0, segments, self.node.pool)
        self.numbers = FieldNumbersCache()
        self.hot_load()

    def code(self) -> None:
        Coder("things", {0: self.partition}, self.indexes, self.snapshot).turn()

    def rebuild(self) -> None:
        coder = Coder("things", {0: self.partition}, self.indexes, self.snapshot)
        for (target, _), index in self.indexes.all().items():
            coder.rebuild(target, index, even_if_not_due=True)

    def snapshot(self) -> CollectionSnapshot:
        view = self.partition.view
        assert view is not None
        return CollectionSnapshot(self.made.record, self.made.index, {0: view}, 0, self.indexes.tiers(), self.numbers)

    def hot_load(self) -> None:
        view = self.partition.view
        loaded = self.loader.load(None if view is None else view.loaded)
        if loaded is not None:
            seek_to = self.partition.swap(loaded)
            self.position = self.position if seek_to is None else seek_to

    def tail(self) -> None:
        log, topic = self.made.engines.log, self.made.index.vectors_topic
        if self.position < log.bounds(topic)[0].start_offset:
            self.hot_load()  # below the log's start: only a manifest helps
            return
        record = log.read_at(topic, 0, self.position)
        if record is not None:
            self.partition.take_record(record)
            self.position += 1


@dataclass
class History:
    rng: random.Random
    made: Writer
    accepted: list[BatchItem] = field(default_factory=list)

    def ideal(self, end: int) -> Rows:
        newest: dict[str, tuple[VersionOrder, BatchItem]] = {}
        for item in self.accepted:
            if item.offset < end and item.op in ("upsert", "delete"):
                order = version_order(item.offset, item.item, item.origin_offset, item.origin_item)
                if item.id not in newest or order > newest[item.id][0]:
                    newest[item.id] = (order, item)
        return sorted((item.id, item.offset, item.item) for _, item in newest.values() if item.op == "upsert")

    def item(self, offset: int, number: int = 0) -> BatchItem:
        item_id, draw = f"id{self.rng.randint(0, 6)}", self.rng.random()
        if draw < 0.1:
            return BatchItem(offset, 0, "reject", None, reason="decode_failed")
        origin = {"origin_offset": self.rng.randint(0, offset - 1), "origin_item": 0} if offset and self.rng.random() < 0.2 else {}
        if draw < 0.35:
            return self.made.delete(item_id, offset, **origin)
        return self.made.upsert(item_id, self.vector(), offset=offset, item=number, **origin)

    def vector(self) -> np.ndarray:
        return unit(*(self.rng.gauss(0, 1) for _ in range(DIMENSION)))

    def produce(self) -> None:
        start = self.made.next_offset - (self.rng.randint(0, 2) if self.rng.random() < 0.3 else 0)
        start = max(0, start)
        end = self.made.next_offset + self.rng.randint(1, 4)
        items = [self.item(offset) for offset in range(start, end)]
        first = self.made.next_offset
        self.made.send(items, start=start, next_offset=end)
        self.accepted += [item for item in items if item.offset >= first]

    def many_items_of_one_record(self) -> None:
        offset = self.made.next_offset
        items = [self.made.upsert(f"id{self.rng.randint(0, 6)}", self.vector(), offset=offset, item=number) for number in range(3)]
        self.made.send(items)
        self.accepted += items

    def zombie(self) -> None:
        end = self.made.next_offset
        start, stop = (end + self.rng.randint(1, 3), end + 6) if self.rng.random() < 0.5 else (max(0, end - 4), end)
        if start < stop:
            self.made.send([self.made.upsert("zombie", offset=offset) for offset in range(start, stop)], start=start, next_offset=stop, zombie=True)

    def commit(self) -> None:
        done = self.made.read.manifest.checkpoint.media_offset
        self.made.writes_codes = self.rng.random() < 0.6  # a builder that has not seen the generation yet writes vectors as they are
        if self.made.next_offset > done:
            self.made.commit(notice=self.rng.random() < 0.7, upto=self.rng.randint(done + 1, self.made.next_offset))

    def train(self) -> None:
        if self.made.read.manifest.generation.get("own", 0) < 2:
            self.made.train(np.stack([self.vector() for _ in range(400)]), nlist=4)

    def recode(self) -> None:
        self.made.recode(notice=False)

    def compact(self) -> None:
        self.made.compact(notice=False)

    def truncate(self) -> None:
        self.made.engines.log.truncate(self.made.index.vectors_topic, {0: self.made.read.manifest.checkpoint.vectors_offset})


def run(seed: int, steps: int = 60) -> None:
    rng = random.Random(seed)
    history = History(rng, writer(engines_for_test()))
    nodes = [Node(history.made), Node(history.made)]
    choices = [history.produce] * 8 + [history.many_items_of_one_record, history.zombie, history.zombie, history.compact, history.truncate]
    choices += [history.commit] * 3 + [history.train, history.recode]
    pinned: list[tuple[CollectionSnapshot, Rows]] = []
    for _ in range(steps):
        rng.choice(choices)()
        node = rng.choice(nodes)
        for _ in range(rng.randint(0, 3)):
            rng.choices([node.tail, node.hot_load, node.restart, node.code, node.rebuild], [10, 3, 1, 3, 1])[0]()
            view = node.partition.view
            assert view is not None
            assert shown(view) == history.ideal(view.expected), f"seed {seed}"
        if rng.random() < 0.5:
            check_hits(node.snapshot(), rng, f"seed {seed}")
        if rng.random() < 0.1:
            pinned.append((node.snapshot(), shown(node.snapshot().views[0])))
    for snapshot, rows in pinned:
        assert shown(snapshot.views[0]) == rows, f"seed {seed}: a pinned view changed"
        check_hits(snapshot, rng, f"seed {seed}, pinned")
    for node in nodes:
        for _ in range(200):
            node.tail()
        node.hot_load()
        for _ in range(200):
            node.tail()
        assert node.partition.view is not None
        assert node.partition.view.expected == history.made.next_offset, f"seed {seed}: the node does not catch up"
        assert shown(node.partition.view) == history.ideal(history.made.next_offset), f"seed {seed}"


@settings(max_examples=examples(15), deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_node_shows_what_the_log_decided_after_every_step(seed: int) -> None:
    with mock.patch.object(tail, "FIRST_ROWS", 1 + seed % 4):  # so that arrays grow, and are cut where most of them stays in use
        run(seed)
