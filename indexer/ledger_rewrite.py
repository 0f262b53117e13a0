"""Ledger runs after a compaction: `row` runs of rows that are dropped become what the rows became.

Takes: runs, positions of dropped rows with their new verdicts. Gives: runs that tile the same offsets. Owns: the splitting of runs.
Never: changes a verdict other than `row`, or what a run says of its reason.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from contracts.errors import CorruptError
from contracts.ledger import LedgerRun, merge_runs

Position = tuple[int, int]
"""Offset and item of a row."""


def without_rows(runs: Sequence[LedgerRun], dropped: Mapping[Position, str], where: str) -> list[LedgerRun]:
    """Runs in which each dropped row has its new verdict.

    Parameters
    ----------
    runs : sequence of LedgerRun
        In (offset, item) order.
    dropped : Mapping of (offset, item) to str
        Rows that are no longer stored, each with ``superseded``, ``deleted`` or ``expired``.
    where : str
        Names the ledger in errors.

    Raises
    ------
    CorruptError
        A dropped row has no verdict `row`: the ledger and the segments disagree.
    """
    positions = sorted(dropped)
    out: list[LedgerRun] = []
    used = 0
    for run in runs:
        first, end = bisect_left(positions, (run.start_offset, -1)), bisect_left(positions, (run.next_offset, -1))
        inside = [place for place in positions[first:end] if run.start_item <= place[1] < run.next_item]
        if run.verdict != "row" or not inside:
            out.append(run)
            continue
        used += len(inside)
        out += _split(run, inside, dropped)
    if used != len(positions):
        raise CorruptError(f"{where}: {len(positions) - used} stored rows have no verdict `row`", hint="stop maintain and report this")
    return merge_runs(out)


def _split(run: LedgerRun, inside: Sequence[Position], dropped: Mapping[Position, str]) -> Iterator[LedgerRun]:
    """Pieces of a run around its dropped rows, in (offset, item) order."""
    at = run.start_offset
    by_offset: dict[int, list[int]] = {}
    for offset, item in inside:
        by_offset.setdefault(offset, []).append(item)
    for offset, items in by_offset.items():
        if offset > at:
            yield replace(run, start_offset=at, next_offset=offset)
        yield from _split_items(replace(run, start_offset=offset, next_offset=offset + 1), items, dropped)
        at = offset + 1
    if at < run.next_offset:
        yield replace(run, start_offset=at)


def _split_items(run: LedgerRun, items: Sequence[int], dropped: Mapping[Position, str]) -> Iterator[LedgerRun]:
    at = run.start_item
    for item in items:
        if item > at:
            yield replace(run, start_item=at, next_item=item)
        yield replace(run, start_item=item, next_item=item + 1, verdict=dropped[run.start_offset, item])
        at = item + 1
    if at < run.next_item:
        yield replace(run, start_item=at)
