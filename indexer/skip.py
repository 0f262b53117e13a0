"""Records given up by an operator: a batch that says `lost` of offsets which no worker will embed.

    where the chain stands -> a batch of it up to the target -> read back what it took

It continues the chain like any batch, so it needs no stopped worker: one that was faster took part of the offsets, one that was slower is
dropped by the chain rule and goes back to the chain's end.

Takes: a collection, a target offset for partitions. Gives: what would be lost, then what was. Owns: the batch.
Never: goes backwards (`indexer.reset`), or beyond what the media topic holds: nothing is given up that nobody sent yet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from contracts.chain import AcceptedSpan, BatchSpan
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import SettingsError, UnavailableError
from contracts.log import OffsetBounds
from contracts.vectors_batch import BatchItem, batch_headers, batch_schema, build_batch, encode_batch, read_headers
from indexer.partition_source import ChainScan, PartitionSource, chain_end

REASON = "skipped"
"""What the ledger gives as the reason of these `lost` runs."""
MAX_RUN = 2**31 - 1
"""Offsets that one row can cover: `item` is a 32-bit number."""
ACKNOWLEDGE_SECONDS = 30.0
READ_BACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class SkippedOffsets:
    """Media offsets ``[start_offset, next_offset)`` of one partition of one index that are given up; `in_log` of them the topic still holds."""

    index: str
    partition: int
    start_offset: int
    next_offset: int
    in_log: int

    @property
    def count(self) -> int:
        """How many offsets."""
        return self.next_offset - self.start_offset


def plan_skip(engines: Engines, collection: CollectionRecord, targets: Mapping[int, int]) -> list[SkippedOffsets]:
    """What `skip` would give up, in every index of the collection, as the chains stand now; empty where all are past the targets.

    Raises
    ------
    SettingsError
        A target lies beyond the end of the media topic.
    """
    bounds = engines.log.bounds(collection.source_topic)
    planned = []
    for index in collection.indexes:
        for partition, target in sorted(targets.items()):
            held = bounds[partition]
            if target > held.next_offset:
                raise SettingsError(
                    f"offset {target} is beyond the end of {collection.source_topic}/{partition}, {held.next_offset}",
                    hint="only what was sent can be given up",
                    code="invalid_offset",
                )
            expected = chain_end(PartitionSource(engines, collection, index, partition)).chain.expected
            if expected < target:
                planned.append(_skipped(index, partition, expected, target, held))
    return planned


def _skipped(index: IndexRecord, partition: int, start: int, end: int, held: OffsetBounds) -> SkippedOffsets:
    return SkippedOffsets(index.name, partition, start, end, max(0, end - max(start, held.start_offset)))


def skip(engines: Engines, collection: CollectionRecord, planned: SkippedOffsets) -> SkippedOffsets | None:
    """Give up offsets up to the planned end; what the chain really took of them, None where a worker had embedded all meanwhile.

    Raises
    ------
    UnavailableError
        The log does not say whether the batch was stored: plan again, and see where the chain stands.
    """
    index = collection.index(planned.index)
    source = PartitionSource(engines, collection, index, planned.partition)
    scan = chain_end(source)
    start = scan.chain.expected
    if start >= planned.next_offset:
        return None
    rows = [BatchItem(at, min(MAX_RUN, planned.next_offset - at), "lost", reason=REASON) for at in range(start, planned.next_offset, MAX_RUN)]
    value = encode_batch(build_batch(rows, batch_schema(index, collection.attributes)))
    span = BatchSpan(collection.incarnation, collection.source_topic_id, start, planned.next_offset)
    producer = engines.log.producer()
    try:
        sent = producer.send(index.vectors_topic, partition=planned.partition, value=value, headers=batch_headers(span, value))
        producer.flush(ACKNOWLEDGE_SECONDS)
        position = sent.result(ACKNOWLEDGE_SECONDS)
    finally:
        producer.close()
    taken = _taken(engines, source, scan, position.offset)
    if taken is None:
        return None
    bounds = engines.log.bounds(collection.source_topic)[planned.partition]
    return _skipped(index, planned.partition, taken.start_offset, taken.next_offset, bounds)


def _taken(engines: Engines, source: PartitionSource, scan: ChainScan, offset: int) -> AcceptedSpan | None:
    """What the chain rule takes of the batch at `offset` of the vectors topic, read from where `scan` stood."""
    reader = engines.log.reader(source.index.vectors_topic, {source.partition: scan.vectors_offset})
    deadline = time.monotonic() + READ_BACK_SECONDS
    try:
        while time.monotonic() < deadline:
            for record in reader.poll(0.2):
                found = read_headers(record)
                accepted = scan.chain.accept(found) if isinstance(found, BatchSpan) else None
                if record.offset == offset:
                    return accepted
    finally:
        reader.close()
    raise UnavailableError(
        f"the batch was stored at {source.index.vectors_topic}/{source.partition}/{offset}, but cannot be read back", hint="check the brokers"
    )
