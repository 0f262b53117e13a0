"""Flat -> coded: one field part of one committed segment in the codes of a generation.

    download -> check -> encode -> upload under a new key; the builder commits it in place of the old one (`PartitionBuilder.replace_part`)

Takes: a segment's entry, a quantizer. Gives: a `RecodedPart`. Owns: nothing that is committed.
Never: touches rows, deletes or another field; deletes the old object (garbage collection does).
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.catalog.objects import download, download_range, upload
from contracts.collection import FieldRecord
from contracts.errors import CorruptError
from contracts.footer_file import read_footer
from contracts.manifest import ObjectEntry, SegmentEntry
from contracts.object_keys import PartitionKeys
from contracts.segment import FIELD_PART_PREFIX, FieldPart, read_field_part, write_coded_part
from contracts.store import ObjectStore
from indexer.field_parts import coded_part
from indexer.ulids import UlidSource
from vectors.quantizer import Quantizer
from vectors.train import use_threads

FOOTER_BYTES = 64 * 1024
"""Read from the end of a part to learn its layout; a footer is a few hundred bytes."""


@dataclass(frozen=True, slots=True)
class RecodedPart:
    """A part that is uploaded and waits for its commit.

    `ulid` names the new object; it must be published before any newer one of the same claim, else it is uploaded again.
    """

    partition: int
    segment_id: str
    field: FieldRecord
    generation: int
    replaced: ObjectEntry
    entry: ObjectEntry
    epoch: int
    ulid: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PartPlace:
    """Where the parts of one partition go: its keys under the builder's claim, and ULIDs in the order of publishing."""

    store: ObjectStore
    keys: PartitionKeys
    epoch: int
    ulids: UlidSource

    def upload(self, part: str, data: bytes) -> tuple[str, ObjectEntry]:
        """Store a part under a new ULID; returns both."""
        ulid = self.ulids.mint()
        return ulid, upload(self.store, self.keys.part("b", self.epoch, ulid, part), data)


def is_flat(store: ObjectStore, entry: ObjectEntry) -> bool:
    """Whether a committed field part is flat, by its footer alone.

    Raises
    ------
    SnapshotError
        It was compacted away.
    CorruptError
        Its bytes are not what the manifest says.
    """
    start = max(0, entry.size_bytes - FOOTER_BYTES)
    footer = read_footer(download_range(store, entry, start, entry.size_bytes - start), entry.key)
    return bool(footer.meta.get("layout") == "flat")


def recode_part(place: PartPlace, segment: SegmentEntry, field: FieldRecord, quantizer: Quantizer, threads: int) -> RecodedPart | None:
    """Upload a segment's field part in the codes of a generation; None where it is coded already.

    Raises
    ------
    SnapshotError, UnavailableError, CorruptError
        As `backends.catalog.objects.download`.
    """
    use_threads(threads)
    name = FIELD_PART_PREFIX + field.name
    replaced = segment.parts[name]
    if not is_flat(place.store, replaced):
        return None
    part = read_field_part(download(place.store, replaced), field, replaced.key)
    if not isinstance(part, FieldPart):
        return None
    if part.meta["rows"] != segment.rows:
        raise CorruptError(f"{replaced.key}: vectors of {part.meta['rows']} rows, the segment has {segment.rows}")
    data = write_coded_part(field, coded_part(quantizer, part.matrix, part.rows, segment.rows))
    ulid, entry = place.upload(name, data)
    return RecodedPart(place.keys.partition, segment.segment_id, field, quantizer.number, replaced, entry, place.epoch, ulid, data)


def upload_again(place: PartPlace, part: RecodedPart) -> RecodedPart:
    """The same bytes under a newer ULID, since a newer one was published before the first could be."""
    ulid, entry = place.upload(FIELD_PART_PREFIX + part.field.name, part.data)
    return RecodedPart(part.partition, part.segment_id, part.field, part.generation, part.replaced, entry, place.epoch, ulid, part.data)
