"""Random histories against a dictionary: after every step of a query node its view equals the log's own verdict.

The steps and the check are those of the protocol model (`node` and `check_view`), on the real formats.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.item import VersionOrder, version_order
from contracts.vectors_batch import BatchItem
from query.hot_load import PartitionLoader
from query.partition import Partition
from query.partition_view import PartitionView
from tests.query.writer import Writer, engines_for_test, writer

Live = dict[str, tuple[int, int]]


def shown(view: PartitionView) -> list[tuple[str, int, int]]:
    rows = []
    for part in view.parts:
        for row in range(part.rows):
            if part.live[row]:
                rows.append((part.value(row, "id"), int(part.columns.offsets[row]), int(part.columns.items[row])))
    return sorted(rows)


@dataclass
class Node:
    made: Writer
    partition: Partition = field(init=False)
    loader: PartitionLoader = field(init=False)
    position: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.partition = Partition(self.made.record, self.made.index, 0)
        self.loader = PartitionLoader(self.made.engines.store, self.made.record, self.made.index, 0)
        self.hot_load()

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

    def ideal(self, end: int) -> list[tuple[str, int, int]]:
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
        return self.made.upsert(item_id, offset=offset, item=number, **origin)

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
        items = [self.made.upsert(f"id{self.rng.randint(0, 6)}", offset=offset, item=number) for number in range(3)]
        self.made.send(items)
        self.accepted += items

    def zombie(self) -> None:
        end = self.made.next_offset
        start, stop = (end + self.rng.randint(1, 3), end + 6) if self.rng.random() < 0.5 else (max(0, end - 4), end)
        if start < stop:
            self.made.send([self.made.upsert("zombie", offset=offset) for offset in range(start, stop)], start=start, next_offset=stop, zombie=True)

    def commit(self) -> None:
        done = self.made.read.manifest.checkpoint.media_offset
        if self.made.next_offset > done:
            self.made.commit(notice=self.rng.random() < 0.7, upto=self.rng.randint(done + 1, self.made.next_offset))

    def compact(self) -> None:
        self.made.compact(notice=False)

    def truncate(self) -> None:
        self.made.engines.log.truncate(self.made.index.vectors_topic, {0: self.made.read.manifest.checkpoint.vectors_offset})


def run(seed: int, steps: int = 60) -> None:
    rng = random.Random(seed)
    history = History(rng, writer(engines_for_test()))
    nodes = [Node(history.made), Node(history.made)]
    choices = [history.produce] * 8 + [history.many_items_of_one_record, history.zombie, history.zombie, history.compact, history.truncate]
    choices += [history.commit] * 3
    pinned: list[tuple[PartitionView, list[tuple[str, int, int]]]] = []
    for _ in range(steps):
        rng.choice(choices)()
        node = rng.choice(nodes)
        for _ in range(rng.randint(0, 3)):
            rng.choices([node.tail, node.hot_load, node.restart], [10, 3, 1])[0]()
            view = node.partition.view
            assert view is not None
            assert shown(view) == history.ideal(view.expected), f"seed {seed}"
        view = node.partition.view
        assert view is not None
        if rng.random() < 0.1:
            pinned.append((view, shown(view)))
    for view, rows in pinned:
        assert shown(view) == rows, f"seed {seed}: a pinned view changed"
    for node in nodes:
        for _ in range(200):
            node.tail()
        node.hot_load()
        for _ in range(200):
            node.tail()
        assert node.partition.view is not None
        assert node.partition.view.expected == history.made.next_offset, f"seed {seed}: the node does not catch up"
        assert shown(node.partition.view) == history.ideal(history.made.next_offset), f"seed {seed}"


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_node_shows_what_the_log_decided_after_every_step(seed: int) -> None:
    run(seed)
