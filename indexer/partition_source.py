"""Where a partition stands: its manifest, checked against the log, and the end of its chain of batches.

Takes: a collection, an index, a partition. Gives: the head manifest and the chain's end. Owns: the identity and bounds checks at start.
Never: skips ahead: below the log's start it goes back to the manifest, or stops and says what is lost.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import NamedTuple

from backends.catalog.manifests import ManifestChain
from contracts.chain import BatchSpan, Chain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, DataLossError, SnapshotError
from contracts.log import LogReader, OffsetBounds
from contracts.manifest import Manifest, ReadManifest
from contracts.object_keys import CollectionKeys, PartitionKeys
from contracts.vectors_batch import read_headers
from indexer.media_history import MediaHistory

logger = logging.getLogger(__name__)
SCAN_POLL_SECONDS = 0.2


class PartitionSource:
    """One partition of one index, as a writer meets it.

    Parameters
    ----------
    engines : Engines
        Log and store.
    collection, index
        What the partition belongs to.
    partition : int
        Its number, the same in the media and the vectors topic.
    """

    def __init__(self, engines: Engines, collection: CollectionRecord, index: IndexRecord, partition: int) -> None:
        self.engines, self.collection, self.index, self.partition = engines, collection, index, partition
        self.keys: PartitionKeys = CollectionKeys(collection.name, collection.incarnation).index(index.name).partition(partition)
        self.chain = ManifestChain(engines.store, self.keys)

    def head(self) -> ReadManifest:
        """Newest manifest, after its identity was compared with the log's.

        Raises
        ------
        DataLossError
            The cluster or a topic is another one than the manifest was written for.
        CorruptError
            The partition has no manifest: `collection create` was cut short.
        """
        read = self.chain.head()
        if read is None:
            raise CorruptError(
                f"{self.collection.name}/{self.index.name} partition {self.partition} has no manifest",
                hint="delete the collection and create it again; its creation was cut short",
            )
        self._check_identity(read.manifest)
        return read

    def _check_identity(self, manifest: Manifest) -> None:
        log = self.engines.log
        expected = {
            "cluster": (manifest.cluster_id, log.cluster_id()),
            f"topic {self.collection.source_topic}": (manifest.media_topic_id, _topic_id(log.describe_topic(self.collection.source_topic))),
            f"topic {self.index.vectors_topic}": (manifest.vectors_topic_id, _topic_id(log.describe_topic(self.index.vectors_topic))),
        }
        for what, (wanted, found) in expected.items():
            if wanted != found:
                raise DataLossError(
                    f"{self.collection.name}: {what} has id {found}, the manifest was written for {wanted}",
                    hint="the topic or cluster was made again; delete the collection and create it again, or restore the old one",
                )

    def chain_scan(self) -> ChainScan:
        """Scan of the vectors topic from the newest manifest's checkpoint, not yet advanced."""
        manifest = self.head().manifest
        return ChainScan(self, manifest)

    def check_media_bounds(self, scan: ChainScan) -> int:
        """Compare the chain's end with what the media topic, and below its start the archive, still hold; returns the media offset that is next.

        Parameters
        ----------
        scan : ChainScan
            Of this partition, advanced. Where the topic begins above it, it is advanced once more: another worker may have embedded those records
            since, before retention took them.

        Raises
        ------
        DataLossError
            Retention removed records that were not embedded, and the archive does not have them; or the topic is shorter than what was.
        """
        bounds = self.engines.log.bounds(self.collection.source_topic)[self.partition]
        where = f"{self.collection.name}: {self.collection.source_topic}/{self.partition}"
        media_offset, start_offset = scan.chain.expected, bounds.start_offset
        if media_offset < start_offset:
            media_offset = scan.advance()
            bounds = self.engines.log.bounds(self.collection.source_topic)[self.partition]  # as new as the chain's end
        if media_offset < start_offset:
            try:
                MediaHistory(self.engines, self.collection).read(self.partition, media_offset, 1)
            except DataLossError as error:
                raise DataLossError(
                    f"{where}: offsets {media_offset} to {start_offset} were removed by retention before they were embedded; {error.message}",
                    hint="raise the topic's retention, then give them up, and the partition goes on by itself: "
                    f"`headwater skip {self.collection.name} --partition {self.partition} --to earliest`, or to the next offset that is archived",
                ) from None
        if media_offset > bounds.next_offset:
            raise DataLossError(
                f"{where}: the chain stands at {media_offset}, the topic ends at {bounds.next_offset}",
                hint="the topic lost records that were acknowledged; check the brokers",
            )
        return media_offset


class OwnBatch(NamedTuple):
    """A batch that this process wrote: where it lies in the vectors topic, what it says, and the leader epoch known before it was sent."""

    vectors_offset: int
    span: BatchSpan
    leader_epoch: int


class ChainScan:
    """An incremental walk along the accepted batches of one partition; it reads the headers of every batch that it does not know already.

    Parameters
    ----------
    source : PartitionSource
        Whose vectors topic is walked.
    manifest : Manifest
        Gives the exact start: vectors offset and expected media offset.
    """

    def __init__(self, source: PartitionSource, manifest: Manifest) -> None:
        self.source = source
        self.chain = Chain(manifest.incarnation, manifest.media_topic_id, manifest.checkpoint.media_offset)
        self.vectors_offset = manifest.checkpoint.vectors_offset
        self.leader_epoch = -1  # of the vectors partition, as it was seen last
        self._reader: LogReader | None = None

    def advance(self, own: deque[OwnBatch] | None = None) -> int:
        """Walk to the vectors topic's present end; returns the media offset expected next.

        Parameters
        ----------
        own : deque of OwnBatch, optional
            Batches that this process wrote and that were acknowledged, in their order; those that the walk has come past are taken off. They
            are not read where they lie next to each other and their leader epoch lasts: nobody wrote in between, and nothing can be gone.

        Raises
        ------
        SnapshotError
            The log no longer holds the batch at which the scan stands: take a newer manifest.
        """
        topic, partition = self.source.index.vectors_topic, self.source.partition
        bounds = self.source.engines.log.bounds(topic)[partition]
        self._check_start(bounds.start_offset)
        if own:
            self._pass_own(own, bounds)
        self.leader_epoch = bounds.leader_epoch
        if self.vectors_offset >= bounds.next_offset:
            return self.chain.expected
        if self._reader is None:
            self._reader = self.source.engines.log.reader(topic, {partition: self.vectors_offset})
        else:
            self._reader.seek(partition, self.vectors_offset)
            self._reader.resume([partition])
        try:
            self._walk(self._reader, bounds.next_offset)
            self._reader.pause([partition])  # else it fetches ahead what need not be read
        except DataLossError:
            self._check_start(self.source.engines.log.bounds(topic)[partition].start_offset)  # truncated since its bounds were read
            raise
        return self.chain.expected

    def _pass_own(self, own: deque[OwnBatch], bounds: OffsetBounds) -> None:
        """Go past own batches without reading them.

        A batch that was sent when an epoch had begun, and acknowledged, is there while that epoch lasts. An acknowledgement of an earlier epoch
        proves nothing: the next leader may have had neither that batch nor those behind it, and others may have written in its place.
        """
        while own and own[0].vectors_offset < self.vectors_offset:
            own.popleft()
        while own and own[0].vectors_offset == self.vectors_offset < bounds.next_offset and 0 <= own[0].leader_epoch == bounds.leader_epoch:
            self.chain.accept(own.popleft().span)
            self.vectors_offset += 1

    def _check_start(self, start_offset: int) -> None:
        if self.vectors_offset < start_offset:
            raise SnapshotError(
                f"{self.source.index.vectors_topic}/{self.source.partition}: offset {self.vectors_offset} is below the log's start",
                hint="take the newest manifest",
            )

    def close(self) -> None:
        """Let go of the reader; a later `advance`, also of another thread, opens one anew."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _walk(self, reader: LogReader, end: int) -> None:
        while self.vectors_offset < end:
            records = reader.poll(SCAN_POLL_SECONDS)
            for record in records:
                found = read_headers(record)
                if isinstance(found, BatchSpan):
                    self.chain.accept(found)
                self.vectors_offset = record.offset + 1
            if not records:
                self.vectors_offset = max(self.vectors_offset, reader.position(self.source.partition))


def chain_end(source: PartitionSource) -> ChainScan:
    """A scan that stands at the vectors topic's present end: `chain.expected` is the first media offset that is not embedded."""
    scan = source.chain_scan()
    scan.advance()
    scan.close()
    return scan


def _topic_id(info: object) -> str | None:
    return getattr(info, "topic_id", None)
