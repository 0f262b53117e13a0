"""The protocol model's bugs, planted in our own code: each must be found by some seed, or the simulation proves nothing.

Names and sentences are those of the model. A planted bug is a context manager that replaces a few methods while it is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from pyroaring import BitMap

import indexer.compacted_deletes
import indexer.garbage
import indexer.partition_archiver
from backends.catalog.archive import ArchiveChain
from backends.catalog.manifests import VersionChain
from contracts.archive_manifest import ArchiveManifest
from contracts.chain import AcceptedSpan, BatchSpan, Chain
from contracts.errors import DataLossError, FencedError
from contracts.log import OffsetBounds
from contracts.manifest import LedgerEntry, Manifest, ReadManifest
from contracts.object_keys import ParsedKey, parse_key
from contracts.store import ObjectInfo, ObjectStore, PutOutcome
from indexer.commit import Committer
from indexer.garbage import Collected, PartitionCollector
from indexer.live_rows import LiveRows
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import ChainScan, OwnBatch, PartitionSource
from indexer.recode import RecodedPart
from indexer.watchdog import Watchdog
from query.follow import ManifestFollower
from query.hot_load import PartitionLoader
from query.partition import Partition

Patches = list[tuple[object, str, Callable[..., Any]]]


def _nockpt() -> Patches:
    def commit(self: Committer[Manifest], mine: Any, change: Callable[[Manifest], Mapping[str, Any]], commit_id: str) -> ReadManifest:
        def forward(manifest: Manifest) -> Mapping[str, Any]:
            fields = change(manifest)
            if "checkpoint" in fields and fields["checkpoint"].media_offset <= manifest.checkpoint.media_offset:
                raise FencedError("only a step back is refused")
            return fields

        return self._commit(forward, lambda manifest: None, commit_id)

    return [(Committer, "commit", commit)]


def _gapaccept() -> Patches:
    def accept(self: Chain, span: BatchSpan) -> AcceptedSpan | None:
        if (span.incarnation, span.topic_id) != (self.incarnation, self.topic_id) or span.next_offset <= self.expected:
            return None
        accepted = AcceptedSpan(max(span.start_offset, self.expected), span.next_offset)
        self.expected = span.next_offset
        return accepted

    return [(Chain, "accept", accept)]


def _notrim() -> Patches:
    right = Chain.accept

    def accept(self: Chain, span: BatchSpan) -> AcceptedSpan | None:
        return None if right(self, span) is None else AcceptedSpan(span.start_offset, span.next_offset)

    return [(Chain, "accept", accept)]


def _noputid() -> Patches:
    right_walk, right_commit = Committer._walk, PartitionBuilder.commit

    def create(self: VersionChain[Manifest], manifest: Manifest, attempts: int = 10) -> ReadManifest | None:
        key, data = self.keys.manifest(manifest.version), manifest.to_bytes()
        while True:
            outcome = self.store.put_if_absent(key, data)
            if outcome is PutOutcome.CREATED:
                return self._above_boundary(manifest, data)
            if outcome is PutOutcome.EXISTS or (outcome is PutOutcome.UNKNOWN and self.store.get(key) is not None):
                return None  # "somebody else's", it thinks

    def walk(self: Committer[Manifest], commit_id: str) -> tuple[ReadManifest, None]:
        return right_walk(self, commit_id)[0], None

    def commit(self: PartitionBuilder) -> ReadManifest | None:
        try:
            return right_commit(self)
        except FencedError:
            pending = self.pending
            entries = [] if pending is None or pending.entry is None else list(pending.entry.parts.values())
            ledger: list[LedgerEntry] = [] if pending is None else [pending.ledger]
            for entry in (*entries, *(one.object for one in ledger)):
                self.engines.store.delete(entry.key)  # "we lost": clean up
            raise

    return [(VersionChain, "create", create), (Committer, "_walk", walk), (PartitionBuilder, "commit", commit)]


def _trimfirst() -> Patches:
    right_follow, right_load = ManifestFollower._load, PartitionLoader._load
    partitions: dict[int, Partition] = {}

    def follow(self: ManifestFollower, number: int, *more: Any) -> None:
        partitions[id(self._loaders[number])] = self._partitions[number]
        right_follow(self, number, *more)

    def load(self: PartitionLoader, read: ReadManifest, *more: Any) -> Any:
        partition = partitions[id(self)]
        if partition.view is not None:
            partition._tail = partition._tail.trimmed(read.manifest.checkpoint.media_offset)
            partition._publish()
        return right_load(self, read, *more)

    return [(ManifestFollower, "_load", follow), (PartitionLoader, "_load", load)]


def _noboundary() -> Patches:
    return [(VersionChain, "boundary", lambda self: 0), (VersionChain, "advance_boundary", lambda self, version: version)]


def _gcage() -> Patches:
    def is_dead(parsed: ParsedKey, info: ObjectInfo, head: Manifest, kept_since_seconds: float) -> bool:
        return info.modified_seconds <= kept_since_seconds

    return [(indexer.garbage, "is_dead", is_dead)]


def _norevalidate() -> Patches:
    return [(indexer.compacted_deletes, "_meanwhile", lambda deletes, inputs: BitMap())]


def _stalebits() -> Patches:
    right = LiveRows.delete_bits
    first: dict[int, dict[str, BitMap]] = {}
    kept: list[object] = []  # so that no other array gets its number

    def delete_bits(self: LiveRows, manifest: Manifest, touched: Any) -> dict[str, BitMap]:
        if id(touched) not in first:
            kept.append(touched)
            first[id(touched)] = right(self, manifest, touched)
        present = {segment.segment_id for segment in manifest.segments}
        return {name: bits for name, bits in first[id(touched)].items() if name in present}

    return [(LiveRows, "delete_bits", delete_bits)]


def _anyepoch() -> Patches:
    right = ChainScan._pass_own

    def pass_own(self: ChainScan, own: deque[OwnBatch], bounds: OffsetBounds) -> None:
        for _ in range(len(own)):
            own.append(own.popleft()._replace(leader_epoch=bounds.leader_epoch))
        right(self, own, bounds)

    return [(ChainScan, "_pass_own", pass_own)]


def _tarsweep() -> Patches:
    def sweep(store: ObjectStore, chain: ArchiveChain, manifest: ArchiveManifest) -> int:
        named = {tar.key for tar in manifest.tars}
        dead = [info.key for info in store.list(chain.keys.prefix) if info.key.endswith(".tar") and info.key not in named]
        for key in dead:
            store.delete(key)
        return len(dead)

    return [(indexer.partition_archiver, "sweep_dead_tars", sweep), (indexer.garbage, "sweep_dead_tars", sweep)]


def _gcwide() -> Patches:
    right = PartitionCollector.collect

    class Wide:
        """A store whose listing of a partition holds the parts of all partitions."""

        def __init__(self, store: ObjectStore) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            index_prefix = prefix.rpartition("/p")[0] + "/"
            for info in self._store.list(index_prefix):
                parsed = parse_key(info.key)
                if info.key.startswith(prefix) or (parsed is not None and parsed.kind == "part"):
                    yield info

    def collect(self: PartitionCollector) -> Collected:
        with mock.patch.object(self, "store", Wide(self.store)):
            return right(self)

    return [(PartitionCollector, "collect", collect)]


def _falseloss() -> Patches:
    def check_media_bounds(self: PartitionSource, scan: ChainScan) -> int:
        end, start_offset = scan.chain.expected, self.engines.log.bounds(self.collection.source_topic)[self.partition].start_offset
        if end < start_offset:
            raise DataLossError(f"offsets {end} to {start_offset} were removed by retention before they were embedded")
        return end

    return [(PartitionSource, "check_media_bounds", check_media_bounds)]


def _recodestale() -> Patches:
    right = PartitionBuilder.replace_part

    def replace_part(self: PartitionBuilder, part: RecodedPart) -> ReadManifest | None:
        seen, commit = self.manifest, self.committer.commit

        def on_what_was_seen(base: Any, change: Callable[[Manifest], Mapping[str, Any]], commit_id: str) -> ReadManifest:
            return commit(base, lambda manifest: {**change(manifest), "segments": change(seen)["segments"]}, commit_id)

        with mock.patch.object(self.committer, "commit", on_what_was_seen):
            return right(self, part)

    return [(PartitionBuilder, "replace_part", replace_part)]


def _recodelate() -> Patches:
    right = PartitionBuilder.replace_part

    def replace_part(self: PartitionBuilder, part: RecodedPart) -> ReadManifest | None:
        self.manifest = self.manifest.model_copy(update={"published": {}})
        return right(self, part)

    return [(PartitionBuilder, "replace_part", replace_part)]


PLANTED: dict[str, tuple[str, Callable[[], Patches]]] = {
    "nockpt": ("commit without exact checkpoint and epoch check", _nockpt),
    "gapaccept": ("a reader accepts a batch that starts above what it expects", _gapaccept),
    "notrim": ("a reader does not trim rows below what it expects", _notrim),
    "noputid": ("an own commit is not recognised (412 = lost), and its files are cleaned up", _noputid),
    "noboundary": ("garbage collection deletes manifests, and nobody checks the boundary", _noboundary),
    "gcage": ("garbage collection by age alone", _gcage),
    "norevalidate": ("a compaction keeps the delete bits that it read at its start", _norevalidate),
    "stalebits": ("a builder's delete bits are not computed anew for another manifest", _stalebits),
    "trimfirst": ("a query node trims the tail before the segment is loaded", _trimfirst),
    "maskonce": ("the tail masks old rows only in segments that were loaded when the tail row came", lambda: [(Partition, "_mask_new", _nothing)]),
    "nowatchdog": ("the embed worker never re-reads the chain's end", lambda: [(Watchdog, "_check", _nothing)]),
    "anyepoch": ("the embed worker's watchdog takes an acknowledgement for good, whoever leads the partition since", _anyepoch),
    "tarsweep": ("an archiver deletes tars that no manifest names yet, whoever wrote them", _tarsweep),
    "gcwide": ("garbage collection judges the parts of all partitions by the manifests of one", _gcwide),
    "falseloss": ("an embed worker takes for lost what another one embedded, and retention took, since it looked", _falseloss),
    "recodestale": ("a re-encoded part is committed over the segments that its builder saw last", _recodestale),
    "recodelate": ("a re-encoded part is committed though a newer object was published since its upload", _recodelate),
}
"""By the model's name: what is wrong, and what is replaced. From `anyepoch` on they are ours: the model has neither leaders of a log nor an archive,
one partition, no retention and no codes."""


def _nothing(self: object, *arguments: object) -> None:
    pass


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a bug, or none."""
    with ExitStack() as stack:
        for owner, attribute, wrong in PLANTED[name][1]() if name else []:
            stack.enter_context(mock.patch.object(owner, attribute, wrong))
        yield
