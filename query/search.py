"""The search plan: every part of a snapshot is searched exactly, and the answers are merged.

Takes: a snapshot, a query vector, a filter. Gives: hits, best first; pages of a full scan. Owns: the order of rows.
Never: looks at anything that is not in the pinned snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from query.collection_view import CollectionSnapshot
from query.filter_masks import apply_filter
from query.filter_tree import Filter
from query.parts import Part
from vectors import flat


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of a part of a snapshot; `score` is None where nothing was compared."""

    partition: int
    part: Part
    row: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class VectorSearch:
    """What to search for: `vector`, shape (d,), in `field`; the row `without` is left out."""

    field: FieldRecord
    vector: NDArray[np.float32]
    limit: int
    offset: int = 0
    chosen: Filter | None = None
    score_threshold: float | None = None
    without: RowRef | None = None


def eligible_rows(snapshot: CollectionSnapshot, part: Part, chosen: Filter | None) -> NDArray[np.bool_]:
    """Rows of a part that live, have not expired and pass the filter, shape (n,)."""
    return apply_filter(chosen, part, part.eligible(snapshot.expired_before_us))


def search(snapshot: CollectionSnapshot, wanted: VectorSearch) -> tuple[list[RowRef], int]:
    """Closest rows, best first, and how many vectors were compared."""
    places: list[tuple[int, Part]] = []
    found: list[flat.FlatHits] = []
    compared = 0
    for partition, part in snapshot.parts:
        column = part.vectors[wanted.field.name]
        rows = eligible_rows(snapshot, part, wanted.chosen)
        if wanted.without is not None and wanted.without.part is part:
            rows = rows.copy()
            rows[wanted.without.row] = False
        allowed = column.allowed(rows)
        compared += int(np.count_nonzero(allowed))
        places.append((partition, part))
        found.append(flat.search(wanted.vector, column.matrix, wanted.field.metric, wanted.offset + wanted.limit, allowed))
    merged = flat.merge(found, wanted.field.metric, wanted.offset + wanted.limit)[wanted.offset :]
    refs = [
        RowRef(places[hit.part][0], places[hit.part][1], places[hit.part][1].vectors[wanted.field.name].part_row(hit.row), hit.score)
        for hit in merged
        if _good_enough(hit.score, wanted)
    ]
    return refs, compared


def _good_enough(score: float, wanted: VectorSearch) -> bool:
    threshold = wanted.score_threshold
    if threshold is None:
        return True
    return score >= threshold if flat.higher_is_better(wanted.field.metric) else score <= threshold


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
