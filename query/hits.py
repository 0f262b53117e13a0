"""From rows to what a caller sees: id, score, payload, vectors, lineage.

Takes: rows of a pinned snapshot. Gives: JSON-ready dictionaries in Qdrant's shapes. Owns: the names in payload and lineage.
Never: reads a column that was not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts import attributes as typed
from query.collection_view import CollectionSnapshot
from query.found import RowRef, bare_point
from query.parts import TAIL

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer carries besides id and score: True for all of it, or a list of names."""

    payload: bool | Sequence[str] = True
    vector: bool | Sequence[str] = False
    lineage: bool = False


def show_point(snapshot: CollectionSnapshot, ref: RowRef, shown: Shown) -> dict[str, Any]:
    """One point with what is asked for."""
    point = bare_point(ref)
    if shown.payload is not False:
        payload = payload_of(snapshot, ref)
        point["payload"] = payload if shown.payload is True else {name: payload[name] for name in shown.payload if name in payload}
    if shown.vector is not False:
        names = list(ref.part.vectors) if shown.vector is True else [name for name in shown.vector if name in ref.part.vectors]
        vectors = {name: ref.part.vectors[name].vector(ref.row) for name in names}
        point["vector"] = {name: vector.tolist() for name, vector in vectors.items() if vector is not None}
    if shown.lineage:
        point["lineage"] = lineage_of(snapshot, ref)
    return point


def payload_of(snapshot: CollectionSnapshot, ref: RowRef) -> dict[str, Any]:
    """`text`, `media_type` and `event_time` where the row has them, and its attributes, which win where a name is the same."""
    batch, row = ref.part.locate(ref.row)
    stored = batch.column("attributes")[row].as_py()
    own = {
        "text": batch.column("text")[row].as_py(),
        "media_type": batch.column("media_type")[row].as_py(),
        "event_time": _time(ref.part.time_us(ref.row, "event_time")),
    }
    return {name: value for name, value in own.items() if value is not None} | typed.to_json(stored, snapshot.record.attributes)


def lineage_of(snapshot: CollectionSnapshot, ref: RowRef) -> dict[str, Any]:
    """Where a row came from: its place in the media log, the media's hash, the encoders, and the segment that holds it now."""
    part, row = ref.part, ref.row
    view = snapshot.views[ref.partition]
    origin = part.value(row, "origin_offset")
    digest = part.value(row, "media_sha256")
    media_offset, media_item = part.media_place(row)
    return {
        "topic": snapshot.record.source_topic,
        "partition": ref.partition,
        "offset": int(part.columns.offsets[row]),
        "item": int(part.columns.items[row]),
        "origin": None if origin is None else {"offset": origin, "item": part.value(row, "origin_item")},
        "media": {"offset": media_offset, "item": media_item},
        "produced_at": _time(part.time_us(row, "produced_at")),
        "media_type": part.value(row, "media_type"),
        "media_sha256": None if digest is None else digest.hex(),
        "partial_reason": part.value(row, "reason"),
        "fields": {
            field.name: {"encoder": field.encoder, "space_id": field.space_id}
            for field in snapshot.index.fields
            if part.vectors[field.name].vector(row) is not None
        },
        "index": snapshot.index.name,
        "segment": None if part.name == TAIL else part.name,
        "manifest": view.loaded.version,
    }


def _time(stamp_us: int | None) -> str | None:
    """RFC 3339 with Z, as attributes show times."""
    return None if stamp_us is None else (_EPOCH + timedelta(microseconds=stamp_us)).isoformat().replace("+00:00", "Z")
