"""Which neighbouring pieces of a partition are rewritten into one, and why (pure; docs/operations.md explains it to operators).

    purged ids -> rows that are expired -> sizes: as many alike as `fan_in` -> dead rows

A piece is a ledger entry with the segments of its offsets. Only neighbours are merged, so that pieces stay disjoint intervals of media offsets in
their order, and a ledger and its segments always cover the same ones.

Takes: pieces, rules, the time. Gives: what to rewrite next, or None; which delete deltas to merge.
Owns: the trade of bytes written again against pieces that readers open. Never: reads or writes anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

SMALL_BYTES = 1024 * 1024
"""Pieces up to this size are of the lowest tier: opening one costs more than its bytes."""
SMALL_DEAD_SHARE = 0.5
"""Share of dead rows at which a piece of the lowest tier is rewritten alone; before that its neighbours take it along."""
RETENTION_WINDOWS = 8
"""Time windows in a collection's retention; rows of two windows are not merged, so that a whole piece expires at once."""
MOST_WINDOW_PIECES = 16
"""Pieces for each window beyond which windows are merged after all."""
DELTA_FACTOR, SMALL_DELTA_BYTES = 4, 64 * 1024

Reason = Literal["purge", "expired", "tier", "dead"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A ledger entry with the segments of its offsets; times are those of its rows, None where it has none."""

    size_bytes: int
    rows: int = 0
    dead_rows: int = 0
    min_event_time_us: int | None = None
    max_event_time_us: int | None = None
    is_purged: bool = False

    @property
    def dead_share(self) -> float:
        """Share of its rows that are deleted or superseded."""
        return self.dead_rows / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class CompactionRules:
    """What an operator can set: `fan_in` pieces alike make one, up to `most_bytes` together; `dead_share` of dead rows is too many."""

    fan_in: int
    most_bytes: int
    dead_share: float
    retention_us: int | None = None


@dataclass(frozen=True, slots=True)
class Compaction:
    """Pieces ``[first, end)`` become one."""

    first: int
    end: int
    reason: Reason


def choose(pieces: Sequence[Piece], rules: CompactionRules, now_us: int) -> Compaction | None:
    """The next compaction of a partition, or None.

    Parameters
    ----------
    pieces : sequence of Piece
        In the order of their offsets.
    rules : CompactionRules
        What is too many, too large, too dead.
    now_us : int
        Microseconds since 1970, for expiry.
    """
    for at, piece in enumerate(pieces):
        if piece.is_purged:
            return Compaction(at, at + 1, "purge")
    return _expired(pieces, rules, now_us) or _tier(pieces, rules) or _dead(pieces, rules)


def _expired(pieces: Sequence[Piece], rules: CompactionRules, now_us: int) -> Compaction | None:
    """Neighbours whose rows have all expired go together; one whose oldest rows expired a window ago is rewritten without them."""
    if rules.retention_us is None:
        return None
    expired_before = now_us - rules.retention_us
    gone = [piece.max_event_time_us is not None and piece.max_event_time_us <= expired_before for piece in pieces]
    for first, end in _runs(gone):
        cut = _cut(pieces, first, end, rules.most_bytes)
        return Compaction(first, max(cut, first + 1), "expired")
    window_us = rules.retention_us // RETENTION_WINDOWS
    for at, piece in enumerate(pieces):
        if piece.min_event_time_us is not None and piece.min_event_time_us <= expired_before - window_us:
            return Compaction(at, at + 1, "expired")
    return None


def _tier(pieces: Sequence[Piece], rules: CompactionRules) -> Compaction | None:
    """The first run of enough pieces of one tier or below, the lowest tier first; a piece is never merged with less than its own size."""
    tiers = [_tier_of(piece.size_bytes, rules.fan_in) for piece in pieces]
    for start, stop in _windows(pieces, rules):
        for tier in sorted(set(tiers[start:stop])):
            for first, end in _runs([start <= at < stop and found <= tier for at, found in enumerate(tiers)]):
                found = _run(pieces, first, end, rules)
                if found is not None:
                    return found
    return None


def _run(pieces: Sequence[Piece], first: int, end: int, rules: CompactionRules) -> Compaction | None:
    while end - first >= 2:
        cut = _cut(pieces, first, end, rules.most_bytes)
        sizes = [piece.size_bytes for piece in pieces[first:cut]]
        is_full = cut < end and 2 * sum(sizes) >= rules.most_bytes
        if (len(sizes) >= rules.fan_in or (is_full and len(sizes) >= 2)) and 2 * max(sizes) <= sum(sizes):
            return Compaction(first, cut, "tier")
        if cut == end and len(sizes) < rules.fan_in:
            return None
        first += 1
    return None


def _dead(pieces: Sequence[Piece], rules: CompactionRules) -> Compaction | None:
    """The piece with the most dead bytes among those with too many."""
    due = [at for at, piece in enumerate(pieces) if piece.dead_rows and piece.dead_share >= _limit(piece, rules)]
    if not due:
        return None
    worst = max(due, key=lambda at: pieces[at].dead_share * pieces[at].size_bytes)
    return Compaction(worst, worst + 1, "dead")


def _limit(piece: Piece, rules: CompactionRules) -> float:
    return max(rules.dead_share, SMALL_DEAD_SHARE) if piece.size_bytes <= SMALL_BYTES else rules.dead_share


def _tier_of(size_bytes: int, fan_in: int) -> int:
    return 0 if size_bytes <= SMALL_BYTES else 1 + int(math.log(size_bytes / SMALL_BYTES, fan_in))


def _windows(pieces: Sequence[Piece], rules: CompactionRules) -> list[tuple[int, int]]:
    """Neighbours that may be merged: those of one time window where rows expire. A row that comes late belongs to the window of its neighbours."""
    if rules.retention_us is None:
        return [(0, len(pieces))]
    width, newest, windows = max(1, rules.retention_us // RETENTION_WINDOWS), -(2**63), []
    for piece in pieces:
        newest = max(newest, newest if piece.max_event_time_us is None else piece.max_event_time_us)
        windows.append(newest // width)
    bounds = [0, *(at for at in range(1, len(pieces)) if windows[at] != windows[at - 1]), len(pieces)]
    if len(pieces) > MOST_WINDOW_PIECES * RETENTION_WINDOWS:
        return [(0, len(pieces))]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def _runs(chosen: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Maximal half-open intervals of neighbours that are chosen."""
    first: int | None = None
    for at, is_chosen in enumerate([*chosen, False]):
        if is_chosen and first is None:
            first = at
        elif not is_chosen and first is not None:
            yield first, at
            first = None


def _cut(pieces: Sequence[Piece], first: int, end: int, most_bytes: int) -> int:
    """End of the longest prefix of pieces ``[first, end)`` within the memory bound."""
    total = 0
    for at in range(first, end):
        total += pieces[at].size_bytes
        if total > most_bytes:
            return at
    return end


def first_to_merge(sizes: Sequence[int]) -> int:
    """Delete deltas from this one on, given by their sizes in bytes, oldest first, are merged into one.

    A large old delta stays as it is until a quarter of its size has come after it, so that each is rewritten a few times in its life.
    """
    if not sizes:
        return 0
    first, after = len(sizes) - 1, sizes[-1]
    while first > 0 and sizes[first - 1] <= max(DELTA_FACTOR * after, SMALL_DELTA_BYTES):
        first -= 1
        after += sizes[first]
    is_alone_and_large = first == len(sizes) - 1 and after > SMALL_DELTA_BYTES
    return len(sizes) if is_alone_and_large else first
