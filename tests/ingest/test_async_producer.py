"""Promises of the async producer: the sync one's semantics, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import RecordError, UnavailableError
from contracts.log import LogRecord, RecordPosition
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from ingest.async_producer import AsyncMediaProducer

Stored = Callable[[CollectionRecord], list[LogRecord]]


class HeldProducer:
    """A log producer whose acknowledgements the test gives out."""

    def __init__(self) -> None:
        self.futures: list[Future[RecordPosition]] = []

    def send(
        self, topic: str, *, partition: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> Future[RecordPosition]:
        future: Future[RecordPosition] = Future()
        future.set_running_or_notify_cancel()
        self.futures.append(future)
        return future

    def flush(self, timeout_seconds: float) -> None:
        pass

    def close(self) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(UnavailableError("closed"))


class HeldLog:
    """The log under test with `HeldProducer` in place of its own."""

    def __init__(self, engines: Engines) -> None:
        self.held = HeldProducer()
        self.describe_topic = engines.log.describe_topic

    def producer(self, *, linger_seconds: float = 0.0) -> HeldProducer:
        return self.held


def test_what_is_sent_from_coroutines_can_be_read_from_the_media_topic(engines: Engines, collection: CollectionRecord, stored: Stored) -> None:
    async def send() -> RecordPosition:
        async with AsyncMediaProducer(engines.log, collection, engines.settings) as producer:
            position = await (await producer.send_picture("a", b"\xff\xd8\xff1", "image/jpeg", caption="one", attributes={"year": 2026}))
            await producer.send_text("b", "hello", acl=["x"])
            await producer.delete("c")
            await producer.patch("f", {"year": 2027})
            await asyncio.gather(*(await producer.send_vectors(["d", "e"], {"v": np.ones((2, 4), np.float32)}, texts=["t", None])))
            assert producer.next_offsets[position.partition] >= position.offset + 1
            return position

    position = asyncio.run(send())
    items = {item.id: item for record in stored(collection) for item in read_media_record(record, collection, RecordLimits())}
    assert set(items) == {"a", "b", "c", "d", "e", "f"}
    first = items["a"]
    assert isinstance(first, MediaItem)
    assert (first.text, first.picture, position.offset) == ("one", b"\xff\xd8\xff1", first.offset)
    assert isinstance(items["c"], MediaItem)
    assert items["c"].is_delete


def test_sends_of_one_id_keep_their_order_also_from_many_tasks(engines: Engines, collection: CollectionRecord, stored: Stored) -> None:
    async def send() -> None:
        async with AsyncMediaProducer(engines.log, collection, engines.settings) as producer:
            await asyncio.gather(*(producer.send_text("same", f"text {number}") for number in range(200)))

    asyncio.run(send())
    assert [record.value for record in stored(collection)] == [f"text {number}".encode() for number in range(200)]


def test_a_full_producer_makes_the_coroutine_wait_and_not_the_event_loop(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)

    async def send() -> tuple[int, int]:
        ticks = 0
        async with AsyncMediaProducer(log, collection, engines.settings, max_in_flight_bytes=1_000) as producer:  # type: ignore[arg-type]
            await producer.send_text("a", "x" * 900)
            waiting = asyncio.ensure_future(producer.send_text("b", "x" * 900))
            for _ in range(50):
                await asyncio.sleep(0.005)
                ticks += 1
            assert not waiting.done()
            assert producer.in_flight_bytes < 1_000
            log.held.futures[0].set_result(RecordPosition("t", 0, 0))
            acknowledged = await waiting
            log.held.futures[1].set_result(RecordPosition("t", 0, 1))
            return ticks, (await acknowledged).offset

    assert asyncio.run(send()) == (50, 1)


def test_a_delivery_error_ends_its_future_and_is_raised_on_leaving(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)

    async def send() -> None:
        async with AsyncMediaProducer(log, collection, engines.settings) as producer:  # type: ignore[arg-type]
            seen = await producer.send_text("a", "x")
            await producer.send_text("b", "never looked at")
            for future in log.held.futures:
                threading.Thread(target=future.set_exception, args=(UnavailableError("the broker is away"),)).start()
            with pytest.raises(UnavailableError, match="the broker is away"):
                await seen

    with pytest.raises(UnavailableError, match="2 records were not stored"):
        asyncio.run(send())


def test_a_record_that_cannot_be_sent_is_refused_where_it_is_sent(engines: Engines, collection: CollectionRecord) -> None:
    async def send() -> None:
        async with AsyncMediaProducer(engines.log, collection, engines.settings) as producer:
            with pytest.raises(RecordError, match="0 bytes"):
                await producer.send_text("", "x")
            await producer.flush()

    asyncio.run(send())


def test_giving_up_on_an_acknowledgement_leaves_the_log_alone(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)

    async def send() -> int:
        async with AsyncMediaProducer(log, collection, engines.settings) as producer:  # type: ignore[arg-type]
            acknowledged = await producer.send_text("a", "x")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(acknowledged, 0.01)
            log.held.futures[0].set_result(RecordPosition("t", 2, 7))
            await producer.flush()
            return producer.next_offsets[2]

    assert asyncio.run(send()) == 8


def test_an_error_of_the_caller_comes_first_and_wakes_a_send_that_waits(engines: Engines, collection: CollectionRecord) -> None:
    log = HeldLog(engines)

    async def send() -> None:
        async with AsyncMediaProducer(log, collection, engines.settings, max_in_flight_bytes=10) as producer:  # type: ignore[arg-type]
            await producer.send_text("a", "x" * 100)
            waiting = asyncio.ensure_future(producer.send_text("b", "x" * 100))
            await asyncio.sleep(0.05)
            waiting.cancel()
            raise LookupError("the caller's own")

    began = time.monotonic()
    with pytest.raises(LookupError, match="the caller's own"):
        asyncio.run(send())
    assert time.monotonic() - began < 5


def test_a_producer_that_was_not_entered_says_how_to_use_it(engines: Engines, collection: CollectionRecord) -> None:
    async def send() -> None:
        await AsyncMediaProducer(engines.log, collection, engines.settings).send_text("a", "x")

    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(send())
