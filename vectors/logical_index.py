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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from vectors.flat import one_thread
from vectors.quantizer import EncodedRows, Quantizer
from vectors.rebuild_policy import rebuild_due
from vectors.row_numbers import NumberRange, RowNumbers
from vectors.tiers import LeftRight, Lists, Tiers


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


class Lease:
    """Held by everything that may still name these rows."""

    __slots__ = ("__weakref__", "numbers")

    def __init__(self, numbers: NumberRange) -> None:
        self.numbers = numbers


@dataclass(slots=True, eq=False)
class _Segment(_Piece):
    sizes: NDArray[np.int64] = field(kw_only=True)
    open_lists: Callable[[], Any] = field(kw_only=True)
    opened: list[Any] = field(kw_only=True)

    def add_to(self, lists: Lists) -> None:
        lists.add_index(self.opened.pop() if self.opened else self.open_lists(), self.sizes, self.numbers.start)


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
    """Room for the next rows of a tail, which are findable as soon as `append` returns; one writer.

    `refine`, shape (capacity, refine_bytes), holds the refine codes of the first `rows` rows; they never change.
    """

    def __init__(self, index: LogicalIndex, piece: _Coded, lease: Lease, refine: NDArray[np.uint8]) -> None:
        self._index, self._piece = index, piece
        self.lease, self.refine = lease, refine

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._piece.rows

    @property
    def room(self) -> int:
        """Rows that still fit."""
        return len(self.refine) - self._piece.rows

    def append(self, encoded: EncodedRows) -> None:
        """Add at most `room` rows."""
        start = self._piece.rows
        self.refine[start : start + len(encoded.refine)] = encoded.refine
        self._index.grow(self._piece, encoded)


class LogicalIndex:
    """One field's rows of one generation; thread-safe.

    Parameters
    ----------
    quantizer : Quantizer
        Of the generation.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.numbers = RowNumbers()
        self._writing = threading.Lock()  # held by whoever changes `tiers`, or what lies in its small tier
        self._pieces: list[_Piece] = []
        self._let_go: deque[_Piece] = deque()  # by finalizers, which may run anywhere
        self.tiers = self._make(Lists(quantizer.new_index()), [])

    def _make(self, big: Lists, recent: Sequence[_Piece]) -> Tiers:
        def make() -> Lists:
            lists = Lists(self.quantizer.new_index())
            for piece in recent:
                piece.add_to(lists)
            return lists

        return Tiers(big, LeftRight(make), self.quantizer.new_index)

    # ---- what comes in --------------------------------------------------------------------------------------------
    def add_segment(self, rows: int, sizes: NDArray[np.int64], open_lists: Callable[[], Any]) -> Lease:
        """Take in a segment's lists; findable when this returns, by whoever allows their numbers.

        Parameters
        ----------
        rows : int
            Rows of the segment, with or without a vector: row r has the number ``lease.numbers.start + r``.
        sizes : NDArray[np.int64]
            shape (nlist,), the lengths of its lists.
        open_lists : callable
            Gives an index with a fresh copy of the lists, whose ids are rows of the segment; called now, and again when tiers are made anew. What it
            raises now comes out here, and nothing was changed.
        """
        opened = [open_lists()]
        return self._add(_Segment(self.numbers.allocate(rows), int(sizes.sum()), True, sizes=sizes, open_lists=open_lists, opened=opened))

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
        return self._add(
            _Coded(numbers, len(encoded.codes), True, list_numbers=encoded.list_numbers.astype(np.int32), codes=encoded.codes, places=places)
        )

    def open_chunk(self, capacity: int) -> Chunk:
        """Room for the rows of a tail; its lease may go before or after its last row came."""
        codes = np.empty((capacity, self.quantizer.code_bytes), np.uint8)
        piece = _Coded(self.numbers.allocate(capacity), 0, False, list_numbers=np.empty(capacity, np.int32), codes=codes)
        return Chunk(self, piece, self._add(piece), np.empty((capacity, self.quantizer.refine_bytes), np.uint8))

    def grow(self, piece: _Coded, encoded: EncodedRows) -> None:
        """Add rows behind those that a chunk has."""
        start, stop = piece.rows, piece.rows + len(encoded.codes)
        with self._writing:
            piece.list_numbers[start:stop], piece.codes[start:stop] = encoded.list_numbers, encoded.codes
            piece.rows = stop
            self.tiers.small.write(lambda lists: piece.add_some(lists, start, stop))

    def _add(self, piece: _Piece) -> Lease:
        lease = Lease(piece.numbers)
        with self._writing:
            if piece.rows:
                self.tiers.small.write(piece.add_to)
            self._pieces.append(piece)
        weakref.finalize(lease, self._let_go.append, piece).atexit = False
        return lease

    # ---- what is searched -----------------------------------------------------------------------------------------
    def assign(self, queries: NDArray[np.float32], nprobe: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The closest `nprobe` lists of each query and their centroids' distances, both of shape (n, nprobe); queries have shape (n, d), C order."""
        one_thread()
        shape = (len(queries), min(nprobe, self.quantizer.nlist))
        lists, distances = np.empty(shape, np.int64), np.empty(shape, np.float32)
        coarse: Any = self.quantizer.coarse  # its stubs lack what takes addresses
        coarse.search_c(len(queries), faiss.swig_ptr(queries), shape[1], faiss.swig_ptr(distances), faiss.swig_ptr(lists))
        return lists, distances

    @property
    def size_bytes(self) -> dict[str, int]:
        """Bytes in memory by tier."""
        tiers = self.tiers
        return {"big": tiers.big.size_bytes, "small": tiers.small.size_bytes}

    # ---- the rebuild ----------------------------------------------------------------------------------------------
    def rebuild_due(self) -> bool:
        """Whether enough has come or gone (vectors/rebuild_policy.py)."""
        with self._writing:
            self._bury()
            recent = sum(piece.rows for piece in self._pieces if piece.sealed and not piece.in_big and not piece.dead)
            return rebuild_due(self.tiers.big.rows, recent, sum(piece.rows for piece in self._pieces if piece.dead))

    def rebuild(self) -> None:
        """Make the big tier anew of all sealed rows that a view may name, and leave the rest to a new small one; searches go on meanwhile."""
        with self._writing:
            self._bury()
            moved = [piece for piece in self._pieces if piece.sealed and not piece.dead]
        big = Lists(self.quantizer.new_index())
        for piece in moved:
            piece.add_to(big)
        with self._writing:
            self._bury()
            chosen = set(moved)
            rest = [piece for piece in self._pieces if not piece.dead and piece not in chosen]
            self.tiers = self._make(big, rest)
            self._pieces = moved + rest
            for piece in moved:
                piece.in_big = True

    def _bury(self) -> None:
        while self._let_go:
            self._let_go.popleft().dead = True
