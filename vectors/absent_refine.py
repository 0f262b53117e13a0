"""Refine codes that are not here yet: whom to ask for which (docs/adr/0014-refine-codes-come-later.md).

A segment can be searched as soon as its lists are here. Its refine codes have their addresses from then on; before they are looked at, whoever
searches asks here, and waits.

Takes: leases whose refine codes come later. Gives: what is missing of some row numbers. Owns: the list of such leases.
Never: keeps one alive, or knows where the codes come from.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vectors.row_numbers import NumberRange


class RefineSource(Protocol):
    """Refine codes of one segment, on their way."""

    @property
    def is_whole(self) -> bool:
        """Whether all are here."""
        ...

    def has(self, rows: NDArray[np.int64]) -> bool:
        """Whether those of rows of the segment, shape (n,), are here."""
        ...

    def ask(self, rows: NDArray[np.int64]) -> Callable[[], None]:
        """Begin to bring those of rows, shape (n,); what is given back waits for them, and raises HeadwaterError where they cannot be had."""
        ...

    def bring_all(self) -> None:
        """Bring all, in this thread; raises as `ask`."""
        ...


class Lease:
    """Held by everything that may still name these rows; `mapped` says whether their refine codes take no memory of their own."""

    __slots__ = ("__weakref__", "mapped", "numbers", "source")

    def __init__(self, numbers: NumberRange, mapped: bool, source: RefineSource | None = None) -> None:
        self.numbers, self.mapped, self.source = numbers, mapped, source


class AbsentRefine:
    """Leases whose refine codes may be missing; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: tuple[weakref.ref[Lease], ...] = ()

    def add(self, lease: Lease) -> None:
        """Look at a lease from now on, until all of its refine codes are here."""
        with self._lock:
            self._leases += (weakref.ref(lease),)

    def __bool__(self) -> bool:
        return bool(self._leases)

    def missing(self, numbers: NDArray[np.int64]) -> list[tuple[RefineSource, NDArray[np.int64]]]:
        """Sources that lack refine codes of some row numbers, of any shape (those below 0 are none), each with its segment's rows, ascending."""
        wanted = np.unique(numbers)
        found, over = [], False
        for reference in self._leases:
            lease = reference()
            source = None if lease is None else lease.source
            if lease is None or source is None or source.is_whole:
                over = True
                continue
            first, end = np.searchsorted(wanted, (lease.numbers.start, lease.numbers.stop))
            rows = wanted[first:end] - lease.numbers.start
            if len(rows) and not source.has(rows):
                found.append((source, rows))
        if over:
            self._forget()
        return found

    def bring(self, numbers: NDArray[np.int64]) -> None:
        """Wait until the refine codes of row numbers, shape (n,), are here; raises HeadwaterError where they cannot be had."""
        if self._leases:
            ask(self.missing(numbers))

    def _forget(self) -> None:
        """Let go of leases of which nothing is missing any more."""
        with self._lock:
            kept = []
            for reference in self._leases:
                lease = reference()
                if lease is not None and lease.source is not None:
                    if lease.source.is_whole:
                        lease.source = None
                    else:
                        kept.append(reference)
            self._leases = tuple(kept)


def ask(missing: list[tuple[RefineSource, NDArray[np.int64]]]) -> None:
    """Ask all sources at once, each for rows of its segment, shape (n,), and wait for all."""
    waits = [source.ask(rows) for source, rows in missing]
    for wait in waits:
        wait()
