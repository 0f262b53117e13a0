"""The object store in memory: for tests, and for trying things out in one process.

Takes: keys and bytes. Gives: what `contracts.store.ObjectStore` promises. Owns: a table per name, shared by this process.
Never: survives its process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from backends.store_rules import check_prefix, check_range, prove_conditions
from contracts.clock import Clock, SystemClock
from contracts.object_keys import validate_key
from contracts.store import BucketObject, ObjectInfo, PutOutcome, StoredObject


class MemoryStore:
    """Objects in a dictionary behind one lock.

    Parameters
    ----------
    clock : Clock, optional
        Gives the times of creation.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self._writes = 0

    def _store(self, key: str, data: bytes) -> PutOutcome:
        """Store under the lock; an entity tag is the number of the write, so it never comes again."""
        self._writes += 1
        info = ObjectInfo(key, len(data), f"w{self._writes}", self._clock.now_seconds())
        self._objects[key] = (bytes(data), info)
        return PutOutcome.CREATED

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Create `key`; exactly one of many concurrent callers gets CREATED."""
        validate_key(key)
        with self._lock:
            return PutOutcome.EXISTS if key in self._objects else self._store(key, data)

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        """Replace `key` if its entity tag is `etag` (None: if it does not exist)."""
        validate_key(key)
        with self._lock:
            found = self._objects.get(key)
            if etag != (None if found is None else found[1].etag):
                return PutOutcome.EXISTS
            return self._store(key, data)

    def get(self, key: str) -> StoredObject | None:
        """The whole object, or None."""
        found = self._objects.get(validate_key(key))
        return None if found is None else StoredObject(found[0], found[1].etag)

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Up to `length` bytes from `start`; None when there is no object."""
        check_range(start, length)
        found = self._objects.get(validate_key(key))
        return None if found is None else found[0][start : start + length]

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        """The object's bytes from `start` on in order, at most `block_bytes` at a time; None when there is no object."""
        check_range(start, length or 0)
        found = self.get(key)
        if found is None:
            return None
        stop = len(found.data) if length is None else min(len(found.data), start + length)
        return (found.data[at : min(at + block_bytes, stop)] for at in range(start, stop, block_bytes))

    def get_from_bucket(self, bucket: str, name: str, version_id: str | None, most_bytes: int) -> BucketObject | None:
        """Up to `most_bytes` of an object of the store ``memory://BUCKET``; it keeps no versions."""
        found = open_memory_store(bucket)._objects.get(name)
        return None if found is None else BucketObject(found[0][:most_bytes], found[1].size_bytes, found[1].etag, "")

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size and tag, or None."""
        found = self._objects.get(validate_key(key))
        return None if found is None else found[1]

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix` and sort after `start_after`, in key order, as of the call."""
        check_prefix(prefix)
        check_prefix(start_after)
        with self._lock:
            found = [info for key, (_, info) in self._objects.items() if key.startswith(prefix) and key > start_after]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""
        with self._lock:
            self._objects.pop(validate_key(key), None)

    def probe(self, prefix: str) -> None:
        """Prove that conditions are honoured (`backends.store_rules.prove_conditions`)."""
        prove_conditions(self, prefix)

    def close(self) -> None:
        """Do nothing: the objects are shared by the process."""


_named_stores: dict[str, MemoryStore] = {}
_named_stores_lock = threading.Lock()


def open_memory_store(name: str) -> MemoryStore:
    """Return this process's store of that name, made on first use (``memory://NAME``)."""
    with _named_stores_lock:
        return _named_stores.setdefault(name, MemoryStore())
