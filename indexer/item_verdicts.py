"""What was decided about a media offset: from the stored ledger where it is committed, else from the batches of the vectors topic.

Takes: one partition of an index. Gives: verdicts of (offset, item), the newest version of an id, counts of rejects.
Owns: how both sources are joined.
Never: writes, or takes the dead-letter topic's word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.catalog.objects import download
from contracts.chain import BatchSpan, Chain
from contracts.errors import SnapshotError
from contracts.item import VersionOrder, version_order
from contracts.ledger import LedgerRun, decode_ledger
from contracts.log import Log, LogRecord
from contracts.manifest import LedgerEntry, Manifest
from contracts.store import ObjectStore
from contracts.vectors_batch import batch_schema, decode_batch, read_headers
from indexer.live_rows import LiveRows
from indexer.partition_builder import trim
from indexer.partition_source import PartitionSource

POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one item: a word of the ledger (`contracts.ledger.VERDICTS`), `partial` where a part of it was rejected."""

    word: str
    partial: bool = False


class PartitionVerdicts:
    """Verdicts of one partition at one moment.

    Parameters
    ----------
    source : PartitionSource
        The partition.
    """

    def __init__(self, source: PartitionSource) -> None:
        self._engines, self._index, self._partition = source.engines, source.index, source.partition
        self._schema = batch_schema(source.index, source.collection.attributes)
        self._manifest = source.head().manifest
        self._runs: dict[str, list[LedgerRun]] = {}
        self._tail: dict[int, dict[int, Verdict]] = {}
        self._newest: dict[str, VersionOrder] = {}
        self._patched: dict[str, VersionOrder] = {}
        self._read_tail()

    def of(self, offset: int) -> dict[int, Verdict]:
        """Verdicts of a record's items, by item; empty where nothing is decided yet."""
        if offset >= self._manifest.checkpoint.media_offset:
            return self._tail.get(offset, {})
        entry = next((one for one in self._manifest.ledger if one.start_offset <= offset < one.next_offset), None)
        if entry is None:
            return {}
        runs = (run for run in self._ledger(entry) if run.start_offset <= offset < run.next_offset)
        return {item: Verdict("reject" if run.rejects else run.verdict, run.partial) for run in runs for item in range(run.start_item, run.next_item)}

    def newest(self, ids: Sequence[str]) -> list[VersionOrder | None]:
        """Newest version of each id, rows and deletes alike, committed or not; None where there is none."""
        live = LiveRows(self._engines.store)
        live.load(self._manifest)
        committed = live.prior(ids)
        out: list[VersionOrder | None] = []
        for item_id, known in zip(ids, committed, strict=True):
            found = [one for one in (known, self._newest.get(item_id)) if one is not None]
            if found and item_id in self._patched:  # a patch without a row to change is no version
                found.append(self._patched[item_id])
            out.append(max(found, default=None))
        return out

    def _ledger(self, entry: LedgerEntry) -> list[LedgerRun]:
        if entry.object.key not in self._runs:
            self._runs[entry.object.key] = decode_ledger(download(self._engines.store, entry.object), entry.object.key)
        return self._runs[entry.object.key]

    def _read_tail(self) -> None:
        topic, checkpoint = self._index.vectors_topic, self._manifest.checkpoint
        chain = Chain(self._manifest.incarnation, self._manifest.media_topic_id, checkpoint.media_offset)
        start_offset = self._engines.log.bounds(topic)[self._partition].start_offset
        if checkpoint.vectors_offset < start_offset:
            raise SnapshotError(f"{topic}/{self._partition}: offset {checkpoint.vectors_offset} is below the log's start", hint="try again")
        read_to_end(self._engines.log, topic, {self._partition: checkpoint.vectors_offset}, lambda record: self._take(record, chain))

    def _take(self, record: LogRecord, chain: Chain) -> None:
        span = read_headers(record)
        accepted = chain.accept(span) if isinstance(span, BatchSpan) else None
        if accepted is None:
            return
        batch = trim(decode_batch(record, self._schema), accepted.start_offset)
        names = ("offset", "item", "op", "id", "reason", "origin_offset", "origin_item")
        for offset, item, op, item_id, reason, origin, origin_item in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
            removes = op == "delete" and reason is not None  # a rejected update, by which the older row goes
            word = "row" if op == "upsert" else "reject" if removes else op
            self._tail.setdefault(offset, {})[item] = Verdict(word, op == "upsert" and reason is not None)
            if op in ("upsert", "delete", "patch"):
                order, newest = version_order(offset, item, origin, origin_item), self._patched if op == "patch" else self._newest
                newest[item_id] = max(order, newest.get(item_id, order))


def read_to_end(log: Log, topic: str, positions: dict[int, int], take: Callable[[LogRecord], None]) -> None:
    """Hand every record from these positions up to the topic's present end to `take`, in order within a partition."""
    ends = {partition: bound.next_offset for partition, bound in log.bounds(topic).items()}
    waiting = {partition for partition, offset in positions.items() if offset < ends[partition]}
    if not waiting:
        return
    reader = log.reader(topic, {partition: positions[partition] for partition in waiting})
    try:
        while waiting:
            for record in reader.poll(POLL_SECONDS):
                if record.offset < ends[record.partition]:
                    take(record)
            waiting = {partition for partition in waiting if reader.position(partition) < ends[partition]}
    finally:
        reader.close()


def committed_rejects(store: ObjectStore, manifest: Manifest) -> Counter[str]:
    """Items that were rejected, or of which a part was, by reason, as far as the manifest is committed."""
    counts: Counter[str] = Counter()
    for entry in manifest.ledger:
        for run in decode_ledger(download(store, entry.object), entry.object.key):
            if run.reason is not None and (run.rejects or run.partial):
                counts[run.reason] += run.items
    return counts
