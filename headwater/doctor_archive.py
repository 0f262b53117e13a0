"""The doctor's look at archives: whether what retention will take is archived by then.

Takes: log, store, collections. Gives: findings. Owns: the thresholds. Never: changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

from backends.catalog.archive import archive_chain
from contracts.collection import CollectionRecord
from contracts.log import Log
from contracts.store import ObjectStore

WARN_SHARE = 0.5
"""Of the retention: older records that are not archived are told."""

Told = tuple[Literal["ok", "warn"], str, str]
"""Level, message, advice."""


def archive_findings(log: Log, store: ObjectStore, record: CollectionRecord, retention_seconds: float | None) -> Iterator[Told]:
    """What to say of one collection's archive; a single ok where there is nothing.

    Parameters
    ----------
    log, store
        Where media and archive lie.
    record : CollectionRecord
        Whose archive.
    retention_seconds : float or None
        Of the media topic; None where it keeps everything, or is not known.
    """
    lost, behind, oldest_seconds = 0, 0, 0.0
    for partition, held in log.bounds(record.source_topic).items():
        read = archive_chain(store, record, partition).head()
        archived = held.start_offset if read is None else read.manifest.checkpoint.media_offset
        lost += 0 if read is None else sum(run.next_offset - run.start_offset for run in read.manifest.lost)
        lost += max(0, held.start_offset - archived)
        behind += max(0, held.next_offset - max(archived, held.start_offset))
        first = log.read_at(record.source_topic, partition, max(archived, held.start_offset))
        oldest_seconds = max(oldest_seconds, 0.0 if first is None else time.time() - first.timestamp_ms / 1000)
    if lost:
        yield (
            "warn",
            f"{record.name}: retention took {lost} offsets before they were archived",
            "keep `headwater run archive` running, and the media topic's retention longer than its pauses",
        )
    if retention_seconds is not None and oldest_seconds > WARN_SHARE * retention_seconds:
        yield (
            "warn",
            f"{record.name}: {behind} records are not archived, the oldest {oldest_seconds / 86400:.1f} days old; retention is "
            f"{retention_seconds / 86400:.1f} days",
            "start `headwater run archive`, or more of them",
        )
    elif not lost:
        yield "ok", f"{record.name}: {behind} records wait for their tar", ""
