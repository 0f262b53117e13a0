from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from contracts.collection import CollectionRecord, FieldRecord, own_vector_space
from contracts.engines import Engines
from contracts.log import LogRecord
from contracts.settings import load_settings

VECTOR = FieldRecord(name="v", source="vector", encoder=None, space_id=own_vector_space("v", 4, "dot"), dimension=4, metric="dot", dtype="float32")


@pytest.fixture
def engines() -> Iterator[Engines]:
    engines = Engines(load_settings(log_url="memory://", store_url="memory://", max_record_bytes=1_000_000), MemoryLog(), MemoryStore())
    yield engines
    engines.log.close()


@pytest.fixture
def make_collection(engines: Engines) -> Callable[..., CollectionRecord]:
    def make(name: str = "photos", **options: object) -> CollectionRecord:
        return create_collection(engines, CollectionRequest(name, [VECTOR], **options))

    return make


@pytest.fixture
def collection(make_collection: Callable[..., CollectionRecord]) -> CollectionRecord:
    return make_collection(attributes={"category": "keyword", "year": "integer"})


@pytest.fixture
def stored(engines: Engines) -> Callable[[CollectionRecord], list[LogRecord]]:
    """All records of a collection's media topic, by partition and offset."""

    def read(collection: CollectionRecord) -> list[LogRecord]:
        found = []
        for partition, held in engines.log.bounds(collection.source_topic).items():
            for offset in range(held.start_offset, held.next_offset):
                record = engines.log.read_at(collection.source_topic, partition, offset)
                assert record is not None
                found.append(record)
        return found

    return read
