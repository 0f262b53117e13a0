"""The logical index: all coded rows of one field and generation on this node, behind one search (docs/adr/0009-row-numbers-and-tiers.md).

Rows are named by row numbers. Who puts rows in gets a `Lease`; as long as a view holds it, the rows stay findable, and a search finds those that its
bitmap allows. When the last lease of a piece goes, its rows are dead, and the next rebuild leaves them out.

Takes: segments' lists, coded rows, bitmaps. Gives: the closest row numbers. Owns: which rows lie in which tier.
Never: removes a row that a pinned state may be searched for, or knows segments, ids or filters.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from vectors import coarse_graph
from vectors.absent_refine import AbsentRefine, Lease, RefineSource
from vectors.inverted_lists import RaisedLists, StoredLists
from vectors.quantizer import EncodedRows, Quantizer
from vectors.rebuild_policy import fits_whole, rebuild_due
from vectors.refine_arena import RefineArena
from vectors.row_numbers import NumberRange, RowNumbers
from vectors.tiers import NUMBER_BYTES, LeftRight, Lists, Searching, Tiers


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows that came together, and that can be added to lists any number of times; those of an open tail are not `sealed`."""

    numbers: NumberRange
    rows: int
    sealed: bool
    in_big: bool = field(default=False, init=False)
    dead: bool = field(default=False, init=False)

    @abstractmethod
    def add_to(self, lists: Lists) -> None:
        """Add all rows."""


@dataclass(slots=True, eq=False)
class _Segment(_Piece):
    """A segment; `attached` are its lists where they are searched as they are."""

    stored: StoredLists = field(kw_only=True)
    attached: RaisedLists | None = field(default=None, init=False)

    def add_to(self, lists: Lists) -> None:
        lists.add_stored(self.stored, self.numbers.start)


@dataclass(slots=True, eq=False)
class _Coded(_Piece):
    """Rows with their codes in memory; one that grows writes behind `rows`. `places`, where not None, are the numbers' distances from the first."""

    list_numbers: NDArray[np.int32] = field(kw_only=True)
    codes: NDArray[np.uint8] = field(kw_only=True)
    places: NDArray[np.int64] | None = field(default=None, kw_only=True)

    def add_to(self, lists: Lists) -> None:
        self.add_some(lists, 0, self.rows)

    def add_some(self, lists: Lists, start: int, stop: int) -> None:
        if stop > start:
            places = np.arange(start, stop, dtype=np.int64) if self.places is None else self.places[start:stop]
            lists.add_codes(self.list_numbers[start:stop], self.codes[start:stop], places + self.numbers.start)


class Chunk:
    """Room for the next rows of a tail, which are findable as soon as `append` returns; one writer."""

    def __init__(self, index: LogicalIndex, piece: _Coded, lease: Lease, refine: NDArray[np.uint8]) -> None:
        self._index, self._piece, self._refine = index, piece, refine
        self.lease = lease

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._piece.rows

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return len(self._piece.codes) - self._piece.rows

    def append(self, encoded: EncodedRows) -> None:
        """Add at most `room` rows."""
        start = self._piece.rows
        self._refine[start : start + len(encoded.refine)] = encoded.refine
        self._index.grow(self._piece, encoded)


class LogicalIndex:
    """One field's rows of one generation; thread-safe.

    Parameters
    ----------
    quantizer : Quantizer
        Of the generation.

    Raises
    ------
    UnavailableError
        The system gives no addresses for refine codes.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self._arena = RefineArena(quantizer.refine_bytes)
        self._absent = AbsentRefine()
        self._searching = Searching(quantizer.new_index, _over(self._arena, quantizer.new_refine_index()), None, self._absent)
        self.numbers = RowNumbers(self._arena.alignment, self._arena.release)
        self._writing = threading.Lock()  # held by whoever changes `tiers`, or what lies in its small tier
        self._pieces: list[_Piece] = []
        self._let_go: deque[_Piece] = deque()  # by finalizers, which may run anywhere
        self._removed_rows = 0
        self._row_bytes = quantizer.code_bytes + NUMBER_BYTES
        self.tiers = Tiers(self._lists(()), LeftRight(self._lists(()), self._lists(())), self._searching)

    def _lists(self, pieces: Iterable[_Piece]) -> Lists:
        lists = Lists(self.quantizer.new_index())
        for piece in pieces:
            piece.add_to(lists)
        return lists

    # ---- what comes in --------------------------------------------------------------------------------------------
    def add_segment(
        self,
        rows: int,
        stored: StoredLists,
        refine: NDArray[np.uint8],
        places: NDArray[np.int64] | None = None,
        *,
        is_starting: bool = False,
        source: RefineSource | None = None,
    ) -> Lease:
        """Take in a segment's lists; findable when this returns, by whoever allows their numbers.

        Parameters
        ----------
        rows : int
            Rows of the segment, with or without a vector: row r has the number ``lease.numbers.start + r``.
        stored : StoredLists
            Its lists, whose ids are rows of the segment; they are copied now, and again when tiers are made anew.
        refine : NDArray[np.uint8]
            shape (m, refine_bytes): refine codes of the rows that have a vector. Those of a mapped file are not copied where they begin at a page.
        places : NDArray[np.int64], optional
            shape (m,), the row of each refine code; code i is that of row i where it is None.
        is_starting : bool
            Others come behind it: its lists are attached, which is quickest, and put into a tier by the next `rebuild`.
        source : RefineSource, optional
            Brings refine codes that are not here yet; row i of the segment has code i, and those that come appear in `refine`.

        Raises
        ------
        HeadwaterError
            Refine codes that are not here must be, since they cannot be mapped, and cannot be had.
        """
        numbers = self.numbers.allocate(rows)
        mapped = places is None and self._arena.map(numbers, refine)
        if not mapped:
            if source is not None:  # what is copied must be here
                source.bring_all()
            self._arena.place(None if places is None else places + numbers.start, numbers, refine)
        piece = _Segment(numbers, stored.rows, True, stored=stored)
        if is_starting and piece.rows:
            piece.attached = stored.raised(numbers.start)
        lease = self._add(piece, mapped)
        if mapped and source is not None:
            lease.source = source
            self._absent.add(lease)
        return lease

    def add_rows(self, rows: int, encoded: EncodedRows, places: NDArray[np.int64] | None = None) -> Lease:
        """Take in rows that were coded here because their segment has no lists of this generation.

        Parameters
        ----------
        rows : int
            Rows of the segment, with or without a vector.
        encoded : EncodedRows
            The m vectors.
        places : NDArray[np.int64], optional
            shape (m,), the row of each vector; vector i is row i where it is None.
        """
        numbers = self.numbers.allocate(rows)
        self._arena.place(None if places is None else places + numbers.start, numbers, encoded.refine)
        lists = encoded.list_numbers.astype(np.int32)
        return self._add(_Coded(numbers, len(lists), True, list_numbers=lists, codes=encoded.codes, places=places), False)

    def open_chunk(self, capacity: int) -> Chunk:
        """Room for the rows of a tail; its lease may go before or after its last row came."""
        numbers = self.numbers.allocate(capacity)
        codes = np.empty((capacity, self.quantizer.code_bytes), np.uint8)
        piece = _Coded(numbers, 0, False, list_numbers=np.empty(capacity, np.int32), codes=codes)
        return Chunk(self, piece, self._add(piece, False), self._arena.reserve(numbers))

    def grow(self, piece: _Coded, encoded: EncodedRows) -> None:
        """Add rows behind those that a chunk has."""
        start, stop = piece.rows, piece.rows + len(encoded.codes)
        with self._writing:
            piece.list_numbers[start:stop], piece.codes[start:stop] = encoded.list_numbers, encoded.codes
            piece.rows = stop
            self.tiers.small.write(lambda lists: piece.add_some(lists, start, stop))

    def _add(self, piece: _Piece, mapped: bool) -> Lease:
        lease = Lease(piece.numbers, mapped)
        with self._writing:
            if isinstance(piece, _Segment) and piece.attached is not None:
                self.tiers = Tiers(self.tiers.big, self.tiers.small, self._searching, (*self.tiers.attached, piece.attached))
            elif piece.rows:
                self.tiers.small.write(piece.add_to)
            self._pieces.append(piece)
        weakref.finalize(lease, self._let_go.append, piece).atexit = False
        return lease

    # ---- what is looked at ----------------------------------------------------------------------------------------
    def refine_codes(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Refine codes, shape (n, refine_bytes), of row numbers, shape (n,), whose leases the caller holds; HeadwaterError where there are none."""
        self._absent.bring(numbers)
        found: NDArray[np.uint8] = self._arena.codes[numbers]
        return found

    def vector(self, number: int) -> NDArray[np.float32]:
        """The vector, shape (d,), that the refine code of a row number says, whose lease the caller holds; HeadwaterError where there is none."""
        self._absent.bring(np.array([number]))
        found: NDArray[np.float32] = self.quantizer.decode(self._arena.codes[number : number + 1])[0]
        return found

    @property
    def is_filling(self) -> bool:
        """Whether refine codes of some rows may be missing, so that searches wait for those of their candidates."""
        return bool(self._absent)

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes in memory by tier."""
        tiers = self.tiers
        attached = sum(lists.rows for lists in tiers.attached) * self._row_bytes
        return {"big": tiers.big.size_bytes, "small": tiers.small.size_bytes + attached}

    # ---- made faster, and made anew ----------------------------------------------------------------------------------------------
    @property
    def is_attached(self) -> bool:
        """Whether segments wait for a rebuild that puts them into a tier."""
        return bool(self.tiers.attached)

    @property
    def graph_due(self) -> bool:
        """Whether finding lists would pay a graph that is not there."""
        return self._searching.graph is None and coarse_graph.pays(self.quantizer)

    def build_graph(self) -> None:
        """Find lists by a graph from now on; searches go on meanwhile."""
        graph = coarse_graph.build(self.quantizer)
        with self._writing:
            self._searching = replace(self._searching, graph=graph)
            self.tiers = Tiers(self.tiers.big, self.tiers.small, self._searching, self.tiers.attached)

    def rebuild_due(self, gone_rows: int = 0) -> bool:
        """Whether enough has come or gone (vectors/rebuild_policy.py); `gone_rows` are those of `rebuild` that it would take out."""
        with self._writing:
            self._bury()
            recent = sum(piece.rows for piece in self._pieces if piece.sealed and not piece.in_big and not piece.dead)
            dead = sum(piece.rows for piece in self._pieces if piece.dead) + max(0, gone_rows - self._removed_rows)
            return self.is_attached or rebuild_due(self.tiers.big.rows, recent, dead, self._row_bytes)

    def rebuild(self, gone: NDArray[np.uint8] | None = None) -> None:
        """Make tiers anew, without the dead rows; searches go on meanwhile, and what comes in waits only for the rows of open tails.

        Parameters
        ----------
        gone : NDArray[np.uint8], optional
            shape (b,), a bitmap of row numbers of segments that no view will show again which is published from now on.
        """
        with self._writing:
            self._bury()
            moved = [piece for piece in self._pieces if piece.sealed and not piece.dead]
        whole = fits_whole(sum(piece.rows for piece in moved), self._row_bytes)
        big = self._lists(() if whole else moved)
        sides = [self._lists(moved if whole else ()) for _ in range(2)]
        removed = 0 if gone is None else max(lists.remove(gone) for lists in (big, *sides))
        with self._writing:
            self._bury()
            chosen = set(moved)
            rest = [piece for piece in self._pieces if not piece.dead and piece not in chosen]
            attached = []
            for piece in rest:
                if isinstance(piece, _Segment) and piece.attached is not None:
                    attached.append(piece.attached)
                    continue
                for side in sides:
                    piece.add_to(side)
            self.tiers = Tiers(big, LeftRight(*sides), self._searching, tuple(attached))
            self._pieces, self._removed_rows = moved + rest, removed
            for piece in moved:
                piece.in_big = not whole
                if isinstance(piece, _Segment):
                    piece.attached = None

    def _bury(self) -> None:
        while self._let_go:
            self._let_go.popleft().dead = True


def _over(arena: RefineArena, index: Any) -> Any:
    """Let an index find its codes in the arena; it holds nothing of its own."""
    vector: Any = faiss.MaybeOwnedVectorUInt8  # its stubs lack what is needed
    nobody = vector()
    index.codes = vector.create_view(faiss.swig_ptr(arena.codes), arena.codes.size, nobody.owner)
    return index
