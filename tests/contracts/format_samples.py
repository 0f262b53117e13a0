"""Samples and hypothesis strategies that several format tests share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from contracts.collection import CollectionRecord, FieldRecord, IndexRecord, own_vector_space
from contracts.log import Headers, LogRecord

ULID_A = "01JD0000000000000000000000"
ULID_B = "01JD0000000000000000000001"
ulids = st.builds(lambda head, rest: head + rest, st.sampled_from("01234567"), st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=25, max_size=25))
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
sha256s = st.text("0123456789abcdef", min_size=64, max_size=64)
partitions = st.integers(0, 99_999)
versions = st.integers(1, 10**20 - 1)
epochs = st.integers(0, 10**10 - 1)
texts = st.text(max_size=20)


def field(name: str = "image", dimension: int = 4, dtype: str = "float16", metric: str = "cosine", **changes: Any) -> FieldRecord:
    """A vector field with the producers' own vectors."""
    space_id = own_vector_space(name, dimension, metric)
    return FieldRecord(
        **{"name": name, "source": "vector", "encoder": None, "space_id": space_id, "dimension": dimension, "dtype": dtype, "metric": metric}
        | changes
    )


def index(*fields: FieldRecord) -> IndexRecord:
    """An index with these fields."""
    return IndexRecord(name="main", fields=fields or (field(),), vectors_topic="headwater.photos.main.vectors", vectors_topic_id="t-vectors")


def collection(*fields: FieldRecord, attributes: dict[str, str] | None = None, **changes: Any) -> CollectionRecord:
    """A collection with one index."""
    base: dict[str, Any] = {
        "version": 1,
        "name": "photos",
        "incarnation": ULID_A,
        "created_at": "2026-11-23T00:00:00Z",
        "partitions": 4,
        "cluster_id": "cluster",
        "source_topic": "headwater.photos.media",
        "source_topic_id": "t-media",
        "owns_source_topic": True,
        "active_index": "main",
        "attributes": attributes or {},
        "indexes": (index(*fields),),
    }
    return CollectionRecord(**base | changes)


def record(value: bytes | None, *, key: bytes | None = b"cat-1", headers: Headers = (), timestamp_ms: int = 1_700_000_000_000) -> LogRecord:
    """A record of the media topic at partition 3, offset 42."""
    return LogRecord("headwater.photos.media", 3, 42, timestamp_ms, key, value, headers)
