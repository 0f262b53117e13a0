"""What a search found: rows by number, from which references or points are made once somebody asks for them.

Most answers show id, version and score of ten rows. An object for each hit, and calls on the way from a number to its row, cost a tenth of a small
search: what a query reads right after faiss has read its own data is in no cache of the processor any more.

Takes: row numbers and scores, where the numbers' spans lie. Gives: `FoundRows`, a sequence of `RowRef`, and bare points.
Owns: the shape of a bare point. Never: reads a row's columns but id and version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from query.parts import Part
from query.texts import Texts


class RowRef(NamedTuple):
    """A row of a part of a snapshot; `score` is None where nothing was compared."""

    partition: int
    part: Part
    row: int
    score: float | None = None


class Place(NamedTuple):
    """Where numbers of one span are rows: number n is row ``n + shift`` of a part; with what a bare point shows of it, at hand.

    An id is ``data[ends[row] : ends[row + 1]]`` where the part's ids lie in one column (`query.texts`), else `ends` is None.
    """

    partition: int
    part: Part
    shift: int
    ends: memoryview | None
    data: memoryview
    version_of: Callable[[int], int]

    @classmethod
    def of(cls, partition: int, part: Part, shift: int) -> Place:
        """Of a part."""
        ids = part.ids
        ends, data = (ids.ends, ids.data) if isinstance(ids, Texts) else (None, _NOTHING)
        return cls(partition, part, shift, ends, data, part.columns.version_of)


_NOTHING = memoryview(b"")


class FoundRows(Sequence[RowRef]):
    """Hits of one search, best first: each with its place, its row there and its score."""

    __slots__ = ("_entries",)

    def __init__(self, entries: list[tuple[Place, int, float]]) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, at: int) -> RowRef: ...
    @overload
    def __getitem__(self, at: slice) -> FoundRows: ...
    def __getitem__(self, at: int | slice) -> RowRef | FoundRows:
        if isinstance(at, slice):
            return FoundRows(self._entries[at])
        place, row, score = self._entries[at]
        return RowRef(place.partition, place.part, row, score)

    def __iter__(self) -> Iterator[RowRef]:
        return (RowRef(place.partition, place.part, row, score) for place, row, score in self._entries)

    def bare_points(self) -> list[dict[str, Any]]:
        """What `bare_point` makes of each, without the references in between."""
        return [
            {
                "id": part.id(row) if ends is None else str(data[ends[row] : ends[row + 1]], "utf-8"),
                "version": version_of(row),
                "score": score,
            }
            for (_, part, _, ends, data, version_of), row, score in self._entries
        ]


def bare_point(ref: RowRef) -> dict[str, Any]:
    """One point as every query gives it. `version` is the media offset that the row came from; `score` is there where vectors were compared."""
    part, row, score = ref.part, ref.row, ref.score
    point: dict[str, Any] = {"id": part.id(row), "version": part.columns.version_of(row)}
    if score is not None:
        point["score"] = score
    return point
