"""Objects of collections that were deleted, or replaced under their name: everything of such an incarnation goes.

Takes: the store. Gives: what was deleted.
Owns: the proof that an incarnation is dead: the name's own chain says that it meant it, and that it does no more.
Never: deletes an incarnation that no name ever named (it is being created), or a name's chain.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator

from backends.catalog.objects import delete_below, names_below
from contracts.clock import Clock
from contracts.collection import NameRecord
from contracts.engines import Engines
from contracts.errors import HeadwaterError
from contracts.manifest import object_version
from contracts.object_keys import COLLECTIONS_PREFIX, CollectionKeys, name_prefix
from contracts.store import ObjectStore
from indexer.dead_indexes import sweep_dead_indexes

logger = logging.getLogger(__name__)
SWEEP_SECONDS = 600.0


def sweep_dead_collections(store: ObjectStore, clock: Clock, keep_seconds: float) -> dict[str, int]:
    """Delete all objects of dead incarnations; returns how many by collection name.

    What a writer that does not know of it yet puts there afterwards goes with the next sweep.

    Raises
    ------
    UnavailableError
        The store does not answer: sweep again.
    """
    deleted: dict[str, int] = {}
    for keys in list(_incarnations(store)):
        if not is_dead(store, keys, clock.now_seconds() - keep_seconds):
            continue
        deleted[keys.name] = deleted.get(keys.name, 0) + delete_below(store, keys.prefix)
    return deleted


def is_dead(store: ObjectStore, keys: CollectionKeys, since_seconds: float) -> bool:
    """Whether the name meant this incarnation once and has meant another, or none, since that time."""
    named, replaced_at = False, None
    for info in sorted(store.list(name_prefix(keys.name)), key=lambda info: object_version(info.key)):
        found = store.get(info.key)
        if found is None:
            return False
        record: NameRecord = NameRecord.from_bytes(found.data, info.key)
        if record.incarnation == keys.incarnation:
            named, replaced_at = True, None
        elif named and replaced_at is None:
            replaced_at = info.modified_seconds
    return named and replaced_at is not None and replaced_at <= since_seconds


def _incarnations(store: ObjectStore) -> Iterator[CollectionKeys]:
    """Incarnations that have objects."""
    for name in names_below(store, COLLECTIONS_PREFIX):
        if match := re.fullmatch(r"(.+)-([0-9A-Z]{26})", name):
            yield CollectionKeys(match[1], match[2])


def keep_sweeping(engines: Engines, stop: threading.Event) -> None:
    """Sweep now and then until `stop` is set."""
    while not stop.wait(min(SWEEP_SECONDS, max(1.0, engines.settings.gc_seconds / 4))):
        try:
            for kind, sweep in (("deleted_collection", sweep_dead_collections), ("dropped_index", sweep_dead_indexes)):
                for name, count in sweep(engines.store, engines.clock, engines.settings.gc_seconds).items():
                    engines.metrics.collected.labels(name, kind).inc(count)
        except HeadwaterError as error:
            logger.warning("deleted collections and indexes are looked at again later: %s", error)
