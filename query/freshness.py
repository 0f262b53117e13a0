"""Consistency on request: waits, for a bounded time, until a collection is as fresh as the caller wants.

Takes: a live view, what the caller asked for. Gives: a pinned snapshot that is fresh enough. Owns: the wait.
Never: holds a search thread while it waits.
"""

from __future__ import annotations

import asyncio

from contracts.errors import SettingsError, UnavailableError
from query.collection_view import CollectionSnapshot, CollectionView
from query.http_models import Consistency

WAIT_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


async def fresh_snapshot(view: CollectionView, consistency: Consistency, wait_seconds: float = WAIT_SECONDS) -> CollectionSnapshot:
    """Pin the first snapshot that holds what is asked for.

    Raises
    ------
    SettingsError
        ``invalid_offsets``: a key of `min_offsets` names another topic or a partition that does not exist.
    UnavailableError
        ``not_fresh_enough``: time is over; or the collection cannot be served at all.
    """
    if not consistency.min_offsets and consistency.max_staleness_ms is None:
        return view.snapshot()
    wanted = _partitions(view, consistency)
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + wait_seconds, _FIRST_PAUSE
    while True:
        snapshot = view.snapshot()
        behind = _behind(view, snapshot, wanted, consistency.max_staleness_ms)
        if behind is None:
            return snapshot
        if loop.time() >= deadline:
            raise UnavailableError(f"after {wait_seconds:g} s {behind}", hint="ask again, ask another node, or ask for less", code="not_fresh_enough")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _partitions(view: CollectionView, consistency: Consistency) -> dict[int, int]:
    """`min_offsets` by partition; keys are ``TOPIC/PARTITION`` or ``PARTITION``."""
    out: dict[int, int] = {}
    for key, offset in consistency.min_offsets.items():
        topic, _, number = key.rpartition("/")
        known = number.isascii() and number.isdigit() and len(number) <= 5 and int(number) < view.record.partitions
        if topic not in ("", view.record.source_topic) or not known:
            raise SettingsError(
                f"min_offsets: {key[:120]!r} is no partition of {view.record.source_topic}",
                hint="use the keys of freshness.offsets",
                code="invalid_offsets",
            )
        out[int(number)] = max(offset, out.get(int(number), 0))
    return out


def _behind(view: CollectionView, snapshot: CollectionSnapshot, wanted: dict[int, int], max_staleness_ms: float | None) -> str | None:
    """What is still missing, or None."""
    expected = snapshot.expected
    for partition, offset in wanted.items():
        if expected.get(partition, -1) < offset:
            return f"partition {partition} is at offset {expected.get(partition, 'none')}, {offset} is asked for"
    staleness_ms = view.staleness_seconds(snapshot) * 1000
    if max_staleness_ms is not None and staleness_ms > max_staleness_ms:
        return f"answers are {staleness_ms:.0f} ms behind, {max_staleness_ms:g} ms are asked for"
    return None
