"""What a segment's manifest entry and its rows part say alike, whoever writes them: the builder at a seal, the compactor.

Takes: the rows, and which offsets they stand for. Gives: the meta of the rows part, the manifest entry. Owns: that both agree.
Never: holds the rows: the compactor lets go of them before it makes the field parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from contracts.manifest import ObjectEntry, SegmentEntry


@dataclass(frozen=True, slots=True)
class SegmentFrame:
    """A segment without its parts.

    `start_offset` and `next_offset` are the media offsets that it stands for, half-open; event times are those of its rows, in
    microseconds, None where no row has one.
    """

    start_offset: int
    next_offset: int
    schema_version: int
    rows: int
    min_event_time_us: int | None
    max_event_time_us: int | None

    @classmethod
    def of(cls, rows: pa.RecordBatch, start_offset: int, next_offset: int, schema_version: int) -> Self:
        """The frame of these rows, one at least."""
        times = pc.min_max(rows.column("event_time").cast(pa.int64())).as_py()
        return cls(start_offset, next_offset, schema_version, rows.num_rows, times["min"], times["max"])

    def meta(self, partition: int) -> dict[str, Any]:
        """Meta of the rows part."""
        return {
            "start_offset": self.start_offset,
            "next_offset": self.next_offset,
            "partition": partition,
            "schema_version": self.schema_version,
        }

    def entry(self, segment_id: str, parts: dict[str, ObjectEntry]) -> SegmentEntry:
        """The manifest entry of the segment with these parts."""
        return SegmentEntry(
            segment_id=segment_id,
            start_offset=self.start_offset,
            next_offset=self.next_offset,
            rows=self.rows,
            min_event_time_us=self.min_event_time_us,
            max_event_time_us=self.max_event_time_us,
            schema_version=self.schema_version,
            parts=parts,
        )
