"""Checked objects: nothing is parsed before its bytes equal the manifest's hash.

Takes: keys, bytes, manifest entries. Gives: stored entries, verified bytes. Owns: re-reading after an unknown put.
Never: deletes, overwrites, or hands out bytes that were not checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from contracts.errors import CorruptError, SnapshotError, UnavailableError
from contracts.footer_file import CHUNK_BYTES, check_bytes, check_chunks
from contracts.manifest import ObjectEntry
from contracts.object_keys import parse_key, validate_key
from contracts.store import ObjectStore, PutOutcome

logger = logging.getLogger(__name__)

PUT_ATTEMPTS = 8
LARGE_BYTES = 4 * 1024 * 1024
"""Objects that are hashed beside their upload: the hashes take a millisecond for each of these megabytes."""
READ_ATTEMPTS = 3
"""Bytes can be spoilt on their way; what is spoilt where it lies stays so."""

_LAST = "zzz"
"""Sorts behind everything that a key of ours goes on with after a slash."""

T = TypeVar("T")


def read_again(read: Callable[[], T]) -> T:
    """Read anew what came damaged, before it is believed: a partition stops for it."""
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except CorruptError as error:
            logger.warning("read again: %s", error)
    return read()


def put_settled(store: ObjectStore, key: str, data: bytes, attempts: int = PUT_ATTEMPTS) -> bool:
    """Create `key` with `data` and learn how it ended: True when it holds `data`, False when it holds something else.

    Raises
    ------
    UnavailableError
        The outcome is still unknown after all attempts; the object may or may not be there.
    """
    for attempt in range(attempts):
        outcome = store.put_if_absent(key, data)
        if outcome is PutOutcome.CREATED:
            return True
        if outcome is PutOutcome.EXISTS:
            found = store.get(key)
            if found is not None:
                return found.data == data
        time.sleep(min(0.05 * 2**attempt, 2.0))  # CONFLICT and UNKNOWN: the same body under the same key again
    raise UnavailableError(f"object {key}: the store does not say whether it was written", hint="check the object store; nothing was deleted")


def upload(store: ObjectStore, key: str, data: bytes) -> ObjectEntry:
    """Store an object under a key that no one else writes (it holds a fresh ULID); returns its manifest entry.

    Raises
    ------
    CorruptError
        The key already holds other bytes: two writers drew the same ULID, or the store lost its mind.
    """
    if len(data) < LARGE_BYTES:
        entry = ObjectEntry.of(key, data)
        is_stored = put_settled(store, validate_key(key), data)
    else:
        with ThreadPoolExecutor(1, "hash") as pool:  # while the store takes the bytes
            hashed = pool.submit(ObjectEntry.of, validate_key(key), data)
            is_stored = put_settled(store, key, data)
            entry = hashed.result()
    if not is_stored:
        raise CorruptError(f"object {key} already holds other bytes", hint="check the object store; keys are unique per attempt")
    return entry


def download(store: ObjectStore, entry: ObjectEntry) -> bytes:
    """Bytes of a manifest's object, checked.

    Raises
    ------
    SnapshotError
        The object is gone: it was compacted away; reload the manifest.
    CorruptError
        Size or sha256 differ from the manifest's, however often it is read.
    """

    def read() -> bytes:
        found = store.get(entry.key)
        if found is None:
            raise SnapshotError(f"object {entry.key} is gone", hint="reload the manifest")
        check_bytes(found.data, entry.size_bytes, entry.sha256, entry.key)
        return found.data

    return read_again(read)


def download_range(store: ObjectStore, entry: ObjectEntry, start: int, length: int) -> memoryview:
    """Bytes ``[start, start + length)`` of a manifest's object, after the 1 MiB chunks that cover them were checked.

    An object of one chunk has no digests of its own and is read and checked as a whole.

    Raises
    ------
    ValueError
        The range is empty or does not lie inside the object.
    SnapshotError
        The object is gone: it was compacted away; reload the manifest.
    CorruptError
        The object is shorter, or a chunk differs from the manifest's digest.
    """
    if start < 0 or length < 1 or start + length > entry.size_bytes:
        raise ValueError(f"object {entry.key}: bytes {start} to {start + length} of {entry.size_bytes}")
    if not entry.chunks_sha256:
        return memoryview(download(store, entry))[start : start + length]
    first = start // CHUNK_BYTES
    begin = first * CHUNK_BYTES
    end = min(-(-(start + length) // CHUNK_BYTES) * CHUNK_BYTES, entry.size_bytes)

    def read() -> memoryview:
        found = store.get_range(entry.key, begin, end - begin)
        if found is None:
            raise SnapshotError(f"object {entry.key} is gone", hint="reload the manifest")
        if len(found) != end - begin:
            raise CorruptError(
                f"{entry.key}: {len(found)} bytes from {begin} on, the manifest says {end - begin}", hint="restore the object, or rebuild the index"
            )
        check_chunks(found, first, entry.chunks_sha256, entry.key)
        return memoryview(found)[start - begin : start - begin + length]

    return read_again(read)


def names_below(store: ObjectStore, prefix: str) -> Iterator[str]:
    """What comes between `prefix` and the next slash in keys of ours, one listing each."""
    after = ""
    while (info := next(iter(store.list(prefix, after)), None)) is not None:
        name = info.key[len(prefix) :].partition("/")[0]
        if parse_key(info.key) is not None:
            yield name
        after = f"{prefix}{name}/{_LAST}"


def delete_below(store: ObjectStore, prefix: str) -> int:
    """Delete all objects under a prefix; returns how many."""
    deleted = 0
    for info in store.list(prefix):
        store.delete(info.key)
        deleted += 1
    return deleted
