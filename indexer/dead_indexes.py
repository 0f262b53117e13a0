"""Objects of indexes that were dropped from a collection that lives on (ADR 0011): everything of such an index goes.

Takes: the store. Gives: what was deleted.
Owns: the proof that an index is dead: the collection's own chain named it once, and does so no more. Names are never used again.
Never: deletes an index that no version ever named (it is being begun), or one that was dropped a moment ago, which a query node may still load.
"""

from __future__ import annotations

from backends.catalog.collections import CollectionCatalog
from backends.catalog.objects import delete_below, names_below
from contracts.clock import Clock
from contracts.collection import CollectionRecord
from contracts.object_keys import CollectionKeys
from contracts.store import ObjectStore


def sweep_dead_indexes(store: ObjectStore, clock: Clock, keep_seconds: float) -> dict[str, int]:
    """Delete all objects of dropped indexes; returns how many by collection name.

    Raises
    ------
    UnavailableError
        The store does not answer: sweep again.
    """
    deleted: dict[str, int] = {}
    for record in CollectionCatalog(store).list():
        keys = CollectionKeys(record.name, record.incarnation)
        named = {index.name for index in record.indexes}
        unnamed = {name for name in names_below(store, f"{keys.prefix}i/") if name not in named}
        for name in sorted(unnamed & _dropped(store, keys, clock.now_seconds() - keep_seconds) if unnamed else ()):
            deleted[record.name] = deleted.get(record.name, 0) + delete_below(store, keys.index(name).prefix)
    return deleted


def _dropped(store: ObjectStore, keys: CollectionKeys, since_seconds: float) -> set[str]:
    """Indexes that a version of the record named and a later one, of that time or before, did not."""
    named, now, dropped = set[str](), set[str](), set[str]()
    for info in sorted(store.list(keys.versions_prefix), key=lambda info: info.key):
        found = store.get(info.key)
        if found is None:
            return set()
        record: CollectionRecord = CollectionRecord.from_bytes(found.data, info.key)
        now = {index.name for index in record.indexes}
        if info.modified_seconds <= since_seconds:
            dropped |= named - now
        named |= now
    return dropped - now
