"""What one partition answers queries from: an immutable view, pinned by taking one reference.

Takes: loaded segments, live masks, the tail. Gives: `PartitionView`. Owns: nothing that changes. Never: is altered after it was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.item import id_hashes
from contracts.manifest import ReadManifest
from query.parts import TAIL, Part
from query.segments import LoadedDelta, LoadedSegment


@dataclass(frozen=True, slots=True)
class LoadedManifest:
    """A manifest with everything that it names: segments in its order, and live rows of each without the tail's masks."""

    read: ReadManifest
    segments: Mapping[str, LoadedSegment]
    deltas: Mapping[str, LoadedDelta]
    live: Mapping[str, NDArray[np.bool_]]

    @property
    def version(self) -> int:
        """Version of the manifest."""
        return self.read.manifest.version


@dataclass(frozen=True, slots=True)
class PartitionView:
    """A partition at one moment.

    Parameters
    ----------
    partition : int
        Which one.
    loaded : LoadedManifest
        The manifest that is served.
    live : Mapping of str to NDArray[np.bool_]
        Per segment id, rows that neither a delete delta nor the tail took away.
    tail : Part
        Rows above the manifest's checkpoint.
    expected : int
        Next media offset: everything below it is in this view.
    """

    partition: int
    loaded: LoadedManifest
    live: Mapping[str, NDArray[np.bool_]]
    tail: Part
    expected: int
    parts: tuple[Part, ...] = field(init=False)

    def __post_init__(self) -> None:
        sealed = tuple(segment.part(self.live[name]) for name, segment in self.loaded.segments.items())
        object.__setattr__(self, "parts", (*sealed, self.tail))

    def find(self, item_id: str) -> tuple[Part, int] | None:
        """The live row of an id, or None; segments are asked by hash and the whole id is compared."""
        row = self.tail.find_id(item_id)
        if row is not None:
            return self.tail, row
        hashes = id_hashes([item_id])
        for part, segment in self._segments():
            at = int(segment.ids.find(hashes)[0])
            if at >= 0 and part.live[at] and part.value(at, "id") == item_id:
                return part, at
        return None

    def _segments(self) -> Iterator[tuple[Part, LoadedSegment]]:
        for part in self.parts:
            if part.name != TAIL:
                yield part, self.loaded.segments[part.name]
