"""The tail: accepted rows of the vectors topic that no loaded segment holds; searchable the moment they are read.

Append-only columns: readers hold the first n rows of the arrays that they pinned, the writer writes beyond n and, when there is no room, into
a larger copy. The mask of live rows is copied before a published row in it changes. Newest wins by `VersionOrder`; entries come in media order,
so that only a replay (a row with an origin) can lose against what is here already.

A patch becomes a row like any other: its attributes are merged, the rest is copied from the id's live row (contracts/media_patch.py).

Takes: decoded batches, spans that the chain accepted. Gives: tail parts, the newest entry of each id. Owns: the tail's columns.
Never: changes a row that was published, or knows segments (query/partition.py masks them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contracts.chain import AcceptedSpan
from contracts.collection import IndexRecord
from contracts.errors import CorruptError
from contracts.item import VersionOrder, id_hashes, version_order
from contracts.media_patch import BaseRow, PatchedRow, Patcher, put_vectors
from contracts.segment import rows_schema, stored_rows
from contracts.vectors_batch import VECTOR_PREFIX, vector_matrix
from query.parts import TAIL, Part, RowColumns, VectorColumn
from query.tail_codes import TailCodes
from query.texts import JoinedTexts, Texts
from vectors.logical_index import LogicalIndex

FIRST_ROWS = 1024
NO_ROW = -1
_IGNORED = frozenset(("reject", "superseded", "gap", "lost"))
_KNOWN = frozenset(("upsert", "delete", "patch")) | _IGNORED

Loses = Callable[[str, VersionOrder], bool]
"""Asked of replays only: whether a segment or tombstone holds something newer than that version of that id."""
Bases = Callable[[Sequence[str]], Sequence[BaseRow | None]]
"""Live rows of ids in segments, asked of patches only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Newest version of an id in the tail: a row, or `NO_ROW` for a delete; `slot` is its place among the id hashes.

    Both count on where a tail is cut, so that entries stay what they are.
    """

    order: VersionOrder
    row: int
    slot: int

    @property
    def is_replay(self) -> bool:
        """Whether it stands at an origin before its own position, so that older segments may hold something newer."""
        return (self.order.effective_offset, self.order.effective_item) != (self.order.own_offset, self.order.own_item)


@dataclass(slots=True)
class _Change:
    """Newest version of an id in the batch at hand: its row there, and for a patch the row that it makes."""

    order: VersionOrder
    at: int
    op: str
    made: PatchedRow | None = None


class Grown:
    """An append-only array of at least one dimension; `view` of its first n rows stays as it is for ever."""

    def __init__(self, width: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self._array = np.empty((FIRST_ROWS, *width), dtype)
        self.rows = 0

    def append(self, values: NDArray[np.generic]) -> None:
        """Add rows, shape (n, *width); the array is copied to twice its size when there is no room."""
        needed = self.rows + len(values)
        if needed > len(self._array):
            larger = np.empty((max(needed, 2 * len(self._array)), *self._array.shape[1:]), self._array.dtype)
            larger[: self.rows] = self._array[: self.rows]
            self._array = larger
        self._array[self.rows : needed] = values
        self.rows = needed

    def after(self, rows: int) -> Grown:
        """What lies behind the first rows, which this one gives up writing to: in the same memory where at least half of that is still needed."""
        rest = Grown(self._array.shape[1:], self._array.dtype)
        if 2 * (self.rows - rows) >= len(self._array):
            rest._array, rest.rows = self._array[rows:], self.rows - rows
        else:
            rest.append(self._array[rows : self.rows])
        return rest

    def view(self) -> NDArray[np.generic]:
        """The rows so far, shape (rows, *width), without copying."""
        return self._array[: self.rows]

    def unshare(self) -> None:
        """Copy, so that rows may be changed without a reader of an earlier view seeing it."""
        self._array = self._array.copy()


class Tail:
    """The growing tail of one partition; one writer at a time (the partition's lock).

    Parameters
    ----------
    index : IndexRecord
        Its fields are the vector columns.
    attributes : Mapping of str to str
        The collection's typed attributes.
    """

    def __init__(self, index: IndexRecord, attributes: Mapping[str, str]) -> None:
        self._index, self._attributes, self._schema = index, attributes, rows_schema(attributes)
        self.newest: dict[str, Entry] = {}
        self._batches: list[pa.RecordBatch] = []
        self._ids: list[Texts] = []
        self._columns = {"offsets": _grown(np.int64), "items": _grown(np.int32), "event_time_us": _grown(np.int64)}
        self._matrices = {field.name: _grown(np.float32, field.dimension) for field in index.fields}
        self._present = {field.name: _grown(np.bool_) for field in index.fields}
        self._live = _grown(np.bool_)
        self._hashes = _grown(np.uint64, 2)
        self._codes: dict[str, TailCodes] = {}
        self._published = 0
        self._lowest_offset = 0
        self._cut_rows, self._cut_slots = 0, 0

    @property
    def rows(self) -> int:
        """Rows held, live or not."""
        return self._live.rows

    def apply(self, batch: pa.RecordBatch, span: AcceptedSpan, loses: Loses, bases: Bases, where: str) -> list[tuple[str, Entry]]:
        """Take in the accepted rows of a batch.

        Parameters
        ----------
        batch : pyarrow.RecordBatch
            Of the index's batch schema, in (offset, item) order.
        span : AcceptedSpan
            Rows outside of it are dropped.
        loses, bases : callable
            What segments hold.
        where : str
            Names the batch in errors.

        Returns
        -------
        list of (str, Entry)
            Ids with the entry that is newest now and was not before; older rows of segments are to be masked by them.

        Raises
        ------
        CorruptError
            An op that this version does not know, a change without an id, or rows out of order.
        """
        batch = _accepted(batch, span, where)
        ops, ids = _ops(batch, where), batch.column("id").to_pylist()
        lineage = [batch.column(name).to_pylist() for name in ("offset", "item", "origin_offset", "origin_item")]
        patcher = Patcher(batch, self._attributes, where)
        stored = self._stored_bases(ids, ops, bases) if "patch" in ops else {}
        changed: dict[str, _Change] = {}
        for at, op in enumerate(ops):
            if op in _IGNORED:
                continue
            item_id = ids[at]
            if item_id is None:
                raise CorruptError(f"{where}: {op} without an id", hint="only headwater may write to a vectors topic")
            order = version_order(*(column[at] for column in lineage))
            before = changed.get(item_id) or self.newest.get(item_id)
            is_replay = lineage[2][at] is not None
            if (before is not None and before.order > order) or (is_replay and loses(item_id, order)):
                continue
            change = _Change(order, at, op)
            if op == "patch":
                made = patcher.apply(self._live_row(item_id, changed.get(item_id), patcher, stored), at)
                if isinstance(made, str):  # it changes nothing
                    continue
                change.made = made
            changed[item_id] = change
        return self._store(batch, changed, patcher)

    def _stored_bases(self, ids: Sequence[str | None], ops: Sequence[str], bases: Bases) -> dict[str, BaseRow | None]:
        """What segments hold of the patched ids that the tail has not seen, looked up at once."""
        wanted = list({item_id for item_id, op in zip(ids, ops, strict=True) if op == "patch" and item_id and item_id not in self.newest})
        return dict(zip(wanted, bases(wanted), strict=True))

    def _live_row(self, item_id: str, change: _Change | None, patcher: Patcher, stored: dict[str, BaseRow | None]) -> BaseRow | PatchedRow | None:
        """The row that stands for an id: of this batch, of the tail, or of a segment; None where there is none."""
        if change is not None:
            return change.made or (patcher.row(change.at) if change.op == "upsert" else None)
        entry = self.newest.get(item_id)
        if entry is None:
            return stored[item_id]
        return None if entry.row == NO_ROW else self._base(entry.row - self._cut_rows)

    def _base(self, row: int) -> BaseRow:
        at = row
        for batch in self._batches:
            if at < batch.num_rows:
                break
            at -= batch.num_rows
        vectors = {name: grown.view()[row] if self._present[name].view()[row] else None for name, grown in self._matrices.items()}
        return BaseRow(batch, at, vectors.get)

    def _store(self, batch: pa.RecordBatch, changed: dict[str, _Change], patcher: Patcher) -> list[tuple[str, Entry]]:
        if not changed:
            return []
        with_row = sorted((change for change in changed.values() if change.op != "delete"), key=lambda change: change.at)
        row_of = {change.at: self._cut_rows + self.rows + place for place, change in enumerate(with_row)}
        slot = self._cut_slots + self._hashes.rows
        entries = {
            item_id: Entry(change.order, row_of.get(change.at, NO_ROW), slot + place) for place, (item_id, change) in enumerate(changed.items())
        }
        if with_row:
            taken = [change.at for change in with_row]
            chosen = batch if len(taken) == batch.num_rows else batch.take(pa.array(taken, pa.int64()))
            made = {place: change.made for place, change in enumerate(with_row) if change.made is not None}
            self._append_rows(chosen, made, patcher)
        self._hashes.append(id_hashes(list(changed)))
        self._live.append(np.ones(len(with_row), np.bool_))
        replaced = [before.row - self._cut_rows for item_id in changed if (before := self.newest.get(item_id)) is not None and before.row != NO_ROW]
        if replaced:
            if min(replaced) < self._published:
                self._live.unshare()
            self._live.view()[replaced] = False
        if not self.newest:
            self._lowest_offset = min(change.order.own_offset for change in changed.values())
        self.newest.update(entries)
        return list(entries.items())

    def _append_rows(self, chosen: pa.RecordBatch, made: dict[int, PatchedRow], patcher: Patcher) -> None:
        rows = patcher.rows(stored_rows(chosen, self._schema), made)
        self._batches.append(rows)
        while len(self._batches) > 1 and self._batches[-2].num_rows <= 2 * self._batches[-1].num_rows:
            # one-row batches would make a filter as slow as a loop: equal neighbours are joined, each row log2(n) times
            self._batches[-2:] = [pa.concat_batches(self._batches[-2:])]
        self._ids[len(self._batches) - 1 :] = [_texts(self._batches[-1])]
        columns = RowColumns.of(rows)
        for name, grown in self._columns.items():
            grown.append(getattr(columns, name))
        for field in self._index.fields:
            matrix, present = vector_matrix(chosen.column(VECTOR_PREFIX + field.name))
            if made:
                matrix, present = matrix.astype(np.float32), present.copy()
                put_vectors(made, field.name, matrix, present)
            self._matrices[field.name].append(matrix)
            self._present[field.name].append(present)
            codes = self._codes.get(field.name)
            if codes is not None and codes.rows + len(matrix) == self._matrices[field.name].rows:
                codes.append(self._matrices[field.name].view()[codes.rows :], present)  # type: ignore[arg-type]

    def code(self, field: str, index: LogicalIndex, most_rows: int) -> bool:
        """Code up to `most_rows` of a field's rows that are not in a logical index yet; whether all are. Later rows are coded as they come."""
        codes = self._codes.get(field)
        if codes is None or codes.index is not index:
            codes = self._codes[field] = TailCodes(index)
        start, stop = codes.rows, min(self.rows, codes.rows + most_rows)
        if stop > start:
            matrix, present = self._matrices[field].view()[start:stop], self._present[field].view()[start:stop]
            codes.append(matrix, present)  # type: ignore[arg-type]
        return codes.rows == self.rows

    def hashes(self, entries: Sequence[Entry]) -> NDArray[np.uint64]:
        """Id hashes of entries, shape (n, 2)."""
        found: NDArray[np.uint64] = self._hashes.view()[[entry.slot - self._cut_slots for entry in entries]].reshape(-1, 2)  # type: ignore[assignment]
        return found

    def part(self) -> Part:
        """The tail as it is now; later changes do not show in it."""
        self._published = self.rows
        starts = tuple(np.cumsum([0, *(batch.num_rows for batch in self._batches)])[:-1].tolist())
        columns = RowColumns(*(self._columns[name].view() for name in ("offsets", "items", "event_time_us")))  # type: ignore[arg-type]
        codings = {name: codes.coding(self.rows) for name, codes in self._codes.items() if codes.rows == self.rows}
        vectors = {
            name: VectorColumn(grown.view(), None, self._present[name].view(), codings.get(name))  # type: ignore[arg-type]
            for name, grown in self._matrices.items()
        }
        ids = JoinedTexts(tuple(self._ids), starts)
        return Part(TAIL, tuple(self._batches), starts, columns, vectors, self._live.view(), self._newest_row, ids)  # type: ignore[arg-type]

    def _newest_row(self, item_id: str) -> int | None:
        """Row of an id's newest entry (`NO_ROW` for a delete), or None; ids are never forgotten, so None holds for every earlier part too."""
        entry = self.newest.get(item_id)
        return None if entry is None else NO_ROW if entry.row == NO_ROW else entry.row - self._cut_rows

    def trimmed(self, media_offset: int) -> Tail:
        """A tail of what lies at or above a media offset: a new one, or this one where that is all of it."""
        if not self.newest or media_offset <= self._lowest_offset:
            return self
        cut = int(np.searchsorted(self._columns["offsets"].view(), media_offset))
        out = Tail(self._index, self._attributes)
        out.newest = {item_id: entry for item_id, entry in self.newest.items() if entry.order.own_offset >= media_offset}
        out._cut_rows = self._cut_rows + cut
        out._cut_slots = min((entry.slot for entry in out.newest.values()), default=self._cut_slots + self._hashes.rows)
        out._hashes.append(self._hashes.view()[out._cut_slots - self._cut_slots :])
        out._lowest_offset = min((entry.order.own_offset for entry in out.newest.values()), default=0)
        out._batches = _cut_batches(self._batches, cut)
        out._ids = list(map(_texts, out._batches))
        for mine, theirs in ((self._columns, out._columns), (self._present, out._present)):
            for name, grown in mine.items():
                theirs[name].append(grown.view()[cut:])
        out._matrices = {name: grown.after(cut) for name, grown in self._matrices.items()}
        out._live.append(self._live.view()[cut:])
        out._codes = {name: codes.trimmed(cut) for name, codes in self._codes.items() if codes.rows >= cut}
        return out


def _ops(batch: pa.RecordBatch, where: str) -> list[str]:
    ops: list[str] = batch.column("op").to_pylist()
    if not set(ops) <= _KNOWN:
        raise CorruptError(f"{where}: ops {sorted(set(ops) - _KNOWN)} are not known", hint="upgrade headwater on this machine", code="unknown_format")
    return ops


def _texts(batch: pa.RecordBatch) -> Texts:
    return Texts(batch.column("id"))


def _grown(dtype: type[np.generic], *width: int) -> Grown:
    return Grown(width, np.dtype(dtype))


def _accepted(batch: pa.RecordBatch, span: AcceptedSpan, where: str) -> pa.RecordBatch:
    """Rows inside the span; the rule trims what lies below ``expected``. Runs (gap, lost) may begin below it and do nothing here."""
    offsets = batch.column("offset").to_numpy()
    if (offsets[1:] < offsets[:-1]).any():  # trimming relies on it
        raise CorruptError(f"{where}: rows are not in the order of their offsets", hint="only headwater may write to a vectors topic")
    inside = (offsets >= span.start_offset) & (offsets < span.next_offset)
    return batch if inside.all() else batch.filter(pa.array(inside))


def _cut_batches(batches: Sequence[pa.RecordBatch], cut: int) -> list[pa.RecordBatch]:
    out: list[pa.RecordBatch] = []
    for batch in batches:
        if cut < batch.num_rows:
            out.append(batch.slice(cut))
        cut = max(0, cut - batch.num_rows)
    return out


def newest_time_us(batch: pa.RecordBatch, column: str) -> list[int]:
    """Values of a time column that are not null, in microseconds since 1970."""
    return [time_us for time_us in batch.column(column).view(pa.int64()).to_pylist() if time_us is not None]
