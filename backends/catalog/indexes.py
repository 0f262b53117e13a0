"""Further indexes of a collection: begun beside the one that answers, switched to, dropped.

    topic -> manifest 1 of every partition -> the record names it (workers begin) -> the record makes it active -> the old one goes

Takes: engines, a collection record. Gives: the next version of that record. Owns: the order of steps: whoever sees an index in the record
finds its topic and manifests. Never: drops the index that answers, or deletes stored objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from backends.catalog.admin import ensure_origin_manifest
from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord, IndexRecord, vectors_topic
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.log import TopicSpec


def add_index(engines: Engines, record: CollectionRecord, origins: Mapping[int, int]) -> CollectionRecord:
    """Begin another index with the fields of the active one, from these media offsets on.

    Parameters
    ----------
    engines : Engines
        Log, store, clock.
    record : CollectionRecord
        Newest version of the collection.
    origins : Mapping of int to int
        Media offset of every partition at which the index begins.

    Raises
    ------
    SettingsError
        There is another index beside the active one already.
    SnapshotError
        Someone else changed the collection meanwhile.
    """
    if len(record.indexes) > 1:
        others = ", ".join(index.name for index in record.indexes if index.name != record.active_index)
        raise SettingsError(
            f"collection {record.name!r} has another index already: {others}",
            hint=f"switch to it, or drop it: `headwater collection drop-index {record.name} {others}`",
        )
    active = record.index()
    begun = datetime.fromtimestamp(engines.clock.now_seconds(), UTC)
    name = f"{active.name.partition('-')[0]}-{begun:%Y%m%d-%H%M%S}"
    settings = engines.settings
    topic = TopicSpec(vectors_topic(record.name, name), record.partitions, -1, settings.max_record_bytes, settings.kafka_replication)
    made = engines.log.create_topic(topic)
    index = IndexRecord(name=name, fields=active.fields, vectors_topic=made.name, vectors_topic_id=made.topic_id, codec=active.codec)
    for partition in range(record.partitions):
        ensure_origin_manifest(engines, record, index, partition, origins[partition])
    return CollectionCatalog(engines.store).update(record, indexes=(*record.indexes, index))


def switch_index(engines: Engines, record: CollectionRecord, name: str) -> CollectionRecord:
    """Have the index of that name answer, from the moment at which each query node has loaded it; going back is the same.

    Raises
    ------
    NotFoundError
        The collection has no such index.
    SnapshotError
        Someone else changed the collection meanwhile.
    """
    named_index(record, name)
    return record if record.active_index == name else CollectionCatalog(engines.store).update(record, active_index=name)


def drop_index(engines: Engines, record: CollectionRecord, name: str) -> CollectionRecord:
    """Take an index that does not answer out of the record, and delete its topic; its objects go with garbage collection.

    Raises
    ------
    NotFoundError
        The collection has no such index.
    SettingsError
        It is the one that answers.
    """
    index = named_index(record, name)
    if name == record.active_index:
        raise SettingsError(f"index {name!r} of {record.name!r} is the one that answers", hint="switch to another one first")
    following = CollectionCatalog(engines.store).update(record, indexes=tuple(one for one in record.indexes if one.name != name))
    engines.log.delete_topic(index.vectors_topic)
    return following


def named_index(record: CollectionRecord, name: str) -> IndexRecord:
    """The index of that name; NotFoundError where there is none."""
    found = next((index for index in record.indexes if index.name == name), None)
    if found is None:
        there = ", ".join(index.name for index in record.indexes)
        raise NotFoundError(f"collection {record.name!r} has no index {name!r}", hint=f"it has {there}")
    return found
