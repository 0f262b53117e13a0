"""Ledgers, judged (pure): every item of every media offset has one verdict, and each says a state.

Takes: ledger entries and runs. Gives: findings, counts by state. Owns: which state a verdict means.
Never: loops over items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.ledger import VERDICTS, LedgerRun
from contracts.manifest import LedgerEntry
from indexer.verify.findings import Finding

STATES = ("indexed", "superseded", "deleted", "expired", "applied", "dead_lettered", "lost")
"""An item is in exactly one of them. Offsets that were given up count one item each, since nobody knows how many they held."""
_STATE_OF = {"delete": "applied", "patch": "applied", "superseded": "superseded", "deleted": "deleted", "expired": "expired"}
ROW = VERDICTS.index("row")


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one ledger as columns, each of shape (n,), in (offset, item) order; `verdict` are places in `VERDICTS`.

    Runs that share an offset cover the same offsets: where writers join the first items of several records into one run, and the last of these
    records goes on with others, that last offset is a run of its own here.
    """

    start: NDArray[np.int64]
    next: NDArray[np.int64]
    start_item: NDArray[np.int64]
    next_item: NDArray[np.int64]
    verdict: NDArray[np.int8]

    @classmethod
    def of(cls, runs: Sequence[LedgerRun]) -> Runs:
        """Columns of runs, sorted."""
        rows = sorted((run.start_offset, run.start_item, run.next_offset, run.next_item, VERDICTS.index(run.verdict)) for run in runs)
        table = np.array(rows, np.int64).reshape(-1, 5)
        start, start_item, end = table[:, 0], table[:, 1], table[:, 2]
        shared = np.flatnonzero((end - start > 1)[:-1] & (start[1:] == end[:-1] - 1) & (start_item[1:] > 0))
        table = np.insert(table, shared + 1, table[shared], axis=0)
        first = shared + np.arange(len(shared))
        table[first, 2] -= 1
        table[first + 1, 0] = table[first, 2]
        start, start_item, end, next_item, verdict = table.T
        return cls(start, end, start_item, next_item, verdict.astype(np.int8))

    def __len__(self) -> int:
        return len(self.start)

    def chosen(self, mask: NDArray[np.bool_]) -> Runs:
        """Runs where `mask`, shape (n,), is set."""
        return Runs(*(getattr(self, name)[mask] for name in self.__slots__))

    def within(self, start_offset: int, next_offset: int) -> Runs:
        """Runs cut to the media offsets ``[start_offset, next_offset)``."""
        inside = self.chosen((self.start < next_offset) & (self.next > start_offset))
        start, end = np.maximum(inside.start, start_offset), np.minimum(inside.next, next_offset)
        return Runs(start, end, inside.start_item, inside.next_item, inside.verdict)


def check_entries(entries: Sequence[LedgerEntry], origin_offset: int, checkpoint_offset: int) -> Iterator[Finding]:
    """Where the ledgers of a manifest leave media offsets out, or speak of some twice."""
    at, last = origin_offset, None
    for entry in sorted(entries, key=lambda one: (one.start_offset, one.next_offset)):
        if entry.start_offset > at:
            yield Finding("offsets_without_verdict", "no ledger speaks of these offsets", start_offset=at, next_offset=entry.start_offset)
        if entry.start_offset < at:
            what = f"{last or 'the origin'} ends at {at}, this ledger begins before"
            end = min(at, entry.next_offset)
            yield Finding("offsets_with_two_verdicts", what, object=entry.object.key, start_offset=entry.start_offset, next_offset=end)
        if entry.next_offset > at:
            at, last = entry.next_offset, entry.object.key
    if at < checkpoint_offset:
        what = f"no ledger speaks of these offsets, the checkpoint is {checkpoint_offset}"
        yield Finding("offsets_without_verdict", what, start_offset=at, next_offset=checkpoint_offset)
    elif at > checkpoint_offset:
        what = f"the ledger reaches behind the checkpoint {checkpoint_offset}"
        yield Finding("offsets_with_two_verdicts", what, object=last, start_offset=checkpoint_offset, next_offset=at)


def check_runs(runs: Runs, entry: LedgerEntry) -> Iterator[Finding]:
    """Where the runs of one ledger do not tile its offsets, or the items of an offset."""
    key = entry.object.key
    if not len(runs):
        what = "the ledger is empty"
        yield Finding("offsets_without_verdict", what, object=key, start_offset=entry.start_offset, next_offset=entry.next_offset)
        return
    same = (runs.start[1:] == runs.start[:-1]) & (runs.next[1:] == runs.next[:-1])
    first = np.concatenate([[True], ~same])
    starts, ends = runs.start[first], runs.next[first]
    reach = np.maximum.accumulate(ends)
    begins = np.concatenate([[entry.start_offset], reach[:-1]])
    for at in np.flatnonzero(starts > begins):
        what = "no run of the ledger speaks of these offsets"
        yield Finding("offsets_without_verdict", what, object=key, start_offset=int(begins[at]), next_offset=int(starts[at]))
    if reach[-1] < entry.next_offset:
        what = "no run of the ledger speaks of these offsets"
        yield Finding("offsets_without_verdict", what, object=key, start_offset=int(reach[-1]), next_offset=entry.next_offset)
    if reach[-1] > entry.next_offset:
        what = "runs reach behind the ledger's own offsets"
        yield Finding("offsets_with_two_verdicts", what, object=key, start_offset=entry.next_offset, next_offset=int(reach[-1]))
    for at in np.flatnonzero(starts < begins):
        what = "two runs of the ledger speak of these offsets"
        end = int(min(begins[at], ends[at]))
        yield Finding("offsets_with_two_verdicts", what, object=key, start_offset=int(starts[at]), next_offset=max(end, int(starts[at]) + 1))
    before = np.concatenate([[0], runs.next_item[:-1]])
    before[first] = 0
    for kind, wrong in (("items_without_verdict", runs.start_item > before), ("items_with_two_verdicts", runs.start_item < before)):
        for at in np.flatnonzero(wrong):
            low, high = sorted((int(before[at]), int(runs.start_item[at])))
            finding = Finding(kind, f"items {low} to {high} of these offsets", object=key, start_item=low, next_item=high)
            yield finding.at(int(runs.start[at]), int(runs.next[at]))


def count_states(runs: Iterable[LedgerRun]) -> Counter[str]:
    """Items by state, without stored rows (their segments say what became of them); and ``gap``: offsets that hold no record."""
    counts: Counter[str] = Counter()
    for run in runs:
        if run.verdict in ("gap", "lost"):
            counts[run.verdict] += run.next_offset - run.start_offset
        elif run.rejects:
            counts["dead_lettered"] += run.items
        elif run.verdict != "row":
            counts[_STATE_OF[run.verdict]] += run.items
    return counts
