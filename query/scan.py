"""Reads without vectors: counts, and pages of a full scan in the order of the media log.

Takes: a snapshot, a filter. Gives: numbers, rows, the place where the next page begins. Owns: the order of a scan.
Never: looks at anything that is not in the pinned snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from query.collection_view import CollectionSnapshot
from query.filter_tree import Filter
from query.found import RowRef
from query.parts import Part
from query.search import eligible_rows


def count(snapshot: CollectionSnapshot, chosen: Filter | None) -> int:
    """Rows that live, have not expired and pass the filter."""
    return sum(int(np.count_nonzero(eligible_rows(snapshot, part, chosen))) for _, part in snapshot.parts)


@dataclass(frozen=True, slots=True, order=True)
class ScrollPlace:
    """A row's place in the order of a full scan: where the row came from."""

    partition: int
    offset: int
    item: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}/{self.item}"

    @classmethod
    def parse(cls, text: str) -> ScrollPlace:
        """Read a place back; ValueError where it is none."""
        numbers = text.split("/")
        if len(numbers) != 3 or not all(number.isascii() and number.isdigit() and len(number) <= 19 for number in numbers):
            raise ValueError("not PARTITION/OFFSET/ITEM")
        partition, offset, item = map(int, numbers)
        if offset > np.iinfo(np.int64).max or item > np.iinfo(np.int32).max:
            raise ValueError("out of range")
        return cls(partition, offset, item)


def scroll(snapshot: CollectionSnapshot, start: ScrollPlace | None, limit: int, chosen: Filter | None) -> tuple[list[RowRef], ScrollPlace | None]:
    """A page of the full scan in (partition, offset, item) order, beginning at `start`, and where the next one begins."""
    page: list[tuple[ScrollPlace, RowRef]] = []
    for partition in sorted(snapshot.views):
        if start is not None and partition < start.partition:
            continue
        place = start if start is not None and partition == start.partition else ScrollPlace(partition, 0, 0)
        found: list[tuple[ScrollPlace, RowRef]] = []
        for part in snapshot.views[partition].parts:
            rows = _first_rows(part, eligible_rows(snapshot, part, chosen), place, limit + 1 - len(page))
            columns = part.columns
            found += [(ScrollPlace(partition, int(columns.offsets[r]), int(columns.items[r])), RowRef(partition, part, int(r))) for r in rows]
        page += sorted(found, key=lambda entry: entry[0])
        if len(page) > limit:
            break
    refs = [ref for _, ref in page[:limit]]
    return refs, page[limit][0] if len(page) > limit else None


def _first_rows(part: Part, mask: NDArray[np.bool_], place: ScrollPlace, limit: int) -> NDArray[np.int64]:
    """Up to `limit` rows (and those of the last one's record) at or after a place, unordered; linear in the part's rows."""
    offsets, items = part.columns.offsets, part.columns.items
    rows = np.flatnonzero(mask & ((offsets > place.offset) | ((offsets == place.offset) & (items >= place.item))))
    if len(rows) > limit:
        last = np.partition(offsets[rows], limit - 1)[limit - 1]
        rows = rows[offsets[rows] <= last]
    return rows
