"""What the log says of a collection: its topics are the right ones, hold what is not committed yet, and its dead letters.

Takes: a log, manifests. Gives: findings, where each partition stands, letters. Owns: the comparison of checkpoints with a log's bounds.
Never: reads media records: what retention took is accounted for by ledger and origin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from backends.catalog.manifests import ManifestChain
from contracts.chain import BatchSpan, Chain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.errors import CorruptError, DataLossError, NotFoundError, SnapshotError
from contracts.log import Log, LogRecord, OffsetBounds
from contracts.manifest import Manifest
from contracts.vectors_batch import read_headers
from indexer.dead_letter import read_dead_letter
from indexer.item_verdicts import read_to_end
from indexer.verify.dead_letter_check import Letters
from indexer.verify.findings import Finding, Findings
from indexer.verify.partition_check import ATTEMPTS


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where a partition stands in the log: media offsets up to `embedded_offset` are in accepted batches; the topic holds ``[start, next)``."""

    embedded_offset: int
    start_offset: int
    next_offset: int


def check_topics(log: Log, collection: CollectionRecord, findings: Findings) -> bool:
    """Compare cluster and topics with the collection's record; False where offsets of this log mean nothing for it."""
    cluster = log.cluster_id()
    if cluster != collection.cluster_id:
        findings.add(Finding("topic_changed", f"the cluster is {cluster}, the collection was made on {collection.cluster_id}"))
        return False
    expected: dict[str, tuple[str, str | None]] = {collection.source_topic: (collection.source_topic_id, None)}
    expected.update({index.vectors_topic: (index.vectors_topic_id, index.name) for index in collection.indexes})
    is_right = True
    for name, (topic_id, index_name) in expected.items():
        found = log.describe_topic(name)
        if found is None or found.topic_id != topic_id:
            kind, what = ("topic_missing", "does not exist") if found is None else ("topic_changed", f"has id {found.topic_id}, not {topic_id}")
            findings.add(Finding(kind, f"topic {name} {what}", index=index_name))
            is_right = False
        elif found.partitions != collection.partitions:
            what = f"topic {name} has {found.partitions} partitions, the collection {collection.partitions}"
            findings.add(Finding("partitions_differ", what, index=index_name))
    return is_right


def check_partition_log(
    log: Log, collection: CollectionRecord, index: IndexRecord, chain: ManifestChain, manifest: Manifest, findings: Findings
) -> LogPosition | None:
    """Follow a partition's batches from its checkpoint to their end, and compare that with what the media topic holds.

    Parameters
    ----------
    log : Log
        Whose topics are the collection's.
    collection, index
        Whose partition.
    chain : ManifestChain
        The partition's; a newer manifest is taken where the vectors topic was truncated meanwhile.
    manifest : Manifest
        The one that was checked.
    findings : Findings
        Takes what is wrong.

    Raises
    ------
    SnapshotError
        The vectors topic was truncated again and again meanwhile.
    """
    partition = manifest.partition
    try:
        embedded, problem = _follow_batches(log, index, chain, manifest)
    except CorruptError as error:
        embedded, problem = 0, Finding("object_unreadable", error.message)
    if problem is not None:
        findings.add(replace(problem, index=index.name, partition=partition))
        return None
    media = log.bounds(collection.source_topic).get(partition)
    if media is None:
        return None  # told as `partitions_differ`
    where = f"topic {collection.source_topic}"
    if embedded < media.start_offset:
        what = f"{where} begins at {media.start_offset}"
        findings.add(Finding("offsets_forgotten", what, index.name, partition).at(embedded, media.start_offset))
    if embedded > media.next_offset:
        what = f"{where} ends at {media.next_offset}"
        findings.add(Finding("log_shorter", what, index.name, partition).at(media.next_offset, embedded))
    return LogPosition(embedded, media.start_offset, media.next_offset)


def _follow_batches(log: Log, index: IndexRecord, chain: ManifestChain, manifest: Manifest) -> tuple[int, Finding | None]:
    """Media offset that the last accepted batch leads to, or what is wrong with the vectors topic."""
    topic = index.vectors_topic
    for _ in range(ATTEMPTS):
        bounds = log.bounds(topic).get(manifest.partition)
        if bounds is None:
            return 0, Finding("partitions_differ", f"topic {topic} does not have the partition")
        offset = manifest.checkpoint.vectors_offset
        if offset > bounds.next_offset:
            return 0, Finding("log_shorter", f"topic {topic} ends at {bounds.next_offset}, the checkpoint is {offset}")
        if offset >= bounds.start_offset:
            try:
                return _chain_end(log, index, manifest, bounds), None
            except DataLossError:
                continue  # truncated while it was read
        newest = chain.head()
        if newest is None or newest.manifest.version == manifest.version:
            return 0, Finding("batches_forgotten", f"topic {topic} begins at {bounds.start_offset}, the checkpoint is {offset}")
        manifest = newest.manifest
    raise SnapshotError(f"{topic}/{manifest.partition} was truncated again and again", hint="run verify again")


def _chain_end(log: Log, index: IndexRecord, manifest: Manifest, bounds: OffsetBounds) -> int:
    """Media offset that the last accepted batch leads to."""
    chain = Chain(manifest.incarnation, manifest.media_topic_id, manifest.checkpoint.media_offset)

    def take(record: LogRecord) -> None:
        span = read_headers(record)
        if isinstance(span, BatchSpan):
            chain.accept(span)

    if manifest.checkpoint.vectors_offset < bounds.next_offset:
        read_to_end(log, index.vectors_topic, {manifest.partition: manifest.checkpoint.vectors_offset}, take)
    return chain.expected


def read_letters(log: Log, collection: CollectionRecord, tell: Callable[[str, int, int], None]) -> Mapping[tuple[str, int], Letters] | None:
    """Items that the dead-letter topic has letters of, by index and partition; None where there is no such topic."""
    topic = collection.dead_letter_topic
    try:
        bounds = log.bounds(topic)
    except NotFoundError:
        return None
    letters = {
        (index.name, partition): Letters(is_truncated=bound.start_offset > 0) for index in collection.indexes for partition, bound in bounds.items()
    }
    total, done = sum(bound.next_offset - bound.start_offset for bound in bounds.values()), 0

    def take(record: LogRecord) -> None:
        nonlocal done
        done += 1
        tell("dead letters", done, total)
        letter = read_dead_letter(record)
        if letter is not None and letter.incarnation == collection.incarnation and (letter.index, letter.partition) in letters:
            letters[letter.index, letter.partition].add(letter.offset, letter.items)

    read_to_end(log, topic, {partition: bound.start_offset for partition, bound in bounds.items()}, take)
    return letters
