"""Segments and delete deltas in memory, read from a manifest's entries.

Takes: a node's cache, manifest entries. Gives: `LoadedSegment`, `LoadedDelta`. Owns: the one conversion of stored vectors to float32.
Never: parses bytes whose sha256 was not checked, or keeps one of a segment's parts without the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from backends.catalog.objects import download
from contracts.collection import FieldRecord, IndexRecord
from contracts.deletes import decode_delete_delta
from contracts.errors import CorruptError, HeadwaterError
from contracts.footer_file import CHUNK_BYTES, read_footer
from contracts.item import IdIndex, VersionOrder
from contracts.manifest import ObjectEntry, SegmentEntry
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, CodedPart, FieldPart, read_field_part, read_rows_part, rows_schema
from contracts.store import ObjectStore
from contracts.vectors_batch import conform
from query.field_indexes import FieldIndexes
from query.filter_index import FilterIndex
from query.memory_budget import Held
from query.node import Node
from query.partial_file import PartialFile, PartialRefine
from query.parts import CodedColumn, CodedSpan, Coding, Column, Part, RowColumns, VectorColumn
from query.texts import Texts
from vectors.flat import as_float32
from vectors.inverted_lists import StoredLists
from vectors.quantizer import Quantizer

ROW_BYTES = 64
"""Of each row: hashes of its id twice, offsets, times, bits."""
NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class LoadedSegment:
    """A segment's rows and vectors, read from `parts`; which of its rows are live is the partition view's matter.

    Rows of a segment never change, while the vectors of a field may be stored anew in the codes of a generation: then it is another `LoadedSegment`.
    """

    segment_id: str
    batch: pa.RecordBatch
    ids: IdIndex
    columns: RowColumns
    vectors: Mapping[str, Column]
    held: Held
    parts: Mapping[str, ObjectEntry]
    id_texts: Texts
    filter_index: FilterIndex
    coming: tuple[PartialFile, ...] = ()
    """Files of which refine codes may be missing."""

    @property
    def rows(self) -> int:
        """Stored rows."""
        return int(self.batch.num_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes that were counted for it, of memory that no file can give back."""
        return self.held.size_bytes

    @property
    def missing_bytes(self) -> int:
        """Bytes of refine codes that are not here yet."""
        return sum(file.missing_bytes for file in self.coming)

    def is_of(self, parts: Mapping[str, ObjectEntry] | None) -> bool:
        """Whether it was read from these parts."""
        mine = self.parts
        if mine is parts:  # a manifest's entry is the one before's where nothing of it changed
            return True
        return parts is not None and mine.keys() == parts.keys() and all(mine[name].sha256 == part.sha256 for name, part in parts.items())

    def part(self, live: NDArray[np.bool_]) -> Part:
        """The segment as a part with that mask of live rows, shape (rows,)."""
        filters = self.filter_index
        return Part(self.segment_id, (self.batch,), (0,), self.columns, self.vectors, live, ids=self.id_texts, filter_index=filters)


@dataclass(frozen=True, slots=True)
class LoadedDelta:
    """A delete delta: deleted rows by segment, and the newest deleted version of each id by the id's hash."""

    rows: Mapping[str, NDArray[np.uint32]]
    tombstones: Mapping[bytes, VersionOrder]


class SegmentLoader:
    """Opens segments of one index; thread-safe.

    Parameters
    ----------
    node : Node
        Where objects are kept, and how much memory they may take.
    index : IndexRecord
        Its fields are loaded.
    attributes : Mapping of str to str
        The collection's typed attributes.
    indexes : FieldIndexes
        Where coded rows are found.
    """

    def __init__(self, node: Node, index: IndexRecord, attributes: Mapping[str, str], indexes: FieldIndexes) -> None:
        self._node, self._index, self._schema, self._indexes = node, index, rows_schema(attributes), indexes

    def prepare(self, generations: Mapping[str, int]) -> None:
        """Open the generations that segments will need, beside the first of them; what goes wrong is told where it is needed."""
        for name, generation in generations.items():
            with contextlib.suppress(HeadwaterError):
                self._indexes.prepare(name, generation)

    def load(self, entry: SegmentEntry, *, is_starting: bool = False, gives_way: bool = False) -> LoadedSegment:
        """Get, check and open a segment; coded fields are in their logical indexes when this returns.

        Parameters
        ----------
        entry : SegmentEntry
            What the manifest says of it.
        is_starting : bool
            Its partition does not serve all of a manifest yet: its refine codes may come later.
        gives_way : bool
            Reading stands still while searches wait for refine codes.

        Raises
        ------
        SnapshotError
            A part is gone: compacted away; take the newest manifest.
        CorruptError
            A part is not what the manifest or the index says.
        MemoryFullError
            It does not fit into this node's memory.
        """
        where = entry.parts.get(ROWS_PART)
        if where is None:
            raise CorruptError(f"segment {entry.segment_id} has no part {ROWS_PART}", hint="restore the manifest from a backup")
        opened = {field.name: self._field_part(entry, field, is_starting, gives_way) for field in self._index.fields}
        held = self._node.memory.hold(_memory_bytes(entry, [part for part, _ in opened.values()]), f"segment {entry.segment_id}")
        rows = read_rows_part(self._node.cache.open(where), where.key)
        if rows.batch.num_rows != entry.rows:
            raise CorruptError(f"{where.key}: {rows.batch.num_rows} rows, the manifest says {entry.rows}")
        batch = rows.batch if rows.batch.schema.equals(self._schema) else conform(rows.batch, self._schema, where.key)
        vectors = {field.name: self._column(*opened[field.name], field, entry, is_starting) for field in self._index.fields}
        texts, filters = Texts(batch.column("id")), FilterIndex(batch, rows.ids)
        coming = tuple(source.file for _, source in opened.values() if source is not None)
        for file in coming:
            file.fill(self._node.pool)
        return LoadedSegment(entry.segment_id, batch, rows.ids, RowColumns.of(batch), vectors, held, entry.parts, texts, filters, coming)

    def _field_part(
        self, entry: SegmentEntry, field: FieldRecord, is_starting: bool, gives_way: bool
    ) -> tuple[FieldPart | CodedPart | None, PartialRefine | None]:
        """A field's part, and who brings its refine codes where they come later."""
        part = entry.parts.get(FIELD_PART_PREFIX + field.name)
        if part is None:
            return None, None
        opened = self._node.cache.open_partly(part) if is_starting else self._node.cache.open(part)
        if not isinstance(opened, PartialFile):
            return read_field_part(opened, field, part.key), None
        refine = _bring_all_but_refine(opened, self._node.pool.give_way if gives_way else lambda: None)
        read = read_field_part(opened.view, field, part.key)
        if refine is None or not isinstance(read, CodedPart):
            return read, None
        return read, PartialRefine(opened, refine, read.refine.shape[1], self._node.pool)

    def _column(
        self, part: FieldPart | CodedPart | None, source: PartialRefine | None, field: FieldRecord, entry: SegmentEntry, is_starting: bool
    ) -> Column:
        if part is None:  # written before the field was added, or no row has it
            return VectorColumn(np.zeros((0, field.dimension), np.float32), np.zeros(0, np.uint32))
        where = entry.parts[FIELD_PART_PREFIX + field.name].key
        said = part.segment_rows if isinstance(part, CodedPart) else part.meta["rows"]
        if said != entry.rows:
            raise CorruptError(f"{where}: vectors of {said} rows, the segment has {entry.rows}")
        rows = None if len(part.rows) == entry.rows else part.rows
        if isinstance(part, FieldPart):
            return VectorColumn(as_float32(part.matrix), rows)
        index = self._indexes.get(field.name, part.generation)
        check_quantizer(part, index.quantizer, where)
        places = None if rows is None else rows.astype(np.int64)
        lists = StoredLists(part.lists, index.quantizer, part.rows, where)
        lease = index.add_segment(entry.rows, lists, part.refine, places, is_starting=is_starting, source=source)
        recall = {int(nprobe): float(share) for nprobe, share in part.statistics.get("recall", {}).items()}
        return CodedColumn(Coding(index, (CodedSpan(lease, 0, entry.rows),), recall), rows)


def _memory_bytes(entry: SegmentEntry, parts: Iterable[FieldPart | CodedPart | None]) -> int:
    """Bytes that a segment takes beside its mapped files, so many at most as its codes lie in both small tiers and in two big ones at a rebuild."""
    total = entry.rows * ROW_BYTES
    for part in parts:
        if isinstance(part, CodedPart):
            total += len(part.refine) * 4 * (part.code_bytes + NUMBER_BYTES)
            if len(part.rows) < entry.rows:  # refine codes are copied to their rows' places
                total += entry.rows * part.refine.shape[1]
        elif part is not None:
            total += part.matrix.size * 4
    return total


def _bring_all_but_refine(file: PartialFile, between: Callable[[], None]) -> int | None:
    """Bring what opening a coded part takes; gives the byte at which its refine codes begin, None where everything was brought."""
    size, key = file.entry.size_bytes, file.entry.key
    last = (size - 1) // CHUNK_BYTES
    for tail in (last * CHUNK_BYTES, (last - 1) * CHUNK_BYTES):  # the footer may begin in the chunk before
        file.bring(tail, size)
        with contextlib.suppress(CorruptError, KeyError):  # else it is a flat part, or a damaged one: reading it will tell
            start, length = read_footer(file.view[tail:], key).places["refine"]
            if 0 < start < start + length <= size:
                file.bring(0, start, between)
                file.bring(start + length, size, between)
                return start
    file.bring(0, size, between)
    return None


def check_quantizer(part: CodedPart, quantizer: Quantizer, where: str) -> None:
    """Compare a coded part with the quantizer that is to read it; CorruptError where another one wrote it."""
    said = (part.codec, part.nlist, part.code_bytes, part.refine.shape[1])
    if said != (quantizer.codec.name, quantizer.nlist, quantizer.code_bytes, quantizer.refine_bytes):
        raise CorruptError(f"{where}: codec, lists and bytes are {said}, which generation {quantizer.number} is not")


def load_delta(store: ObjectStore, entry: ObjectEntry) -> LoadedDelta:
    """Download, check and open a delete delta; raises as `SegmentLoader.load`."""
    delta = decode_delete_delta(download(store, entry), entry.key)
    tombstones: dict[bytes, VersionOrder] = {}
    for tombstone in delta.tombstones:
        before = tombstones.get(tombstone.id_hash)
        if before is None or tombstone.order > before:
            tombstones[tombstone.id_hash] = tombstone.order
    return LoadedDelta({name: np.array(bitmap.to_array(), np.uint32) for name, bitmap in delta.bitmaps.items()}, tombstones)
