"""Going back in the media topic: another index from there, beside the one that answers, and the switch once it has caught up.

A chain never goes backwards, so records that an index has passed are embedded anew only by another one (ADR 0011). It reads what the media
topic still holds; what only the archive holds is not read.

Takes: a collection, a target offset for partitions. Gives: what the new index would leave out; how far it has come. Owns: these two questions.
Never: touches the index that answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, SettingsError
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from indexer.partition_source import PartitionSource, chain_end


@dataclass(frozen=True, slots=True)
class PlannedReset:
    """One partition of the new index: it begins at `origin_offset`, embeds up to `embedded_offset` what the old one had passed.

    `left_out_rows`: stored rows of the old index in segments that begin below `origin_offset`; those of them that are not sent again are
    not in the new one.
    """

    partition: int
    origin_offset: int
    embedded_offset: int
    left_out_rows: int


def plan_reset(engines: Engines, collection: CollectionRecord, targets: Mapping[int, int]) -> list[PlannedReset]:
    """Where each partition of a new index would begin: at its target, or where the active index began for those without one.

    Raises
    ------
    SettingsError
        A target is not behind what is embedded, or the media topic no longer holds it.
    """
    bounds = engines.log.bounds(collection.source_topic)
    planned = []
    for partition in range(collection.partitions):
        source = PartitionSource(engines, collection, collection.index(), partition)
        manifest, end = source.head().manifest, chain_end(source).chain.expected
        origin = targets.get(partition, manifest.origin_offset)
        where = f"{collection.source_topic}/{partition}"
        if origin < bounds[partition].start_offset:
            raise SettingsError(
                f"{where}: offset {origin} is gone, the topic begins at {bounds[partition].start_offset}",
                hint="name a later one, or `--to earliest` for all partitions; what only the archive holds is not embedded again",
                code="invalid_offset",
            )
        if origin > end:
            raise SettingsError(
                f"{where}: offset {origin} is not embedded yet, the chain stands at {end}",
                hint="forwards goes `headwater skip`",
                code="invalid_offset",
            )
        planned.append(PlannedReset(partition, origin, end, _rows_below(manifest, origin)))
    return planned


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
