"""Stored rows against the ledger's `row` runs, judged (pure): each item that is a row is stored once, and nothing else is.

Takes: runs, and the (offset, item)s of stored rows, both of one window of media offsets. Gives: findings. Owns: how they are matched.
Never: loops over rows that are right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.verify.findings import Finding
from indexer.verify.ledger_check import ROW, Runs

_ITEMS = 2**32
"""More than a record can have; items are 32-bit."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a window: media offset and item, and the number of the segment they lie in; each of shape (n,)."""

    offset: NDArray[np.int64]
    item: NDArray[np.int32]
    segment: NDArray[np.uint32]

    def sorted(self) -> StoredRows:
        """The same by offset, item and segment."""
        order = np.lexsort((self.segment, self.item, self.offset))
        return StoredRows(self.offset[order], self.item[order], self.segment[order])


def match_rows(runs: Runs, stored: StoredRows, keys: Sequence[str], unknown: Sequence[tuple[int, int]] = ()) -> Iterator[Finding]:
    """Compare stored rows with the runs that say ``row``.

    Parameters
    ----------
    runs : Runs
        All runs of the window, of whatever verdict.
    stored : StoredRows
        All rows of the window, in any order.
    keys : sequence of str
        Key of each segment's rows, by its number.
    unknown : sequence of (int, int)
        Media offsets of segments whose rows could not be read: what is missing there is told by their own findings.
    """
    rows, stored = runs.chosen(runs.verdict == ROW), stored.sorted()
    twice = np.flatnonzero((stored.offset[1:] == stored.offset[:-1]) & (stored.item[1:] == stored.item[:-1])) + 1
    for at in twice:
        before, after = keys[stored.segment[at - 1]], keys[stored.segment[at]]
        what = "stored twice in one segment" if before == after else f"stored here and in {before}"
        yield _at(Finding("row_twice", what, object=after), stored, int(at))
    found, ordinals = _find(rows, stored)
    for at in np.flatnonzero(found < 0):
        yield _at(Finding("row_without_verdict", "no run of a ledger says that it is a row", object=keys[stored.segment[at]]), stored, int(at))
    once = np.ones(len(stored.offset), bool)
    once[twice] = False
    at_run, places = found[once & (found >= 0)], ordinals[once & (found >= 0)]
    order = np.lexsort((places, at_run))
    edges = np.searchsorted(at_run[order], np.arange(len(rows) + 1))
    wanted = (rows.next - rows.start) * (rows.next_item - rows.start_item)
    for run in np.flatnonzero(np.diff(edges) < wanted):
        yield from _missing(rows, int(run), places[order[edges[run] : edges[run + 1]]], int(wanted[run]), unknown)


def _at(finding: Finding, stored: StoredRows, row: int) -> Finding:
    item = int(stored.item[row])
    return finding.at_items(int(stored.offset[row]), item, item + 1)


def _find(rows: Runs, stored: StoredRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which run holds each stored row, -1 for none, and its place in that run."""
    if not len(rows):
        nowhere = np.full(len(stored.offset), -1, np.int64)
        return nowhere, nowhere
    starts, rank = np.unique(rows.start, return_inverse=True)
    keys = rank.astype(np.int64) * _ITEMS + rows.start_item
    offset, item = stored.offset, stored.item.astype(np.int64)
    mine = np.searchsorted(starts, offset, side="right") - 1
    at = np.maximum(np.searchsorted(keys, mine * _ITEMS + item, side="right") - 1, 0)
    inside = (rows.start[at] <= offset) & (offset < rows.next[at]) & (rows.start_item[at] <= item) & (item < rows.next_item[at])
    ordinal = (offset - rows.start[at]) * (rows.next_item[at] - rows.start_item[at]) + item - rows.start_item[at]
    return np.where(inside, at, -1), ordinal


def _missing(rows: Runs, run: int, here: NDArray[np.int64], wanted: int, unknown: Sequence[tuple[int, int]]) -> Iterator[Finding]:
    """Findings for the places ``[0, wanted)`` of a run that are not in `here`, which rises."""
    edges = np.concatenate([[-1], here, [wanted]])
    start, first, width = int(rows.start[run]), int(rows.start_item[run]), int(rows.next_item[run] - rows.start_item[run])
    for at in np.flatnonzero(edges[1:] > edges[:-1] + 1):
        low, high = int(edges[at]) + 1, int(edges[at + 1])
        while low < high:
            offset, item = start + low // width, low % width
            # whole records together, else the rest of one
            end = start + high // width if not item and high - low >= width else offset + 1
            last = width if end > offset + 1 or high - low >= width - item else item + high - low
            for begin, until in _known(offset, end, unknown):
                what = "the ledger says that these are rows, and no segment holds them"
                yield Finding("row_missing", what, start_offset=begin, next_offset=until, start_item=first + item, next_item=first + last)
            low += (end - offset - 1) * width + last - item


def _known(start: int, end: int, unknown: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The offsets of ``[start, end)`` outside of `unknown`."""
    at = start
    for begin, until in sorted(unknown):
        if begin < end and until > at:
            if begin > at:
                yield at, begin
            at = max(at, until)
    if at < end:
        yield at, end
