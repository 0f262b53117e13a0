"""The reference: what the log decided, kept as plain Python beside the simulation. All invariants are stated against it.

It applies the chain rule on its own as each record of the vectors topic lands, and keeps what a dictionary would hold at every media offset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from contracts.collection import CollectionRecord
from contracts.item import VersionOrder, version_order
from contracts.log import LogRecord
from contracts.vectors_batch import BatchSpan, batch_schema, decode_batch, read_headers

Fail = Callable[[str], None]


class Shown(NamedTuple):
    """A live row as a query shows it."""

    id: str
    offset: int
    text: str | None
    attributes: str


class Decided(NamedTuple):
    """What the accepted batch says of a media offset (each record has one item here)."""

    op: str
    id: str | None
    order: VersionOrder


class Standing(NamedTuple):
    """The newest version of an id; `shown` is None where it is deleted."""

    order: VersionOrder
    shown: Shown | None


def shown_row(row: dict[str, Any]) -> Shown:
    """A row of any Arrow batch as `Shown`."""
    found = row["attributes"] or {}
    return Shown(
        row["id"], row["offset"], row["text"], json.dumps({name: value for name, value in found.items() if value is not None}, sort_keys=True)
    )


@dataclass
class Reference:
    """One partition of one incarnation of the collection."""

    record: CollectionRecord
    fail: Fail
    media: list[LogRecord] = field(default_factory=list)
    dead_letters: set[int] = field(default_factory=set)
    decided: list[Decided] = field(default_factory=list)
    states: list[dict[str, Standing]] = field(default_factory=lambda: [{}])
    ends: dict[int, int] = field(default_factory=lambda: {0: -1})

    def __post_init__(self) -> None:
        self.index = self.record.index()
        self._schema = batch_schema(self.index, self.record.attributes)

    @property
    def expected(self) -> int:
        """Media offset at which the chain goes on."""
        return len(self.decided)

    def live(self, media_offset: int) -> list[Shown]:
        """What must be shown of everything below a media offset."""
        return sorted(standing.shown for standing in self.states[media_offset].values() if standing.shown is not None)

    def land(self, record: LogRecord) -> None:
        """A record of the vectors topic landed: the chain rule, stated once more."""
        span = read_headers(record)
        if not isinstance(span, BatchSpan) or (span.incarnation, span.topic_id) != (self.record.incarnation, self.record.source_topic_id):
            return
        if not span.start_offset <= self.expected < span.next_offset:
            return
        rows = {row["offset"]: row for row in decode_batch(record, self._schema).to_pylist()}
        if sorted(rows) != list(range(span.start_offset, span.next_offset)):
            self.fail(f"the batch {span.start_offset} to {span.next_offset} says nothing of some offsets, or too much")
        for offset in range(self.expected, span.next_offset):
            self._decide(rows[offset])
        self.ends[span.next_offset] = record.offset

    def _decide(self, row: dict[str, Any]) -> None:
        offset, op, item_id = row["offset"], row["op"], row["id"]
        if offset >= len(self.media):
            self.fail(f"a batch speaks of media offset {offset}, the topic ends at {len(self.media)}")
        self._compare(self.media[offset], row)
        order = version_order(offset, row["item"], row["origin_offset"], row["origin_item"])
        self.decided.append(Decided(op, item_id, order))
        before = self.states[-1]
        self.states.append(before)
        stands = before.get(item_id)
        if op not in ("upsert", "delete", "patch") or (stands is not None and stands.order > order):
            return
        shown: Shown | None = None
        if op == "upsert":
            shown = shown_row(row)
        elif op == "patch":
            if stands is None or stands.shown is None:
                return
            merged = json.loads(stands.shown.attributes) | json.loads(row["patch"])
            shown = stands.shown._replace(offset=offset, attributes=json.dumps(merged, sort_keys=True))
        self.states[-1] = {**before, item_id: Standing(order, shown)}

    def _compare(self, record: LogRecord, row: dict[str, Any]) -> None:
        """The batch says what the media record says; only that a record is rejected is the worker's own judgement."""
        where, op = f"media offset {record.offset}", row["op"]
        if op == "reject" or (op == "delete" and row["reason"] is not None):
            if record.offset not in self.dead_letters:
                self.fail(f"{where} is rejected, and no dead letter was written before")
            return
        patch = record.header("hw_op") == b"patch"
        wanted = "patch" if patch else "delete" if record.value is None else "upsert"
        if op != wanted or row["id"] != (record.key or b"").decode():
            self.fail(f"{where}: the batch says {op} of {row['id']}, the record {wanted} of {record.key!r}")
        if op == "upsert" and (row["text"] or "").encode() != record.value:
            self.fail(f"{where}: the batch has another text than the record")
