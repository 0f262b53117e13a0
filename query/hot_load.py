"""Loading: from a manifest's entries to segments, deltas and live masks in memory.

Takes: the newest manifest, what is loaded already. Gives: a `LoadedManifest`, or an error and nothing. Owns: reuse of what did not change.
Never: touches what queries read; `Partition.swap` does that once everything is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from backends.catalog.manifests import NEWEST, ManifestChain
from contracts.collection import CollectionRecord, IndexRecord
from contracts.errors import SnapshotError, UnavailableError
from contracts.log import Log
from contracts.manifest import Manifest, ReadManifest, SegmentEntry
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore
from query.load_pool import FIRST, LoadPool
from query.memory_budget import MemoryFullError
from query.partition_view import LoadedManifest
from query.segments import LoadedDelta, LoadedSegment, SegmentLoader, load_delta

SNAPSHOT_ATTEMPTS = 5
"""A manifest's objects can be compacted away while they are read; the newest manifest then has others."""
PROGRESS_SECONDS = 0.2
"""How often what is loaded so far is told."""
TOGETHER_SECONDS = 0.2
"""How long a first segment waits at most for those of other partitions."""


class PartitionLoader:
    """Follows one partition's manifest chain and loads what it names.

    Parameters
    ----------
    store : ObjectStore
        Where manifests and deltas lie.
    record, index
        The collection and the index that is served.
    number : int
        The partition.
    segments : SegmentLoader
        Opens segments.
    pool : LoadPool
        Where that is done, many at once.
    """

    def __init__(
        self, store: ObjectStore, record: CollectionRecord, index: IndexRecord, number: int, segments: SegmentLoader, pool: LoadPool
    ) -> None:
        self._store, self._record, self._index, self._segments, self._pool = store, record, index, segments, pool
        keys = CollectionKeys(record.name, record.incarnation).index(index.name).partition(number)
        self._chain = ManifestChain(store, keys)

    def load(
        self, current: LoadedManifest | None, on_progress: Callable[[LoadedManifest], None] | None = None, version: int = NEWEST
    ) -> LoadedManifest | None:
        """Load the newest manifest, or one that is at least `version`; None when `current` is that and complete.

        Parameters
        ----------
        current : LoadedManifest, optional
            What is loaded already.
        on_progress : callable, optional
            Told what there is so far, the newest segments first, while others are still being loaded.
        version : int, optional
            Known to be there; what may lie behind it is not looked for.

        Raises
        ------
        UnavailableError
            There is no manifest yet, or the store does not answer; ``memory_full``: not all segments fit, those that do were told.
        SnapshotError
            Objects went away again and again while they were read.
        CorruptError
            Bytes are not what the manifest says, or the manifest belongs to something else; nothing of it is served but what was told.
        """
        for _ in range(SNAPSHOT_ATTEMPTS):
            try:
                read = self._newest(current, version)
                if current is not None and read.manifest.version <= current.version and current.complete:
                    return None
                return self._load(read, current, on_progress)
            except SnapshotError as error:
                gone, version = error, NEWEST
        raise gone

    def _newest(self, current: LoadedManifest | None, version: int) -> ReadManifest:
        if current is not None:
            try:
                return self._chain.follow(current.read, version)
            except SnapshotError:
                pass  # our version was collected: only a listing tells what came after
        read = self._chain.listed()  # what is committed from now on is told by its notice, which lies behind this manifest's checkpoint
        if read is None:
            raise UnavailableError(
                f"collection {self._record.name}: partition {self._chain.keys.partition} has no manifest yet", hint="wait; its creation is under way"
            )
        return read

    def _load(self, read: ReadManifest, current: LoadedManifest | None, on_progress: Callable[[LoadedManifest], None] | None) -> LoadedManifest:
        manifest = read.manifest
        check_manifest(manifest, self._record, self._index)
        known = {} if current is None else current.deltas
        deltas = {entry.key: known.get(entry.key) or load_delta(self._store, entry) for entry in manifest.deletes}
        wanted = {entry.segment_id: entry.parts for entry in manifest.segments}
        have = {} if current is None else {name: each for name, each in current.segments.items() if each.is_of(wanted.get(name))}
        missing = [entry for entry in reversed(manifest.segments) if entry.segment_id not in have]
        told_at = -PROGRESS_SECONDS
        try:
            for entry, segment in self._opened(missing, current, manifest.generation):
                have[entry.segment_id] = segment
                if on_progress is not None and monotonic() - told_at >= PROGRESS_SECONDS:
                    if current is None:  # an answer from all partitions comes earlier where none from a few comes before
                        self._pool.await_first(TOGETHER_SECONDS)
                    current = _loaded(read, have, deltas, current)
                    on_progress(current)
                    told_at = monotonic()
        except MemoryFullError:
            if on_progress is not None:
                on_progress(_loaded(read, have, deltas, current))
            raise
        return _loaded(read, have, deltas, current)

    def _opened(
        self, missing: Sequence[SegmentEntry], current: LoadedManifest | None, generations: Mapping[str, int]
    ) -> Iterator[tuple[SegmentEntry, LoadedSegment]]:
        """Segments in the given order, opened many at once; one by one where memory runs out, so that older ones take no newer one's room."""
        first_rank = 0 if current is None else 1  # who has nothing yet comes first
        if current is None and missing and generations:  # as large as some lists, and needed behind them
            self._pool.submit(FIRST, partial(self._segments.prepare, generations))
        load = partial(self._segments.load, is_starting=current is None or not current.complete)
        loads = [self._pool.submit(rank, partial(load, entry, gives_way=rank != FIRST)) for rank, entry in enumerate(missing, first_rank)]
        try:
            for at, entry in enumerate(missing):
                try:
                    segment = loads[at].result()
                except MemoryFullError:
                    _drop(loads)
                    for rest in missing[at:]:
                        yield rest, load(rest)
                    return
                yield entry, segment
        except CancelledError:
            raise UnavailableError("the node stops", hint="ask another one") from None
        finally:
            _drop(loads)


def _drop(loads: list[Future[LoadedSegment]]) -> None:
    """Cancel what waits, wait for what is under way, and let go of all results."""
    under_way = [load for load in loads if not load.cancel()]
    for load in under_way:
        load.exception()
    loads.clear()


def _loaded(read: ReadManifest, have: Mapping[str, LoadedSegment], deltas: dict[str, LoadedDelta], current: LoadedManifest | None) -> LoadedManifest:
    segments = {entry.segment_id: have[entry.segment_id] for entry in read.manifest.segments if entry.segment_id in have}
    return LoadedManifest(read, segments, deltas, _live_rows(segments, deltas, current))


def _live_rows(
    segments: Mapping[str, LoadedSegment], deltas: Mapping[str, LoadedDelta], current: LoadedManifest | None
) -> dict[str, NDArray[np.bool_]]:
    """Live rows per segment, the same array where nothing went: a deleted row stays deleted, so what was loaded needs the new deltas only."""
    before = {} if current is None else current.live
    new = [delta for key, delta in deltas.items() if current is None or key not in current.deltas]
    out: dict[str, NDArray[np.bool_]] = {}
    for name, segment in segments.items():
        found = before.get(name)
        gone = [delta.rows[name] for delta in (new if found is not None else deltas.values()) if name in delta.rows]
        live = np.ones(segment.rows, np.bool_) if found is None else found.copy() if gone else found
        for rows in gone:
            live[rows[rows < segment.rows]] = False
        out[name] = live
    return out


def check_identity(log: Log, record: CollectionRecord, index: IndexRecord) -> None:
    """Compare the collection with the log it is about.

    Raises
    ------
    UnavailableError
        ``identity_mismatch``: another cluster, or a topic that was deleted and made again.
    """
    found = log.cluster_id()
    if found != record.cluster_id:
        raise _mismatch(record, f"it belongs to log cluster {record.cluster_id}, this one is {found}")
    for topic, wanted in ((record.source_topic, record.source_topic_id), (index.vectors_topic, index.vectors_topic_id)):
        info = log.describe_topic(topic)
        if info is None:
            raise _mismatch(record, f"topic {topic} does not exist")
        if info.topic_id != wanted:
            raise _mismatch(record, f"topic {topic} was deleted and made again")
        if info.partitions != record.partitions:
            raise _mismatch(record, f"topic {topic} has {info.partitions} partitions, the collection {record.partitions}")


def check_manifest(manifest: Manifest, record: CollectionRecord, index: IndexRecord) -> None:
    """Compare a manifest's identities with the collection's; raises as `check_identity`."""
    said = (manifest.incarnation, manifest.cluster_id, manifest.media_topic_id, manifest.vectors_topic_id, manifest.index)
    if said != (record.incarnation, record.cluster_id, record.source_topic_id, index.vectors_topic_id, index.name):
        raise _mismatch(
            record, f"manifest {manifest.version} of partition {manifest.partition} was written for another cluster, topic or incarnation"
        )


def _mismatch(record: CollectionRecord, what: str) -> UnavailableError:
    return UnavailableError(
        f"collection {record.name!r} cannot be served: {what}",
        hint="check HEADWATER_LOG_URL and HEADWATER_STORE_URL; a collection is bound to the log that it was created with",
        code="identity_mismatch",
    )
