"""Inverted lists in memory: what one logical index searches, in two tiers.

The big tier never changes once it is made. The small one exists twice (left and right, after Ramalhete and Correia,
https://concurrencyfreaks.blogspot.com/2013/12/left-right-concurrency-control.html): readers pin the active copy, a writer changes the other one,
makes it the active one, and brings the first up to date before its next change. A reader waits for nobody, a writer for the readers of one copy.

Both tiers are searched by one call over stacked lists, so that a query computes its table of distances once.

Takes: codes with list numbers and row numbers; lists of segments. Gives: the closest row numbers by code. Owns: faiss indexes that share a quantizer.
Never: changes lists that a reader may be in, or knows what a row number stands for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Change = Callable[["Lists"], None]


class Lists:
    """Inverted lists of one index; one writer, and no reader while it writes.

    Parameters
    ----------
    index : faiss.IndexIVF
        Empty, trained; its quantizers may be shared.
    """

    def __init__(self, index: Any) -> None:
        self.index = index
        self.sizes = np.zeros(index.nlist, np.int64)

    @property
    def rows(self) -> int:
        """Rows in all lists."""
        return int(self.index.ntotal)

    @property
    def size_bytes(self) -> int:
        """Bytes of codes and row numbers."""
        return self.rows * (int(self.index.code_size) + 8)

    def add_codes(self, list_numbers: NDArray[np.int32], codes: NDArray[np.uint8], numbers: NDArray[np.int64]) -> None:
        """Add coded rows: list numbers of shape (n,), codes (n, code_size), row numbers (n,); a list number of -1 is a row without a vector."""
        if (list_numbers < 0).any():
            kept = np.flatnonzero(list_numbers >= 0)
            list_numbers, codes, numbers = list_numbers[kept], codes[kept], numbers[kept]
        width = int(self.index.coarse_code_size())
        prefixes = list_numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
        entries = np.ascontiguousarray(np.concatenate([prefixes, codes], axis=1))
        numbers = np.ascontiguousarray(numbers)
        self.index.add_sa_codes_c(len(codes), faiss.swig_ptr(entries), faiss.swig_ptr(numbers))
        self.sizes += np.bincount(list_numbers, minlength=len(self.sizes))

    def add_index(self, index: Any, sizes: NDArray[np.int64], first_number: int) -> None:
        """Move in a segment's lists out of an index whose ids are its rows; `sizes`, shape (nlist,), are their lengths. It is empty afterwards."""
        self.index.merge_from(index, first_number)
        self.sizes += sizes


class LeftRight:
    """Two equal `Lists`, of which readers see one; writers take turns by a lock of their own.

    Parameters
    ----------
    make : callable
        Makes an empty `Lists`, or one with what it is to begin with.
    """

    def __init__(self, make: Callable[[], Lists]) -> None:
        self.sides = (make(), make())
        self._active = 0
        self._readers = [0, 0]
        self._missed: list[Change] = []
        self._turn = threading.Condition()

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
        with self._turn:
            side = self._active
            self._readers[side] += 1
            return side

    def unpin(self, side: int) -> None:
        """Give a pinned side back."""
        with self._turn:
            self._readers[side] -= 1
            if not self._readers[side]:
                self._turn.notify_all()

    def write(self, change: Change) -> None:
        """Apply a change; readers that pin after this has returned see it."""
        idle = 1 - self._active
        with self._turn:
            while self._readers[idle]:
                self._turn.wait()
        while self._missed:
            self._missed.pop(0)(self.sides[idle])
        change(self.sides[idle])
        self._missed = [change]
        with self._turn:
            self._active = idle


class Allowed:
    """Row numbers that a search may find, as a bitmap.

    Parameters
    ----------
    bits : NDArray[np.uint8]
        shape (b,); bit i & 7 of byte i >> 3 says whether row number i is allowed. Not changed as long as this lives.
    """

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self.bits = bits
        self._selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        self._parameters: dict[int, Any] = {}

    def count(self) -> int:
        """How many numbers are allowed."""
        return int(np.bitwise_count(self.bits).sum())

    def numbers(self) -> NDArray[np.int64]:
        """The allowed numbers, shape (n,), ascending."""
        found: NDArray[np.int64] = np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))
        return found

    def parameters(self, nprobe: int) -> Any:
        """What faiss is told: kept, since making it costs as much as a tenth of a search."""
        found = self._parameters.get(nprobe)
        if found is None:
            found = self._parameters[nprobe] = faiss.SearchParametersIVF(nprobe=nprobe, sel=self._selector)  # type: ignore[call-arg]
        return found


class Tiers:
    """A big and a small tier that are searched together; what is in `big` never changes.

    Parameters
    ----------
    big : Lists
        Most rows.
    small : LeftRight
        What came since, and what is not sealed yet.
    new_index : callable
        Makes an empty faiss index that shares the quantizers.
    """

    def __init__(self, big: Lists, small: LeftRight, new_index: Callable[[], Any]) -> None:
        self.big, self.small = big, small
        self._stacks = tuple(_Stack(new_index(), big, side) for side in small.sides) if big.rows else None

    def closest(
        self, queries: NDArray[np.float32], limit: int, lists: NDArray[np.int64], distances: NDArray[np.float32], allowed: Allowed
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row numbers whose codes are closest, and how many codes lay in the lists of each query.

        Parameters
        ----------
        queries : NDArray[np.float32]
            shape (n, d), C order.
        limit : int
            Most rows for each query.
        lists, distances : NDArray
            shape (n, nprobe): the lists to look into, -1 for none, and their centroids' distances.
        allowed : Allowed
            Rows that may be found.

        Returns
        -------
        tuple of NDArray[np.int64] and NDArray[np.int64]
            shape (n, limit), by code distance, -1 where fewer were found; shape (n,).
        """
        numbers, scores = np.empty((len(queries), limit), np.int64), np.empty((len(queries), limit), np.float32)
        side = self.small.pin()
        try:
            small = self.small.sides[side]
            index = small.index if self._stacks is None else self.big.index if not small.rows else self._stacks[side].index
            index.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(queries),
                limit,
                faiss.swig_ptr(lists),
                faiss.swig_ptr(distances),
                faiss.swig_ptr(scores),
                faiss.swig_ptr(numbers),
                False,
                allowed.parameters(lists.shape[1]),
            )
            compared: NDArray[np.int64] = self.big.sizes[lists].sum(axis=1) + small.sizes[lists].sum(axis=1)
        finally:
            self.small.unpin(side)
        return numbers, compared


class _Stack:
    """An index whose lists are those of two others, one behind the other; holds what faiss knows by address only."""

    def __init__(self, index: Any, *stacked: Lists) -> None:
        self.index, self._stacked = index, stacked
        pointers = faiss.InvertedListsPtrVector()  # type: ignore[attr-defined]
        for each in stacked:
            pointers.push_back(each.index.invlists)
        self._lists = faiss.HStackInvertedLists(len(stacked), pointers.data())
        self.index.replace_invlists(self._lists, False)
