"""Random upserts, deletes, patches and replays over few ids: tail, sealed segments after a reload, and a plain dictionary say the same."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.catalog.objects import download
from contracts import attributes as typed
from contracts.item import VersionOrder, version_order
from contracts.ledger import decode_ledger
from contracts.segment import read_rows_part
from contracts.vectors_batch import BatchItem
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource
from query.partition import Partition
from query.partition_view import PartitionView
from tests.examples import examples
from tests.query.loading import partition_loader
from tests.query.writer import Writer, engines_for_test, own_field, unit, writer

SCHEMA = {"price": "float", "tags": "keyword[]", "place": "geo", "when": "datetime"}
PATCHES: list[dict[str, Any]] = [
    {"price": 2.5},
    {"price": None, "colour": "red"},
    {"tags": "new"},
    {"tags": ["a", "b"], "deep": {"x": 1, "y": None}},
    {"deep": {"y": {"z": [1]}, "x": None}},
    {"deep": 5, "colour": None},
    {"place": {"lat": 1, "lon": 2}, "when": "2026-11-23T10:00:00Z"},
    {"when": 0, "place": None},
    {},
]
Row = dict[str, Any]


@dataclass
class Model:
    """What the format pages say, one dictionary: changes in the log's order, newest wins, a patch changes the live row."""

    newest: dict[str, tuple[VersionOrder, Row | None]] = field(default_factory=dict)
    verdicts: dict[tuple[int, int], str] = field(default_factory=dict)

    def take(self, item: BatchItem) -> None:
        assert item.id is not None
        order = version_order(item.offset, item.item, item.origin_offset, item.origin_item)
        before = self.newest.get(item.id)
        if before is not None and before[0] > order:
            self.verdicts[item.offset, item.item] = "superseded"
            return
        row: Row | None = None
        if item.op == "upsert":
            row = plain(item)
        elif item.op == "patch":
            if before is None or before[1] is None:
                self.verdicts[item.offset, item.item] = "missed"
                return
            row = before[1] | {"offset": item.offset, "item": item.item, "produced": item.produced_at_us}
            row["attributes"] = merged(row["attributes"], json.loads(item.patch or ""))
            row["acl"] = row["acl"] if item.acl is None else item.acl
        self.newest[item.id] = (order, row)

    def rows(self) -> dict[str, Row]:
        return {item_id: row for item_id, (_, row) in self.newest.items() if row is not None}


def merged(shown: Row, patch: Row) -> Row:
    """Attributes as a user sees them after a patch (RFC 7396), with declared ones as `to_json` shows them."""
    typed_patch = typed.to_json(as_stored(typed.coerce_all(patch, SCHEMA)), SCHEMA)
    patch = {name: typed_patch.get(name) if name in SCHEMA else value for name, value in patch.items()}

    def merge(target: Any, change: Any) -> Any:
        if not isinstance(change, dict):
            return change
        out = dict(target) if isinstance(target, dict) else {}
        for name, value in change.items():
            out[name] = merge(out.get(name), value)
            if value is None:
                del out[name]
        return out

    return {**merge(shown, patch)}


def as_stored(coerced: Row) -> Row:
    import pyarrow as pa

    stored: Row = pa.array([coerced], typed.struct_type(SCHEMA))[0].as_py()
    return stored


def plain(item: BatchItem) -> Row:
    vectors = {name: None if vector is None else np.float32(vector).tolist() for name, vector in item.vectors.items()}
    return {
        "offset": item.offset,
        "item": item.item,
        "produced": item.produced_at_us,
        "time": item.event_time_us,
        "text": item.text,
        "media": (item.offset, item.item),
        "sha256": item.media_sha256,
        "reason": item.reason,
        "attributes": typed.to_json(as_stored(item.attributes or {}), SCHEMA),
        "acl": item.acl,
        "vectors": vectors,
    }


def shown(view: PartitionView) -> dict[str, Row]:
    out: dict[str, Row] = {}
    for part in view.parts:
        for row in np.flatnonzero(part.live).tolist():
            value = {name: part.value(row, name) for name in ("id", "text", "media_sha256", "reason", "acl")}
            assert value["id"] not in out, "an id is live twice"
            vectors = {name: column.vector(row) for name, column in part.vectors.items()}
            out[value["id"]] = {
                "offset": int(part.columns.offsets[row]),
                "item": int(part.columns.items[row]),
                "produced": part.time_us(row, "produced_at"),
                "time": int(part.columns.event_time_us[row]),
                "text": value["text"],
                "media": part.media_place(row),
                "sha256": value["media_sha256"],
                "reason": value["reason"],
                "attributes": typed.to_json(part.value(row, "attributes"), SCHEMA),
                "acl": value["acl"],
                "vectors": {name: None if vector is None else vector.tolist() for name, vector in vectors.items()},
            }
    return out


@dataclass
class Run:
    rng: random.Random
    made: Writer
    model: Model = field(default_factory=Model)
    models: dict[int, dict[str, Row]] = field(default_factory=lambda: {0: {}})

    def __post_init__(self) -> None:
        record, index = self.made.record, self.made.index
        self.node, self.position = Partition(record, index, 0), 0
        self.loader = partition_loader(self.made.engines, record, index)
        self.restart_builder()
        self.hot_load()

    def restart_builder(self) -> None:
        source = PartitionSource(self.made.engines, self.made.record, self.made.index, 0)
        self.builder = PartitionBuilder(source, f"w{self.rng.random()}", UlidSource())
        self.builder.start()

    def item(self, offset: int, number: int) -> BatchItem:
        item_id, draw = f"id{self.rng.randint(0, 3)}", self.rng.random()
        origin = {"origin_offset": self.rng.randint(0, offset - 1), "origin_item": 0} if offset and self.rng.random() < 0.2 else {}
        if draw < 0.15:
            return BatchItem(offset, number, "delete", item_id, **origin)
        if draw < 0.6:
            patch, acl = self.rng.choice(PATCHES), self.rng.choice([None, None, [], ["staff"]])
            return BatchItem(offset, number, "patch", item_id, **origin, patch=json.dumps(patch), acl=acl, produced_at_us=offset + 7)
        attributes = typed.coerce_all(self.rng.choice([{}, {"price": 1, "colour": "blue"}, {"tags": ["t"], "deep": {"x": 0}}]), SCHEMA)
        made = BatchItem(offset, number, "upsert", item_id, **origin, attributes=attributes, text=f"text {offset}/{number}")
        vectors = {"own": unit(offset + 1, number, 1, 0), "other": None if self.rng.random() < 0.3 else np.array([offset, number], np.float16)}
        more = {"acl": self.rng.choice([None, ["me"]]), "event_time_us": offset * 1000, "produced_at_us": offset + 5}
        sha256, reason = self.rng.choice([(None, None), (bytes([number]) * 32, None), (None, "decode_failed")])
        return replace(made, vectors=vectors, media_sha256=sha256, reason=reason, **more)

    def produce(self) -> None:
        start = self.made.next_offset
        items = [self.item(offset, number) for offset in range(start, start + self.rng.randint(1, 5)) for number in range(self.rng.randint(1, 2))]
        self.made.send(items)
        for item in items:
            self.model.take(item)
        self.models[self.made.next_offset] = self.model.rows()

    def tail(self) -> None:
        record = self.made.engines.log.read_at(self.made.index.vectors_topic, 0, self.position)
        if record is not None:
            self.node.take_record(record)
            self.position += 1

    def hot_load(self) -> None:
        loaded = self.loader.load(None if self.node.view is None else self.node.view.loaded)
        if loaded is not None:
            seek = self.node.swap(loaded)
            self.position = self.position if seek is None else seek

    def feed(self) -> None:
        record = self.made.engines.log.read_at(self.made.index.vectors_topic, 0, self.builder.vectors_offset)
        if record is not None:
            self.builder.feed(record)

    def seal(self) -> None:
        self.builder.commit()

    def check(self) -> None:
        view = self.node.view
        assert view is not None
        assert shown(view) == self.models[view.expected]


def run(seed: int, steps: int = 50) -> None:
    rng = random.Random(seed)
    fields = [own_field("own"), own_field("other", "dot", 2, "float16")]
    run = Run(rng, writer(engines_for_test(), fields=fields, attributes=SCHEMA))
    for _ in range(steps):
        steps_of = [run.produce, run.tail, run.feed, run.hot_load, run.seal, run.restart_builder]
        rng.choices(steps_of, [4, 6, 6, 2, 2, 1])[0]()
        run.check()
    end = run.made.next_offset
    while run.builder.chain.expected < end:
        run.feed()
    while run.node.view is not None and run.node.view.expected < end:
        run.tail()
    run.check()
    run.seal()
    run.hot_load()
    run.check()
    fresh = Run.__new__(Run)
    fresh.made, fresh.models, fresh.node, fresh.position = run.made, run.models, Partition(run.made.record, run.made.index, 0), 0
    fresh.loader = partition_loader(run.made.engines, run.made.record, run.made.index)
    fresh.hot_load()
    fresh.check()
    check_ledger(run)


def check_ledger(run: Run) -> None:
    """Runs called `row` are the stored rows; a patch that found nothing, and a replay that lost, stand there as such however seals fell."""
    store, manifest = run.made.engines.store, run.builder.manifest
    runs = [one for entry in manifest.ledger for one in decode_ledger(download(store, entry.object), entry.object.key)]
    verdicts = {
        (offset, item): (one.verdict, one.reason)
        for one in runs
        for offset in range(one.start_offset, one.next_offset)
        for item in range(one.start_item, one.next_item)
    }
    stored = set()
    for segment in manifest.segments:
        batch = read_rows_part(download(store, segment.parts["rows"]), "rows").batch
        stored |= set(zip(batch.column("offset").to_pylist(), batch.column("item").to_pylist(), strict=True))
    assert {place for place, (verdict, _) in verdicts.items() if verdict == "row"} == stored
    missed = {place for place, verdict in run.model.verdicts.items() if verdict == "missed"}
    assert {place for place, verdict in verdicts.items() if verdict == ("patch", "missed")} == missed
    assert all(verdicts[place][0] == "superseded" for place, verdict in run.model.verdicts.items() if verdict == "superseded")


@settings(max_examples=examples(25), deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tail_segments_and_a_dictionary_agree_on_patches_wherever_batches_and_seals_fall(seed: int) -> None:
    run(seed)
