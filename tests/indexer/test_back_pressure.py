"""However fast records come, the embed worker holds a bounded number of them: a slow encoder, a slow log, records of every size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ulid import ULID

from backends.catalog.admin import CollectionRequest, create_collection
from backends.log_rules import MAX_POLL_BYTES
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import LogProducer, RecordPosition
from contracts.settings import MEBIBYTE, load_settings
from indexer.build_worker import BuildWorker
from indexer.embed_worker import POLL_BATCHES, EmbedWorker
from indexer.slices import LEAST_RECORD_BYTES
from tests.encoders import ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition

LIMIT = 4 * MEBIBYTE


@pytest.fixture
def engines() -> Iterator[Engines]:
    name = str(ULID())
    settings = load_settings(log_url=f"memory://{name}", store_url=f"memory://{name}", seal_seconds=0.2, embed_queue_bytes=LIMIT)
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


class SlowEncoder(ColourEncoder):
    """Encodes nothing until it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def encode_texts(self, texts: Any) -> NDArray[np.float32]:
        self.go.wait(60)
        return super().encode_texts(texts)


def send_texts(engines: Engines, collection: CollectionRecord, count: int, size_bytes: int) -> None:
    producer = engines.log.producer()
    for number in range(count):
        text = f"text {number} ".encode().ljust(size_bytes, b"x")
        producer.send(collection.source_topic, partition=0, key=b"%d" % number, value=text, headers=[("content-type", b"text/plain")])
    producer.flush(60)
    producer.close()


@pytest.mark.parametrize(("count", "size_bytes"), [(3000, 20), (120, 900_000)])
@pytest.mark.slow
def test_a_slow_encoder_holds_the_reading_up_and_not_the_memory(engines: Engines, count: int, size_bytes: int) -> None:
    collection = create_collection(engines, CollectionRequest("texts", colour_fields(), 1))
    send_texts(engines, collection, count, size_bytes)
    encoder = SlowEncoder()
    worker = EmbedWorker(engines, collection, collection.index(), encoder)
    a_record = max(LEAST_RECORD_BYTES, size_bytes + 100)
    one_poll = min(POLL_BATCHES * engines.settings.embed_batch_items, MAX_POLL_BYTES // a_record + 1)
    most = LIMIT // a_record + one_poll + 1
    assert most < count, "else this proves nothing"
    with running(worker.run, BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: worker.queue.size_bytes > LIMIT)
        seen = []
        for _ in range(100):
            seen.append(worker.queue.size_bytes)
            threading.Event().wait(0.01)
        assert max(seen) <= most * a_record, "the queue grew while nothing was encoded"
        assert worker.runs[0].fetched_next <= most + engines.settings.embed_batch_items
        encoder.go.set()
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == count, 60)
        eventually(lambda: worker.queue.size_bytes == 0)
    assert len(read_partition(engines, collection, 0).live) == count


class _SlowAcknowledgements:
    """A producer whose batches to a vectors topic are acknowledged when that is allowed."""

    def __init__(self, inner: LogProducer, log: _SlowLog) -> None:
        self._inner, self._log = inner, log

    def send(self, topic: str, **arguments: Any) -> Future[RecordPosition]:
        sent = self._inner.send(topic, **arguments)
        if not topic.endswith(".vectors") or arguments.get("value") is None:
            return sent
        late: Future[RecordPosition] = Future()
        self._log.waiting.append((late, sent, len(arguments["value"])))
        if self._log.go.is_set():
            self._log.settle()
        return late

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _SlowLog:
    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.go = threading.Event()
        self.waiting: list[tuple[Future[RecordPosition], Future[RecordPosition], int]] = []

    def producer(self, **arguments: Any) -> Any:
        return _SlowAcknowledgements(self._inner.producer(**arguments), self)

    def settle(self) -> None:
        while self.waiting:
            late, sent, _ = self.waiting.pop(0)
            late.set_result(sent.result(10))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_log_that_does_not_acknowledge_holds_the_embedding_up_and_not_the_memory(engines: Engines) -> None:
    collection = make_collection(engines, "feed", partitions=1)
    for number in range(1200):
        produce(engines, collection, 0, [f"r{number}"], ["x" * 20_000])
    log = _SlowLog(engines.log)
    worker = EmbedWorker(replace(engines, log=log), collection, collection.index(), None)  # type: ignore[arg-type]
    with running(worker.run, BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: sum(size for _, _, size in log.waiting) > LIMIT // 2)
        threading.Event().wait(1.0)
        in_flight, batches = sum(size for _, _, size in log.waiting), len(log.waiting)
        assert in_flight <= LIMIT and batches > 1
        most = LIMIT // LEAST_RECORD_BYTES + POLL_BATCHES * engines.settings.embed_batch_items
        assert worker.queue.size_bytes <= most * LEAST_RECORD_BYTES and worker.runs[0].fetched_next < 1200
        log.go.set()
        log.settle()
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == 1200, 60)
    assert len(read_partition(engines, collection, 0).live) == 1200
