"""The archiver of one partition: media records in, committed tars out. Read `feed` and `commit` first.

    feed -> open tar -> close -> upload -> commit the manifest -> next

Takes: records of the media topic from the manifest's checkpoint on. Gives: tars and manifests. Owns: one claim, one open tar, closed ones that wait.
Never: skips an offset silently: what retention took is committed as lost; archives what a purge forbade meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ulid import ULID

from backends.catalog.archive import archive_chain
from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import upload
from backends.payloads import PayloadReader
from contracts.archive_manifest import ArchiveCheckpoint, ArchiveManifest, PendingPurge, TarEntry
from contracts.archive_tar import FinishedTar, TarWriter
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError
from contracts.log import LogRecord
from contracts.manifest import Interval, ReadVersion
from contracts.media_record import RecordLimits
from contracts.object_keys import CollectionKeys
from contracts.settings import Settings
from indexer.archive_policy import fits, should_close, should_close_first
from indexer.archive_rewrite import is_hit, rewrite_tar
from indexer.archive_sweep import delete_condemned, sweep_dead_tars
from indexer.commit import Committer
from indexer.ulids import UlidSource

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class OpenTar:
    """Records that are in no closed tar yet."""

    writer: TarWriter
    started_at: float
    first_timestamp_ms: int


@dataclass(slots=True)
class ClosedTar:
    """A tar on its way into the manifest; kept until its outcome is known. Without a tar it only moves the checkpoint, over a gap."""

    commit_id: str
    base: ArchiveCheckpoint
    checkpoint: ArchiveCheckpoint
    tar: FinishedTar | None
    entry: TarEntry | None = None
    uploaded: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes that it holds in memory."""
        return 0 if self.tar is None else len(self.tar.data)


class PartitionArchiver:
    """Archives one partition of a collection's media topic under one claim.

    Parameters
    ----------
    engines : Engines
        Log, store, settings, metrics, clock.
    collection : CollectionRecord
        Whose media.
    partition : int
        Which partition.
    writer : str
        Name of this writer, unique per process.
    ulids : UlidSource
        Mints ids in publish order.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, partition: int, writer: str, ulids: UlidSource) -> None:
        self.engines, self.collection, self.partition, self.ulids = engines, collection, partition, ulids
        self.chain = archive_chain(engines.store, collection, partition)
        self.committer = Committer(self.chain, "archiver", writer, engines.clock, self._count_conflict)
        self.limits = archive_limits(engines.settings)
        self._payloads = PayloadReader(engines.store, self.limits)
        self.open: OpenTar | None = None
        self.closed: deque[ClosedTar] = deque()
        self.is_first = True
        self._moved_at: float | None = None

    # ---- start -------------------------------------------------------------------------------------------------------

    def start(self) -> int:
        """Claim the partition's archive and return the media offset to read from.

        Raises
        ------
        DataLossError
            The topic is another one than the archive was begun for, or shorter than what was archived.
        """
        check_identity(self.engines, self.collection, ensure_archive(self.engines, self.collection, self.partition))
        read = self.committer.claim()
        read = delete_condemned(self.engines.store, self.committer, read)
        sweep_dead_tars(self.engines.store, self.chain, read.manifest)
        bounds = self.engines.log.bounds(self.collection.source_topic)[self.partition]
        offset = read.manifest.checkpoint.media_offset
        if offset > bounds.next_offset:
            raise DataLossError(
                f"{self.collection.name}: the archive of {self.collection.source_topic}/{self.partition} stands at {offset}, "
                f"the topic ends at {bounds.next_offset}",
                hint="the topic lost records that were acknowledged; check the brokers",
            )
        if offset < bounds.start_offset:
            read = self._commit_lost(read.manifest.checkpoint, bounds.start_offset)
        self._begin(read.manifest)
        return self.next_offset

    def _begin(self, manifest: ArchiveManifest) -> None:
        self.manifest = manifest
        self.next_offset = self._closed_to = manifest.checkpoint.media_offset
        self.open, self._moved_at = None, None
        self.closed.clear()

    def _commit_lost(self, base: ArchiveCheckpoint, start_offset: int) -> ReadVersion[ArchiveManifest]:
        lost = Interval(start_offset=base.media_offset, next_offset=start_offset)
        logger.error(
            "retention removed records before they were archived: partition %d of %s, offsets %d to %d are recorded as lost",
            self.partition, self.collection.name, lost.start_offset, lost.next_offset,
        )  # fmt: skip
        read = self.committer.commit(
            base,
            lambda manifest: {
                "lost": (*manifest.lost, lost),
                "checkpoint": ArchiveCheckpoint(media_offset=start_offset),
                "purges": purges_above(manifest, start_offset),
            },
            self.ulids.mint(),
        )
        self._count("lost", lost.next_offset - lost.start_offset)
        return read

    # ---- fill --------------------------------------------------------------------------------------------------------

    def feed(self, record: LogRecord, *, is_unread: bool = False) -> None:
        """Take the next record of the media topic; with `is_unread` its value is kept and not looked into (`indexer.archive_care`).

        Raises
        ------
        UnavailableError
            The store does not answer for a payload that the record names: nothing was taken.
        """
        if record.offset < self.next_offset:
            return
        writer = self._writer() if self.open is None else self.open.writer
        row, data = writer.encode_unread(record) if is_unread else writer.encode(record)
        if self.open is not None and not fits(writer.size_bytes, len(data), self.engines.settings):
            self.close()
            writer = self._writer()
        if self.open is None:
            self.open = OpenTar(writer, self.engines.clock.monotonic_seconds(), record.timestamp_ms)
        writer.copy(row, data)
        self.next_offset = record.offset + 1

    def _writer(self) -> TarWriter:
        return TarWriter(self.collection, self.limits, self._payloads.fill)

    def pass_gap(self, position: int) -> None:
        """Note that the log holds no record below `position` (transaction markers, compaction)."""
        if position > self.next_offset:
            self.next_offset = position
            self._moved_at = self._moved_at or self.engines.clock.monotonic_seconds()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of open and closed tars in memory."""
        return self.open_bytes + sum(closed.size_bytes for closed in self.closed)

    @property
    def open_bytes(self) -> int:
        """Bytes of the open tar."""
        return 0 if self.open is None else self.open.writer.size_bytes

    def close_if_due(self, is_caught_up: bool) -> None:
        """Close the open tar when its size or age says so; is the log's end an old gap, move the checkpoint over it."""
        now, settings = self.engines.clock.monotonic_seconds(), self.engines.settings
        if self.open is not None:
            age = now - self.open.started_at
            record_age = self.engines.clock.now_seconds() - self.open.first_timestamp_ms / 1000
            is_due = should_close(self.open.writer.size_bytes, age, settings)
            if is_due or (self.is_first and should_close_first(record_age, is_caught_up, settings)):
                self.close()
        elif self._moved_at is not None and now - self._moved_at >= settings.archive_seconds:
            self.close()

    def close(self) -> None:
        """Close the open tar, and queue it for its commit."""
        if self.next_offset == self._closed_to:
            return
        tar = None if self.open is None else self.open.writer.finish()
        base, checkpoint = ArchiveCheckpoint(media_offset=self._closed_to), ArchiveCheckpoint(media_offset=self.next_offset)
        self.closed.append(ClosedTar(self.ulids.mint(), base, checkpoint, tar))
        self._closed_to = self.next_offset
        self.open, self._moved_at, self.is_first = None, None, False

    # ---- commit ------------------------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Upload and commit the closed tars, oldest first; True when there was one.

        Raises
        ------
        FencedError
            A newer archiver owns the partition: drop this one.
        UnavailableError
            Store or outcome unknown: everything is kept; call again.
        """
        was_any = bool(self.closed)
        while self.closed:
            closed = self.closed[0]
            if closed.entry is None and closed.tar is not None:
                closed.entry = self._upload(closed, closed.tar)
            with self.engines.metrics.stage.labels("archive_commit").time():
                read = self.committer.commit(closed.base, lambda manifest, c=closed: self._change(manifest, c), closed.commit_id)  # type: ignore[misc]
            self.manifest = read.manifest
            self.closed.popleft()
            self._drop_superseded(closed, read.manifest)
            if closed.tar is not None:
                self._count("archived", closed.tar.records)
        return was_any

    def _change(self, manifest: ArchiveManifest, closed: ClosedTar) -> Mapping[str, Any]:
        """Fields of the next manifest, for exactly this one before it: a purge may have been committed since the tar was closed."""
        purges = {bytes.fromhex(purge.id_hash): purge.below_offset for purge in manifest.purges}
        if closed.tar is not None and any(is_hit(row, purges) for row in closed.tar.rows):
            rewritten = rewrite_tar(closed.tar.data, closed.tar.rows, purges, self.collection, self.limits)
            closed.tar = rewritten.tar
            closed.entry = self._upload(closed, closed.tar)
            self._count("purged", rewritten.removed + rewritten.redacted)
        elif closed.tar is not None and closed.entry is not None and not self._is_kept(closed.entry, manifest):
            closed.entry = self._upload(closed, closed.tar)
        changes: dict[str, Any] = {"checkpoint": closed.checkpoint, "purges": purges_above(manifest, closed.checkpoint.media_offset)}
        if closed.entry is not None:
            changes["tars"] = (*manifest.tars, closed.entry)
            changes["published"] = self.committer.published(manifest.published, closed.uploaded[-1].rpartition("/")[2].partition(".")[0])
        return changes

    def _is_kept(self, entry: TarEntry, manifest: ArchiveManifest) -> bool:
        """False where a purge took the uploaded tar for one that nobody would commit any more.

        It condemns such a tar in a commit before it deletes it: what is here and not condemned in the manifest that we extend, stays.
        """
        return entry.key not in manifest.condemned and self.engines.store.head(entry.key) is not None

    def _upload(self, closed: ClosedTar, tar: FinishedTar) -> TarEntry:
        key = self.chain.keys.tar("b", self.committer.epoch, self.ulids.mint())
        closed.uploaded.append(key)
        upload(self.engines.store, key, tar.data)
        return tar_entry(key, tar, closed.base.media_offset, closed.checkpoint.media_offset)

    def _drop_superseded(self, closed: ClosedTar, manifest: ArchiveManifest) -> None:
        """Delete what was uploaded and then rewritten without purged records; no manifest can name it any more, the commit is settled."""
        named = {tar.key for tar in manifest.tars}
        for key in closed.uploaded:
            if key not in named:
                self.engines.store.delete(key)

    def _count(self, outcome: str, records: int) -> None:
        self.engines.metrics.records.labels(self.collection.name, "archive", outcome).inc(records)

    def _count_conflict(self) -> None:
        self.engines.metrics.commit_conflicts.labels(self.collection.name).inc()


def archive_limits(settings: Settings) -> RecordLimits:
    """Limits under which records are read for the archive."""
    return RecordLimits(max_text_bytes=settings.max_text_bytes, max_payload_bytes=settings.max_picture_bytes)


def tar_entry(key: str, tar: FinishedTar, start_offset: int, next_offset: int) -> TarEntry:
    """Manifest entry of a tar stored under `key`."""
    return TarEntry(
        start_offset=start_offset,
        next_offset=next_offset,
        key=key,
        size_bytes=len(tar.data),
        sha256=hashlib.sha256(tar.data).hexdigest(),
        records=tar.records,
        index_start=tar.index_start,
        index_bytes=tar.index_bytes,
        index_sha256=tar.index_sha256,
    )


def purges_above(manifest: ArchiveManifest, media_offset: int) -> tuple[PendingPurge, ...]:
    """Purges that still concern records which are not archived."""
    return tuple(purge for purge in manifest.purges if purge.below_offset > media_offset)


def ensure_archive(engines: Engines, collection: CollectionRecord, partition: int) -> ArchiveManifest:
    """The newest manifest; manifest 1 is made where there is none, beginning where the collection's index began."""
    chain = archive_chain(engines.store, collection, partition)
    found = chain.head()
    while found is None:
        index = ManifestChain(
            engines.store, CollectionKeys(collection.name, collection.incarnation).index(collection.active_index).partition(partition)
        )
        first = index.head()
        if first is None:
            raise CorruptError(
                f"{collection.name}/{collection.active_index} partition {partition} has no manifest",
                hint="delete the collection and create it again; its creation was cut short",
            )
        origin = first.manifest.origin_offset
        manifest = ArchiveManifest(
            version=1,
            previous=None,
            commit_id=str(ULID()),
            writer="origin",
            committed_at=datetime.fromtimestamp(engines.clock.now_seconds(), UTC).isoformat(timespec="milliseconds"),
            incarnation=collection.incarnation,
            partition=partition,
            cluster_id=collection.cluster_id,
            media_topic_id=collection.source_topic_id,
            origin_offset=origin,
            checkpoint=ArchiveCheckpoint(media_offset=origin),
        )
        found = chain.create(manifest) or chain.head()
    return found.manifest


def check_identity(engines: Engines, collection: CollectionRecord, manifest: ArchiveManifest) -> None:
    """Compare cluster and topic with those that the archive was begun for.

    Raises
    ------
    DataLossError
        They are others: offsets of this topic mean nothing in the archive.
    """
    topic = engines.log.describe_topic(collection.source_topic)
    found = (engines.log.cluster_id(), None if topic is None else topic.topic_id)
    if found != (manifest.cluster_id, manifest.media_topic_id):
        raise DataLossError(
            f"{collection.name}: topic {collection.source_topic} is {found[1]} of cluster {found[0]}, "
            f"the archive was begun for {manifest.media_topic_id} of {manifest.cluster_id}",
            hint="the topic or cluster was made again; delete the collection and create it again, or restore the old one",
        )
