"""Inverted lists in memory: what one logical index searches, in two tiers.

The big tier, where there is one, never changes. The small one exists twice (left and right, after Ramalhete and Correia,
https://concurrencyfreaks.blogspot.com/2013/12/left-right-concurrency-control.html): readers pin the active copy, a writer changes the other one,
makes it the active one, and brings the first up to date before its next change. A reader waits for nobody, a writer for the readers of one copy.
While an index is loaded for the first time, segments' lists are not copied but attached, and put into a tier together when everything is there.

All of them are searched by one call over stacked lists, so that a query computes its table of distances once; the same call refines what it finds.

Takes: codes with list numbers and row numbers; lists of segments. Gives: the closest row numbers. Owns: faiss indexes that share a quantizer.
Never: changes lists that a reader may be in, or knows what a row number stands for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from faiss import swig_ptr
from numpy.typing import NDArray

from vectors import absent_refine, coarse_graph
from vectors.absent_refine import AbsentRefine, RefineSource
from vectors.flat import one_thread
from vectors.inverted_lists import RaisedLists, StoredLists

NUMBER_BYTES = 8
"""Of a row number, beside each code."""
Change = Callable[["Lists"], None]
Closest = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Row numbers and distances, best first."""
Missing = tuple[RefineSource, NDArray[np.int64]]
"""Who brings refine codes, and the rows of its segment whose are missing."""


class Lists:
    """Inverted lists of one index; one writer, and no reader while it writes.

    Parameters
    ----------
    index : faiss.IndexIVF
        Empty, trained; its quantizers may be shared.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self.rows = int(index.ntotal)
        """Rows in all lists; a number of Python's own, since every search asks for it."""

    @property
    def size_bytes(self) -> int:
        """Bytes of codes and row numbers."""
        return self.rows * (int(self.index.code_size) + NUMBER_BYTES)

    def add_codes(self, list_numbers: NDArray[np.int32], codes: NDArray[np.uint8], numbers: NDArray[np.int64]) -> None:
        """Add coded rows: list numbers of shape (n,), codes (n, code_size), row numbers (n,); a list number of -1 is a row without a vector."""
        if (list_numbers < 0).any():
            kept = np.flatnonzero(list_numbers >= 0)
            list_numbers, codes, numbers = list_numbers[kept], codes[kept], numbers[kept]
        width = int(self.index.coarse_code_size())
        prefixes = list_numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        entries = np.ascontiguousarray(np.concatenate([prefixes, codes], axis=1))
        numbers = np.ascontiguousarray(numbers)
        self.index.add_sa_codes_c(len(codes), swig_ptr(entries), swig_ptr(numbers))
        self.rows = int(self.index.ntotal)

    def add_stored(self, stored: StoredLists, first_number: int) -> None:
        """Copy in a segment's lists, whose ids are its rows."""
        stored.copy_into(self.index.invlists, first_number)
        self.index.ntotal += stored.rows
        self.rows = int(self.index.ntotal)

    def remove(self, numbers: NDArray[np.uint8]) -> int:
        """Take out rows whose numbers are in a bitmap, shape (b,); how many there were."""
        removed = int(self.index.remove_ids(faiss.IDSelectorBitmap(len(numbers), swig_ptr(numbers))))
        self.rows = int(self.index.ntotal)
        return removed


class LeftRight:
    """Two equal `Lists`, of which readers see one; writers take turns by a lock of their own.

    Parameters
    ----------
    left, right : Lists
        With the same rows.
    """

    def __init__(self, left: Lists, right: Lists) -> None:
        self.sides = (left, right)
        self._active = 0
        self._readers = [0, 0]
        self._missed: Change | None = None
        self._counting = threading.Lock()  # of its own for readers: a condition is entered by functions of Python's
        self._turn = threading.Condition(self._counting)

    @property
    def rows(self) -> int:
        """Rows that a reader finds now."""
        return self.sides[self._active].rows

    @property
    def size_bytes(self) -> int:
        """Bytes of both copies."""
        return sum(side.size_bytes for side in self.sides)

    def pin(self) -> int:
        """Take the active side for reading; `unpin` must follow."""
        with self._counting:
            side = self._active
            self._readers[side] += 1
            return side

    def unpin(self, side: int) -> None:
        """Give a pinned side back."""
        with self._counting:
            self._readers[side] -= 1
            if not self._readers[side] and side != self._active:  # only then somebody may wait
                self._turn.notify_all()

    def write(self, change: Change) -> None:
        """Apply a change; readers that pin after this has returned see it."""
        idle = self._catch_up()
        change(self.sides[idle])
        self._missed = change
        with self._turn:
            self._active = idle

    def _catch_up(self) -> int:
        idle = 1 - self._active
        with self._turn:
            while self._readers[idle]:
                self._turn.wait()
        if self._missed is not None:
            self._missed(self.sides[idle])
        return idle


class Allowed:
    """Row numbers that a search may find, as a bitmap.

    Parameters
    ----------
    bits : NDArray[np.uint8]
        shape (b,); bit i & 7 of byte i >> 3 says whether row number i is allowed. Not changed as long as this lives.
    """

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self.bits = bits
        self._selector = faiss.IDSelectorBitmap(len(bits), swig_ptr(bits))
        self._parameters: dict[tuple[int, float, bool], Any] = {}

    def count(self) -> int:
        """How many numbers are allowed."""
        return int(np.bitwise_count(self.bits).sum())

    def numbers(self) -> NDArray[np.int64]:
        """The allowed numbers, shape (n,), ascending."""
        found: NDArray[np.int64] = np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))
        return found

    def parameters(self, nprobe: int, factor: float, by_graph: bool) -> Any:
        """What faiss is told: kept, since making it costs as much as a tenth of a search."""
        found = self._parameters.get((nprobe, factor, by_graph))
        if found is None:
            walk = coarse_graph.parameters(nprobe) if by_graph else None
            lists = faiss.SearchParametersIVF(nprobe=nprobe, sel=self._selector, quantizer_params=walk)  # type: ignore[call-arg]
            found = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=lists)  # type: ignore[call-arg]
            self._parameters[nprobe, factor, by_graph] = found
        return found


@dataclass(frozen=True, slots=True)
class Searching:
    """With what tiers are searched.

    `new_index` makes an empty faiss.IndexIVF that shares the quantizers, `refine_index` has the refine codes by row number, `graph` finds lists; None
    where all centroids are compared. `absent` says which refine codes are not here yet.
    """

    new_index: Callable[[], Any]
    refine_index: Any
    graph: Any
    absent: AbsentRefine


class Tiers:
    """A big and a small tier, and attached segments, that are searched together; what is in `big` and `attached` never changes.

    Parameters
    ----------
    big : Lists
        Most rows; none where all fit into the small tier.
    small : LeftRight
        The others: what came since, and what is not sealed yet.
    searching : Searching
        With what they are searched.
    attached : tuple of RaisedLists
        Segments that lie in neither yet.
    """

    def __init__(self, big: Lists, small: LeftRight, searching: Searching, attached: tuple[RaisedLists, ...] = ()) -> None:
        self.big, self.small, self.attached, self._absent = big, small, attached, searching.absent
        self._fixed_rows = big.rows + sum(lists.rows for lists in attached)
        fixed = [big.index.invlists] if big.rows else []
        fixed += [lists.lists for lists in attached]
        sides = [side.index.invlists for side in small.sides]
        self._alone = _Searcher(searching, fixed or sides[:1])
        self._sides = [_Searcher(searching, [*fixed, side]) for side in sides]

    @property
    def rows(self) -> int:
        """Rows in all lists, dead ones included."""
        return self._fixed_rows + self.small.rows

    def closest(self, queries: NDArray[np.float32], limit: int, candidates: int, nprobe: int, allowed: Allowed) -> Closest:
        """The closest rows of each query: candidates by code, of which the best by refine code.

        Parameters
        ----------
        queries : NDArray[np.float32]
            shape (n, d), C order.
        limit : int
            Most rows for each query.
        candidates : int
            Rows that are found by code, at least `limit`.
        nprobe : int
            Lists to look into.
        allowed : Allowed
            Rows that may be found.

        Returns
        -------
        tuple of NDArray[np.int64] and NDArray[np.float32]
            Row numbers, -1 where fewer were found, and faiss's distances (inner products, or squares of L2), both of shape (n, limit), best first.

        Raises
        ------
        HeadwaterError
            Refine codes of candidates are not here, and cannot be had.
        """
        one_thread()
        while True:
            missing, found = self._closest(queries, limit, candidates, nprobe, allowed)
            if not missing:
                return found
            absent_refine.ask(missing)  # with nothing pinned: writers would wait for it

    def _closest(self, queries: NDArray[np.float32], limit: int, candidates: int, nprobe: int, allowed: Allowed) -> tuple[list[Missing], Closest]:
        """What is found; nothing where refine codes of some candidates are missing."""
        numbers, distances = np.empty((len(queries), limit), np.int64), np.empty((len(queries), limit), np.float32)
        side = self.small.pin()
        try:
            searcher = self._sides[side] if self.small.sides[side].rows or not self._fixed_rows else self._alone
            index, by_graph = searcher.index_for(nprobe)
            parameters = allowed.parameters(nprobe, candidates / limit, by_graph)
            if self._absent and (missing := self._absent.missing(_candidates(index, queries, limit, parameters))):
                return missing, (numbers, distances)
            index.search_c(len(queries), swig_ptr(queries), limit, swig_ptr(distances), swig_ptr(numbers), parameters)
        finally:
            self.small.unpin(side)
        return [], (numbers, distances)


def _candidates(index: Any, queries: NDArray[np.float32], limit: int, parameters: Any) -> NDArray[np.int64]:
    """The row numbers, shape (n, c), whose refine codes a search of an `IndexRefine` will look at; c is counted as faiss counts it."""
    count = int(np.float32(limit) * np.float32(parameters.k_factor))
    numbers, distances = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    base = index.base_index
    base.search_c(len(queries), swig_ptr(queries), count, swig_ptr(distances), swig_ptr(numbers), parameters.base_index_params)
    return numbers


class _Searcher:
    """Indexes over inverted lists, one behind the other, that find lists by all centroids or a graph; they are made when they are first needed.

    Parameters
    ----------
    searching : Searching
        With what they are searched.
    stacked : sequence of faiss.InvertedLists
        At least one; the caller keeps them alive.
    """

    def __init__(self, searching: Searching, stacked: Sequence[Any]) -> None:
        self._searching, self._stacked = searching, stacked
        self._making = threading.Lock()
        self._lists: Any = None
        self._made: dict[bool, Any] = {}

    def index_for(self, nprobe: int) -> tuple[Any, bool]:
        """What to search so many lists with, and whether it finds them by the graph."""
        by_graph = self._searching.graph is not None and coarse_graph.is_used(int(self._stacked[0].nlist), nprobe)
        found = self._made.get(by_graph)
        if found is None:
            with self._making:
                found = self._made.get(by_graph) or self._made.setdefault(by_graph, self._over(self._searching.graph if by_graph else None))
        return found, by_graph

    def _over(self, graph: Any) -> Any:
        index = self._searching.new_index()
        if self._lists is None:
            self._lists = self._stacked[0] if len(self._stacked) == 1 else _stack(self._stacked)
        index.replace_invlists(self._lists, False)
        if graph is not None:
            index.quantizer = graph
        refine_index = self._searching.refine_index
        refine_index.ntotal = index.ntotal  # must be equal now
        made = faiss.IndexRefine(index, refine_index)
        made.ntotal = refine_index.codes.size() // refine_index.code_size  # what row numbers lie below
        return made


def _stack(stacked: Sequence[Any]) -> Any:
    pointers = faiss.InvertedListsPtrVector()  # type: ignore[attr-defined]
    for each in stacked:
        pointers.push_back(each)
    return faiss.HStackInvertedLists(len(stacked), pointers.data())
