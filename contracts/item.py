"""Items, their versions, and the order of versions within an id.

Takes: offsets. Gives: an order that every reader computes alike. Owns: "newest wins".
Never: uses a clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

MAX_ID_BYTES = 512
ID_HASH_BYTES = 16


class ItemVersion(NamedTuple):
    """Where an item came from: its partition, offset and number within the record. It is the item's version."""

    partition: int
    offset: int
    item: int


class VersionOrder(NamedTuple):
    """Sort key of the versions of one id: the origin for a replayed record, else its own position; then its own.

    A replay of an old dead letter therefore loses to everything that came after the original (DESIGN section 4).
    """

    effective_offset: int
    effective_item: int
    own_offset: int
    own_item: int


def version_order(offset: int, item: int, origin_offset: int | None = None, origin_item: int | None = None) -> VersionOrder:
    """Order key of a version within its id."""
    if origin_offset is None:
        return VersionOrder(offset, item, offset, item)
    return VersionOrder(origin_offset, origin_item or 0, offset, item)


def id_text(value: Any) -> str | None:
    """An id as the text that it is stored as: strings as they are, whole numbers in decimal, UUIDs in lower case with hyphens; None for all else.

    The number 5 and the string "5" are one id: a Kafka key is bytes and cannot tell them apart.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        return None
    return str(value)


def id_hash(item_id: str) -> bytes:
    """128-bit hash of an id (BLAKE2b, 16 bytes), the join key of deletes, masks and look-ups.

    Readers that act on a match for the user (`GET points/{id}`) compare the whole id as well.
    """
    return hashlib.blake2b(item_id.encode("utf-8"), digest_size=ID_HASH_BYTES).digest()


def id_hashes(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Hash many ids.

    Returns
    -------
    NDArray[np.uint64]
        shape (n, 2): the high and the low word of each hash, big-endian on disk, native here.
    """
    hashed = hashlib.blake2b
    data = b"".join([hashed(item_id.encode(), digest_size=ID_HASH_BYTES).digest() for item_id in ids])  # `id_hash`, without a call for each
    return np.frombuffer(data, dtype=">u8").astype(np.uint64).reshape(-1, 2)


class IdIndex:
    """Rows of one segment by id hash; ids are unique within a segment.

    Parameters
    ----------
    hashes : NDArray[np.uint64]
        shape (n, 2), of either byte order, sorted by the first word and then the second; they may lie in a mapped file.
    rows : NDArray[np.uint32]
        shape (n,), the row of each hash.
    """

    def __init__(self, hashes: NDArray[np.uint64], rows: NDArray[np.uint32]) -> None:
        if hashes.shape != (len(rows), 2):
            raise ValueError(f"hashes have shape {hashes.shape}, rows {rows.shape}")
        self.hashes, self.rows = hashes, rows
        self._high: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, hashes: NDArray[np.uint64]) -> IdIndex:
        """Sort hashes, shape (n, 2), given in row order."""
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        return cls(np.ascontiguousarray(hashes[order]), order.astype(np.uint32))

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each hash, shape (m,), or -1 where it is not here."""
        found = np.full(len(hashes), -1, np.int64)
        if not len(self.rows) or not len(hashes):
            return found
        if self._high is None:  # at the first look: a node starts with many segments, and reads most of them for nothing else
            self._high = np.ascontiguousarray(self.hashes[:, 0], dtype=np.uint64)
        at = np.searchsorted(self._high, hashes[:, 0])
        pending = np.flatnonzero(at < len(self.rows))
        while len(pending):  # more than one turn only where two ids share the 64-bit high word
            pending = pending[self._high[at[pending]] == hashes[pending, 0]]
            hit = self.hashes[at[pending], 1] == hashes[pending, 1]
            found[pending[hit]] = self.rows[at[pending[hit]]]
            pending = pending[~hit]
            at[pending] += 1
            pending = pending[at[pending] < len(self.rows)]
        return found
