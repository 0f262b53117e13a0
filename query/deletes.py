"""Deletes by id and by filter: one delete per item into the media topic, where everything else comes from too.

    rows of one pinned snapshot that pass -> a record without a value for each id, in its item's partition -> offsets that were acknowledged

Takes: a pinned snapshot, a request. Gives: how many deletes were sent, and where they lie. Owns: the records of these deletes.
Never: deletes in the index: builders and tails do, when they read them, as with every other delete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import SettingsError
from contracts.log import Headers
from contracts.partitioner import partition_of
from query.collection_view import CollectionSnapshot
from query.filter_tree import Filter, Node
from query.filters import parse_filter
from query.http_models import DeleteRequest
from query.search import eligible_rows

MAX_DELETES = 100_000
"""Most deletes of one request; what more would pass is told, and the same request again goes on."""
ACKNOWLEDGE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SentDeletes:
    """Deletes that the log acknowledged, items that pass and were left for the next request, and the next media offset behind them by partition."""

    sent: int
    remaining: int
    next_offsets: dict[int, int]


def send_deletes(engines: Engines, snapshot: CollectionSnapshot, request: DeleteRequest) -> SentDeletes:
    """Delete what a request names.

    Raises
    ------
    SettingsError
        Neither or both of `points` and `filter`, a filter without conditions, or one that cannot be read.
    UnavailableError
        The log does not acknowledge: some deletes may be in it; the same request again does no harm.
    """
    if (request.points is None) == (request.filter is None):
        raise SettingsError("a delete needs either `points` or `filter`", hint="name the ids, or what they have in common")
    if request.points is not None:
        places = [(partition, str(point)) for point in request.points for partition in _homes(snapshot, str(point))]
        return _send(engines, snapshot.record, places, 0)
    chosen = parse_filter(request.filter, snapshot.record.attributes)
    if chosen is None or not _has_condition(chosen):
        raise SettingsError(
            "a filter without conditions would delete everything", hint="delete the collection instead, or name its ids", code="invalid_filter"
        )
    masks = [(partition, part, eligible_rows(snapshot, part, chosen)) for partition, part in snapshot.parts]
    passing = sum(int(np.count_nonzero(mask)) for _, _, mask in masks)
    found: list[tuple[int, str]] = []
    for partition, part, mask in masks:
        for batch, start in zip(part.batches, part.starts, strict=True):
            rows = np.flatnonzero(mask[start : start + batch.num_rows])[: MAX_DELETES - len(found)]
            found += [(partition, item_id) for item_id in batch.column("id").take(rows).to_pylist()]
    return _send(engines, snapshot.record, found, passing - len(found))


def _has_condition(node: Node) -> bool:
    if not isinstance(node, Filter):
        return True
    return any(map(_has_condition, (*node.must, *node.should, *node.must_not, *node.min_should)))


def _homes(snapshot: CollectionSnapshot, item_id: str) -> Iterator[int]:
    """Partitions in which the id's item lies or may lie."""
    record = snapshot.record
    if record.partitioner != "producer":
        yield partition_of(record.partitioner, item_id.encode("utf-8"), record.partitions)
        return
    found = [partition for partition, view in snapshot.views.items() if view.find(item_id) is not None]
    yield from found or range(record.partitions)  # not to be seen yet: it may come to any


def _send(engines: Engines, record: CollectionRecord, places: list[tuple[int, str]], remaining: int) -> SentDeletes:
    header = record.id_from.removeprefix("header:") if record.id_from.startswith("header:") else None
    producer = engines.log.producer()
    try:
        futures = []
        for partition, item_id in places:
            key = item_id.encode("utf-8")
            headers: Headers = () if header is None else ((header, key),)
            futures.append((partition, producer.send(record.source_topic, partition=partition, key=key, value=None, headers=headers)))
        producer.flush(ACKNOWLEDGE_SECONDS)
        next_offsets: dict[int, int] = {}
        for partition, future in futures:
            next_offsets[partition] = max(next_offsets.get(partition, 0), future.result(ACKNOWLEDGE_SECONDS).offset + 1)
    finally:
        producer.close()
    return SentDeletes(len(places), remaining, next_offsets)
