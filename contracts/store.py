"""The object store: immutable objects under validated keys, with conditional creation.

Takes: keys (`contracts.object_keys`) and bytes. Gives: bytes, ranges, listings. Owns: the three outcomes of a put.
Never: overwrites an object by accident; there is no unconditional put.

Implementations: `backends.s3_store`, `backends.folder_store`, `backends.memory_store`; one test body holds them
equal (`tests/backends/test_store_contract.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class PutOutcome(Enum):
    """How a conditional put ended: three outcomes that are never mixed up (reliability.md 0.3), and one retry."""

    CREATED = "created"
    """The object is stored and it is ours."""
    EXISTS = "exists"
    """The condition failed (412): another object is there; it may still be our own earlier attempt."""
    CONFLICT = "conflict"
    """409: nothing known landed; put the same body under the same key again."""
    UNKNOWN = "unknown"
    """5xx, time-out, reset: stored, not stored, or stored later. Read back; clean nothing up."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's name, size, entity tag and the store's own time of creation."""

    key: str
    size_bytes: int
    etag: str
    modified_seconds: float


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes with the entity tag that a compare-and-swap needs."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class BucketObject:
    """The first bytes of an object of any bucket, with the whole object's size, its entity tag and the content type it was stored with."""

    data: bytes
    size_bytes: int
    etag: str
    content_type: str


class ObjectStore(Protocol):
    """Objects under keys; every method may raise UnavailableError, and SettingsError for credentials."""

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Create `key`; exactly one of many concurrent callers gets CREATED."""
        ...

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        """Replace `key` if its entity tag is `etag` (None: if it does not exist)."""
        ...

    def get(self, key: str) -> StoredObject | None:
        """The whole object, or None."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Up to `length` bytes from `start`; shorter only at the object's end; None when there is no object."""
        ...

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        """The object's bytes in order, at most `block_bytes` at a time, by one request; None when there is no object.

        From `start` on, and no more than `length`; fewer only at the object's end.

        What was read and dropped is never in memory as a whole. A transfer that breaks off goes on behind the last byte that was given; whether the
        blocks make up the object that was meant is for the caller to check, by its hash.
        """
        ...

    def get_from_bucket(self, bucket: str, name: str, version_id: str | None, most_bytes: int) -> BucketObject | None:
        """Up to `most_bytes` of an object that somebody else put into another bucket of the same store, or None.

        Raises
        ------
        SettingsError
            This kind of store has no buckets.
        RecordError
            ``payload_missing``: the bucket lies in another region or behind another endpoint, where this store never reads.
        UnavailableError
            Also where the credentials may not read the bucket: that is mended beside the record.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size and tag, or None."""
        ...

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix` and sort after `start_after`, in key order."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""
        ...

    def probe(self, prefix: str) -> None:
        """Prove, under `prefix`, that conditions are honoured; raise SettingsError when they are not."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
