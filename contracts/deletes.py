"""The delete delta: what one commit takes away (docs/formats/deletes.md).

Bitmaps (Roaring, portable serialisation) name rows of earlier segments that are no longer live; tombstones name ids that were deleted, by
their hashes (a purged id is to be nowhere), so that a replayed old record stays dead. A segment's deleted rows are the union of its bitmaps over the
manifest's deltas; a bitmap of a segment that was compacted away says nothing.

Takes: rows and tombstones. Gives: one object. Owns: both encodings. Never: rewrites an earlier delta.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyroaring import BitMap

from contracts import FORMAT_VERSION
from contracts.errors import CorruptError
from contracts.footer_file import FooterFile, write_footer_file
from contracts.item import ID_HASH_BYTES, VersionOrder, version_order

_BITMAP = "bitmap/"
_SCHEMA = pa.schema(
    [
        pa.field("id_hash", pa.binary(ID_HASH_BYTES), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("origin_offset", pa.int64()),
        pa.field("origin_item", pa.int32()),
        pa.field("committed_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An id, by its hash, that a delete removed, with the delete's version; kept 31 days (DESIGN section 3)."""

    id_hash: bytes
    offset: int
    item: int
    committed_at_us: int
    origin_offset: int | None = None
    origin_item: int | None = None

    @property
    def order(self) -> VersionOrder:
        """The delete's place among the versions of its id."""
        return version_order(self.offset, self.item, self.origin_offset, self.origin_item)


@dataclass(frozen=True, slots=True)
class DeleteDelta:
    """Deleted rows by segment id, and tombstones."""

    bitmaps: Mapping[str, BitMap]
    tombstones: Sequence[Tombstone]


def encode_delete_delta(delta: DeleteDelta) -> bytes:
    """Bytes of a delete delta; empty bitmaps are left out."""
    columns = {
        "id_hash": [t.id_hash for t in delta.tombstones],
        "offset": [t.offset for t in delta.tombstones],
        "item": [t.item for t in delta.tombstones],
        "origin_offset": [t.origin_offset for t in delta.tombstones],
        "origin_item": [t.origin_item for t in delta.tombstones],
        "committed_at": [t.committed_at_us for t in delta.tombstones],
    }
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(pa.table(columns, schema=_SCHEMA))
    sections: dict[str, bytes | memoryview] = {_BITMAP + name: bitmap.serialize() for name, bitmap in sorted(delta.bitmaps.items()) if bitmap}
    sections["tombstones"] = sink.getvalue()
    return write_footer_file("deletes", sections, {"tombstones": len(delta.tombstones), "rows": sum(len(b) for b in delta.bitmaps.values())})


def decode_delete_delta(data: bytes | memoryview, where: str) -> DeleteDelta:
    """Read a delete delta whose bytes were checked against the manifest.

    Raises
    ------
    CorruptError
        Not a delete delta, or a bitmap that cannot be read.
    """
    file = FooterFile.read(data, where, "deletes")
    try:
        bitmaps = {name.removeprefix(_BITMAP): BitMap.deserialize(bytes(view)) for name, view in file.sections.items() if name.startswith(_BITMAP)}
        table = pa.ipc.open_file(pa.py_buffer(file.section("tombstones", where))).read_all()
    except (ValueError, pa.ArrowException, OSError) as error:
        raise CorruptError(f"{where}: a bitmap or the tombstones cannot be read: {error}") from None
    if not table.schema.equals(_SCHEMA):
        raise CorruptError(f"{where}: the tombstones have other columns than format {FORMAT_VERSION}", code="unknown_format")
    stamps = table.column("committed_at").cast(pa.int64()).to_pylist()
    names = ("id_hash", "offset", "item", "origin_offset", "origin_item")
    rows = zip(*(table.column(name).to_pylist() for name in names), stamps, strict=True)
    tombstones = [Tombstone(i, offset, item, stamp, origin, origin_item) for i, offset, item, origin, origin_item, stamp in rows]
    return DeleteDelta(bitmaps, tombstones)
