"""Creating and deleting collections: topics first, then the record, then manifest 1 of every partition.

Takes: a request, a log and a store. Gives: a collection record. Owns: the order of steps, which makes a half-done creation repeatable.
Never: deletes stored objects, or a topic that the collection does not own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import ValidationError
from ulid import ULID

from backends.catalog.collections import CollectionCatalog
from backends.catalog.manifests import ManifestChain
from contracts.attributes import parse_time
from contracts.codec import AUTO, parse_codec
from contracts.collection import CollectionRecord, FieldRecord, IndexRecord, dead_letter_topic, media_topic, vectors_topic
from contracts.engines import Engines
from contracts.errors import NotFoundError, SettingsError
from contracts.log import Log, TopicInfo, TopicSpec
from contracts.manifest import Checkpoint, Manifest
from contracts.media_origin import REPLAY_HEADERS_BYTES
from contracts.object_keys import CollectionKeys, validate_name

FIRST_INDEX = "main"
DEAD_LETTER_HEADERS_BYTES = 64 * 1024
"""Room for what a dead letter says beside the largest original."""


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """What an operator asks for; see `CollectionRecord` for the fields that pass through."""

    name: str
    fields: Sequence[FieldRecord]
    partitions: int = 4
    source_topic: str | None = None
    start: str = "earliest"
    id_from: str = "key"
    partitioner: str = "producer"
    retention_seconds: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    on_reject: str = "keep"
    on_partial: str = "keep"
    notifications: bool = False
    archive: str = "on"
    codec: str = AUTO


def create_collection(engines: Engines, request: CollectionRequest) -> CollectionRecord:
    """Create a collection, its topics, and manifest 1 of every partition.

    Raises
    ------
    SettingsError
        The name is taken or not valid, a field is wrong, or the start is none of ``earliest``, ``latest`` and a time.
    NotFoundError
        `source_topic` does not exist.
    """
    validate_name(request.name)
    catalog = CollectionCatalog(engines.store)
    if catalog.find(request.name) is not None:
        raise SettingsError(f"collection {request.name!r} exists", hint="choose another name, or delete it first", code="collection_exists")
    _check_codec(request)
    if request.notifications:
        _check_notifications(engines, request)
    source = _source_topic(engines, request)
    origins = _origins(engines.log, source.name, request.start)  # read before the record exists: what comes later is indexed
    vectors = engines.log.create_topic(_spec(engines, vectors_topic(request.name, FIRST_INDEX), source.partitions, -1))
    dead_letters = dead_letter_topic(request.name)
    spec = _spec(engines, dead_letters, source.partitions, engines.settings.dead_letter_retention_seconds)
    engines.log.create_topic(replace(spec, max_record_bytes=spec.max_record_bytes + DEAD_LETTER_HEADERS_BYTES))
    record = catalog.create(_record(engines, request, source, vectors))
    for partition, origin in origins.items():
        ensure_origin_manifest(engines, record, record.index(), partition, origin)
    return record


def _check_codec(request: CollectionRequest) -> None:
    for field_record in request.fields:
        try:
            parse_codec(request.codec, field_record.dimension)
        except ValueError as error:
            raise SettingsError(f"collection {request.name!r}, field {field_record.name}: {error}", code="invalid_collection") from None


def _check_notifications(engines: Engines, request: CollectionRequest) -> None:
    """Refuse what would leave a collection of bucket notifications without objects or without ids."""
    problem, hint = "", ""
    if request.source_topic is None:
        problem, hint = "bucket notifications come from a topic of the store's choice", "name it with --source-topic"
    elif request.partitioner != "producer":
        problem, hint = "the store chooses the partition of its notifications", "leave --partitioner out"
    elif engines.settings.store_url.startswith("file:"):
        problem, hint = "the objects that notifications name are read from an S3 store", "set HEADWATER_STORE_URL to the store that sends them"
    if problem:
        raise SettingsError(f"collection {request.name!r}: {problem}", hint=hint, code="invalid_collection")


def _source_topic(engines: Engines, request: CollectionRequest) -> TopicInfo:
    if request.source_topic is None:
        spec = _spec(engines, media_topic(request.name), request.partitions, engines.settings.media_retention_seconds)
        return engines.log.create_topic(replace(spec, max_record_bytes=spec.max_record_bytes + REPLAY_HEADERS_BYTES))
    found = engines.log.describe_topic(request.source_topic)
    if found is None:
        raise NotFoundError(
            f"topic {request.source_topic!r} does not exist", hint="name an existing topic, or leave --source-topic out", code="topic_not_found"
        )
    return found


def _spec(engines: Engines, name: str, partitions: int, retention_seconds: int) -> TopicSpec:
    settings = engines.settings
    retention_ms = -1 if retention_seconds < 0 else retention_seconds * 1000
    return TopicSpec(name, partitions, retention_ms, settings.max_record_bytes, settings.kafka_replication)


def _record(engines: Engines, request: CollectionRequest, source: TopicInfo, vectors: TopicInfo) -> CollectionRecord:
    now = datetime.fromtimestamp(engines.clock.now_seconds(), UTC).isoformat(timespec="milliseconds")
    fields = tuple(request.fields)
    try:
        index = IndexRecord(name=FIRST_INDEX, fields=fields, vectors_topic=vectors.name, vectors_topic_id=vectors.topic_id, codec=request.codec)
        return CollectionRecord.model_validate(
            {
                "version": 1,
                "name": request.name,
                "incarnation": str(ULID()),
                "created_at": now,
                "attributes": dict(request.attributes),
                "partitions": source.partitions,
                "cluster_id": engines.log.cluster_id(),
                "source_topic": source.name,
                "source_topic_id": source.topic_id,
                "owns_source_topic": request.source_topic is None,
                "start": request.start,
                "id_from": request.id_from,
                "partitioner": request.partitioner,
                "retention_seconds": request.retention_seconds,
                "on_reject": request.on_reject,
                "on_partial": request.on_partial,
                "notifications": request.notifications,
                "archive": request.archive,
                "active_index": FIRST_INDEX,
                "indexes": (index,),
            },
            strict=False,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SettingsError(f"collection {request.name!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}", code="invalid_collection") from None


def _origins(log: Log, topic: str, start: str) -> dict[int, int]:
    """Media offset of each partition at which the collection begins."""
    bounds = log.bounds(topic)
    if start == "earliest":
        return {partition: b.start_offset for partition, b in bounds.items()}
    if start == "latest":
        return {partition: b.next_offset for partition, b in bounds.items()}
    if not re.match(r"\d{4}-", start):
        raise SettingsError(f"start {start!r} is not known", hint="use earliest, latest or an RFC 3339 time", code="invalid_start")
    try:
        return log.offsets_for_time(topic, parse_time(start) // 1000)
    except ValueError as error:
        raise SettingsError(f"start {start!r}: {error}", hint="use earliest, latest or an RFC 3339 time", code="invalid_start") from None


def ensure_origin_manifest(engines: Engines, record: CollectionRecord, index: IndexRecord, partition: int, origin_offset: int) -> None:
    """Create manifest 1 of a partition unless it exists; whoever comes first decides the origin (ADR 0001)."""
    chain = ManifestChain(engines.store, CollectionKeys(record.name, record.incarnation).index(index.name).partition(partition))
    if chain.read(1) is not None or chain.boundary() > 0:
        return
    vectors_offset = engines.log.bounds(index.vectors_topic)[partition].start_offset
    now = datetime.fromtimestamp(engines.clock.now_seconds(), UTC).isoformat(timespec="milliseconds")
    manifest = Manifest(
        version=1,
        previous=None,
        commit_id=str(ULID()),
        writer="origin",
        committed_at=now,
        incarnation=record.incarnation,
        index=index.name,
        partition=partition,
        cluster_id=record.cluster_id,
        media_topic_id=record.source_topic_id,
        vectors_topic_id=index.vectors_topic_id,
        schema_version=record.schema_version,
        origin_offset=origin_offset,
        checkpoint=Checkpoint(vectors_offset=vectors_offset, media_offset=origin_offset),
    )
    chain.create(manifest)


def delete_collection(engines: Engines, name: str) -> CollectionRecord:
    """Delete a collection: first its name, then its own topics. Its objects go with garbage collection."""
    record = CollectionCatalog(engines.store).delete(name)
    for index in record.indexes:
        engines.log.delete_topic(index.vectors_topic)
    engines.log.delete_topic(record.dead_letter_topic)
    if record.owns_source_topic:
        engines.log.delete_topic(record.source_topic)
    return record
