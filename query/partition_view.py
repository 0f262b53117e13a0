"""What one partition answers queries from: an immutable view, pinned by taking one reference.

Takes: loaded segments, live masks, the tail. Gives: `PartitionView`. Owns: nothing that changes. Never: is altered after it was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.item import id_hashes
from contracts.manifest import ReadManifest
from query.parts import Part
from query.segments import LoadedDelta, LoadedSegment


@dataclass(frozen=True, slots=True, eq=False)
class LoadedManifest:
    """A manifest with what it names: segments in its order, and live rows of each without the tail's masks; all of them where it is `complete`."""

    read: ReadManifest
    segments: Mapping[str, LoadedSegment]
    deltas: Mapping[str, LoadedDelta]
    live: Mapping[str, NDArray[np.bool_]]

    @property
    def version(self) -> int:
        """Version of the manifest."""
        return self.read.manifest.version

    @property
    def complete(self) -> bool:
        """Whether every segment is loaded."""
        return len(self.segments) == len(self.read.manifest.segments)


@dataclass(frozen=True, slots=True, eq=False)
class PartitionView:
    """A partition at one moment.

    Parameters
    ----------
    partition : int
        Which one.
    loaded : LoadedManifest
        The manifest that is served.
    sealed : tuple of Part
        Its segments, with the live rows that neither a delete delta nor the tail took away; the same tuple as long as nothing of it changes.
    tail : Part
        Rows above the manifest's checkpoint.
    expected : int
        Next media offset: everything below it is in this view.
    """

    partition: int
    loaded: LoadedManifest
    sealed: tuple[Part, ...]
    tail: Part
    expected: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, the tail last."""
        return (*self.sealed, self.tail)

    @property
    def coverage(self) -> float:
        """Share of the manifest's rows that are in loaded segments."""
        rows = self.loaded.read.manifest.rows
        return 1.0 if not rows or self.loaded.complete else sum(segment.rows for segment in self.loaded.segments.values()) / rows

    def find(self, item_id: str) -> tuple[Part, int] | None:
        """The live row of an id, or None; segments are asked by hash and the whole id is compared."""
        row = self.tail.find_id(item_id)
        if row is not None:
            return self.tail, row
        hashes = id_hashes([item_id])
        for part, segment in self._segments():
            at = int(segment.ids.find(hashes)[0])
            if at >= 0 and part.live[at] and part.id(at) == item_id:
                return part, at
        return None

    def _segments(self) -> Iterator[tuple[Part, LoadedSegment]]:
        for part in self.sealed:
            yield part, self.loaded.segments[part.name]
