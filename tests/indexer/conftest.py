"""Fixtures: an in-memory stack with an own-vectors collection, and workers driven by threads."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.collection import CollectionRecord, FieldRecord, own_vector_space
from contracts.engines import Engines
from contracts.item import id_hash
from contracts.media_record import ARROW_TYPE
from indexer import archive_worker, build_worker, embed_worker, role
from tests.memory_engines import memory_engines
from tests.system.sites import StackMissingError, open_site

DIMENSION = 8


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look, try again and end soon: how long they pause is no promise of these tests."""
    for worker in (embed_worker, build_worker, archive_worker):
        monkeypatch.setattr(worker, "RETRY_SECONDS", 0.1)
        monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(role, "DISCOVERY_SECONDS", 0.1)
    monkeypatch.setattr(role, "RESTART_SECONDS", 0.1)


@pytest.fixture
def engines() -> Iterator[Engines]:
    with memory_engines() as made:
        yield made


@pytest.fixture
def collection(engines: Engines) -> CollectionRecord:
    return make_collection(engines, "feed", partitions=2)


@contextmanager
def engines_on(kind: str, folder: Path, **settings: Any) -> Iterator[Engines]:
    """Engines in ``memory``, or of the site ``sqlite`` or ``kafka``, without which the test is skipped."""
    if kind == "memory":
        with memory_engines(**settings) as made:
            yield made
        return
    try:
        with open_site(kind, folder, **settings) as site, site.engines() as opened:
            yield opened
    except StackMissingError as error:
        pytest.skip(str(error))


def make_collection(engines: Engines, name: str, partitions: int = 2, fields: list[FieldRecord] | None = None, **more: object) -> CollectionRecord:
    field = FieldRecord(
        name="vec", source="vector", encoder=None, space_id=own_vector_space("vec", DIMENSION, "cosine"), dimension=DIMENSION, dtype="float32"
    )
    return create_collection(engines, CollectionRequest(name, fields or [field], partitions, **more))  # type: ignore[arg-type]


def vector_of(item_id: str) -> np.ndarray:
    return np.random.default_rng(int.from_bytes(id_hash(item_id)[:8])).standard_normal(DIMENSION).astype(np.float32)


def arrow_rows(ids: list[str], texts: list[str] | None = None) -> bytes:
    vectors = np.concatenate([vector_of(i) for i in ids])
    columns = {"id": pa.array(ids), "vec": pa.FixedSizeListArray.from_arrays(pa.array(vectors), DIMENSION)}
    if texts is not None:
        columns["text"] = pa.array(texts)
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def produce(engines: Engines, collection: CollectionRecord, partition: int, ids: list[str], texts: list[str] | None = None) -> int:
    """Append one Arrow record; returns its offset."""
    producer = engines.log.producer()
    headers = [("content-type", ARROW_TYPE.encode())]
    future = producer.send(collection.source_topic, partition=partition, value=arrow_rows(ids, texts), headers=headers)
    producer.flush(10)
    producer.close()
    return future.result(10).offset


def delete(engines: Engines, collection: CollectionRecord, partition: int, item_id: str) -> int:
    producer = engines.log.producer()
    future = producer.send(collection.source_topic, partition=partition, key=item_id.encode(), value=None)
    producer.flush(10)
    producer.close()
    return future.result(10).offset


@contextmanager
def running(*targets: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run workers in threads; an error of one fails the test."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def guarded(target: Callable[[threading.Event], None]) -> None:
        try:
            target(stop)
        except BaseException as error:  # noqa: BLE001 - re-raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    if errors:
        raise errors[0]


def eventually(check: Callable[[], bool], seconds: float = 60.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what or check}")
