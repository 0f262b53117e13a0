"""Going back in the media topic: another index from there, beside the one that answers, and the switch once it has caught up.

A chain never goes backwards, so records that an index has passed are embedded anew only by another one (ADR 0011). It reads what the media
topic still holds, and where it begins below that, the archive first (`indexer.media_history`).

Takes: a collection, a target offset for partitions. Gives: where it can begin; what the new index would leave out; how far it has come.
Owns: these questions.
Never: touches the index that answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.catalog.archive import archive_chain
from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, SettingsError
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from indexer.media_history import MediaHistory
from indexer.partition_source import PartitionSource, chain_end


@dataclass(frozen=True, slots=True)
class PlannedReset:
    """One partition of the new index: it begins at `origin_offset`, embeds up to `embedded_offset` what the old one had passed.

    `archived_offsets`: how many of these are read from the archive, since the topic holds them no longer. `left_out_rows`: stored rows of the
    old index in segments that begin below `origin_offset`; those of them that are not sent again are not in the new one.
    """

    partition: int
    origin_offset: int
    embedded_offset: int
    left_out_rows: int
    archived_offsets: int = 0


def earliest_offsets(engines: Engines, collection: CollectionRecord, from_archive: bool = False) -> dict[int, int]:
    """First offset of each partition from which on nothing is missing, in the topic or also in the archive."""
    starts = {partition: bounds.start_offset for partition, bounds in engines.log.bounds(collection.source_topic).items()}
    return {p: _held_from(engines, collection, p, start) for p, start in starts.items()} if from_archive else starts


def offsets_for_time(engines: Engines, collection: CollectionRecord, timestamp_ms: int, from_archive: bool = False) -> dict[int, int]:
    """First offset of each partition with a time at or after this; times of archived records are taken to rise with their offsets."""
    found = engines.log.offsets_for_time(collection.source_topic, timestamp_ms)
    if not from_archive:
        return found
    history = MediaHistory(engines, collection)
    for partition, bounds in engines.log.bounds(collection.source_topic).items():
        low, high = _held_from(engines, collection, partition, bounds.start_offset), bounds.start_offset
        if found[partition] > high:
            continue
        while low < high:
            middle = (low + high) // 2
            records, next_offset = history.read(partition, middle, 1)
            if records and records[0].offset < high and records[0].timestamp_ms < timestamp_ms:
                low = records[0].offset + 1
            elif records or next_offset >= high:
                high = middle
            else:  # a gap, or purged records: nothing of this time
                low = next_offset
        found[partition] = low
    return found


def plan_reset(engines: Engines, collection: CollectionRecord, targets: Mapping[int, int], from_archive: bool = False) -> list[PlannedReset]:
    """Where each partition of a new index would begin: at its target, or where the active index began for those without one.

    Raises
    ------
    SettingsError
        A target is not behind what is embedded, or the media topic (with `from_archive`: and the archive) no longer holds it.
    """
    if from_archive and not _keeps_media(collection):
        raise SettingsError(
            f"the archive of {collection.name!r} keeps no media (`archive: off`), nothing can be embedded from it",
            hint="leave `--from-archive` out; what the topic holds no longer has to be sent again",
        )
    bounds = engines.log.bounds(collection.source_topic)
    planned = []
    for partition in range(collection.partitions):
        source = PartitionSource(engines, collection, collection.index(), partition)
        manifest, end = source.head().manifest, chain_end(source).chain.expected
        origin = targets.get(partition, manifest.origin_offset)
        where, log_start = f"{collection.source_topic}/{partition}", bounds[partition].start_offset
        if origin < log_start:
            _check_held(engines, collection, partition, origin, log_start, from_archive)
        if origin > end:
            raise SettingsError(
                f"{where}: offset {origin} is not embedded yet, the chain stands at {end}",
                hint="forwards goes `headwater skip`",
                code="invalid_offset",
            )
        planned.append(PlannedReset(partition, origin, end, _rows_below(manifest, origin), max(0, min(end, log_start) - origin)))
    return planned


def _keeps_media(collection: CollectionRecord) -> bool:
    return collection.archive == "on" or collection.notifications  # a notification only names its media


def _held_from(engines: Engines, collection: CollectionRecord, partition: int, log_start: int) -> int:
    read = archive_chain(engines.store, collection, partition).head()
    return log_start if read is None or not _keeps_media(collection) else read.manifest.held_from(log_start)


def _check_held(engines: Engines, collection: CollectionRecord, partition: int, origin: int, log_start: int, from_archive: bool) -> None:
    """SettingsError unless the archive holds everything from `origin` to where the log begins, and may be asked."""
    held_from = _held_from(engines, collection, partition, log_start)
    if from_archive and origin >= held_from:
        return
    told = f"{collection.source_topic}/{partition}: offset {origin} is gone, the topic begins at {log_start}"
    hint = "name a later one, or `--to earliest` for all partitions"
    if held_from < log_start:
        told += f", what is archived at {held_from}"
        hint += "" if from_archive else "; with `--from-archive` archived records are embedded, too"
    elif from_archive:
        told += "; the archive holds nothing that leads up to there"
    raise SettingsError(told, hint=hint, code="invalid_offset")


def _rows_below(manifest: Manifest, offset: int) -> int:
    return sum(segment.rows for segment in manifest.segments if segment.start_offset < offset)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How far an index has come: offsets embedded since its origins, and how many there are up to where the active one stands."""

    done: int
    total: int

    @property
    def is_complete(self) -> bool:
        """Whether it knows everything that the active index knows."""
        return self.done >= self.total


def catch_up(engines: Engines, collection: CollectionRecord, name: str) -> CatchUp:
    """Compare an index with the active one, whose chains are looked at first: a stream must not keep the answer from ever being yes."""
    goals = {p: _embedded(engines, collection, collection.active_index, p) for p in range(collection.partitions)}
    done = total = 0
    for partition, goal in goals.items():
        origin = _origin(engines, collection, name, partition)
        done += min(goal, _embedded(engines, collection, name, partition)) - min(goal, origin)
        total += goal - min(goal, origin)
    return CatchUp(done, total)


def _embedded(engines: Engines, collection: CollectionRecord, name: str, partition: int) -> int:
    return chain_end(PartitionSource(engines, collection, collection.index(name), partition)).chain.expected


def _origin(engines: Engines, collection: CollectionRecord, name: str, partition: int) -> int:
    keys = CollectionKeys(collection.name, collection.incarnation).index(name).partition(partition)
    read = ManifestChain(engines.store, keys).head()
    if read is None:
        raise CorruptError(f"{collection.name}/{name} partition {partition} has no manifest", hint="drop the index and reset again")
    return read.manifest.origin_offset
