"""The media producer for programs with an event loop: the same sends, awaited.

Takes: an open log and a collection. Gives: an awaitable of each record's position. Owns: the thread in which the sends of one producer happen, one
after the other. Never: blocks the event loop, or loses a delivery error: it ends the record's future and is raised again by `flush` and on
leaving the context.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.collection import CollectionRecord
from contracts.log import Log, RecordPosition
from contracts.settings import MEBIBYTE, Settings
from contracts.store import ObjectStore
from ingest.producer import DELIVERY_SECONDS, MediaProducer
from ingest.records import OutgoingRecord

_Found = TypeVar("_Found")
Acknowledged = asyncio.Future[RecordPosition]


class AsyncMediaProducer:
    """Appends to one collection's media topic from coroutines of one event loop; see `ingest.producer.MediaProducer` for the parameters.

    Awaiting a send waits until there is room for the record (back-pressure) and returns a future; awaiting that one waits until the record is
    stored. Sends happen in the order in which they were called. A send that is cancelled may still happen.

    Examples
    --------
    >>> async with AsyncMediaProducer(log, collection, settings, store=store) as producer:            # doctest: +SKIP
    ...     stored = await producer.send_picture("cat-1", data, "image/jpeg", caption="a cat")
    ...     position = await stored
    """

    def __init__(
        self,
        log: Log,
        collection: CollectionRecord,
        settings: Settings,
        *,
        bulk: bool = False,
        max_in_flight_bytes: int = 64 * MEBIBYTE,
        store: ObjectStore | None = None,
    ) -> None:
        self.collection = collection
        self._open = lambda: MediaProducer(log, collection, settings, bulk=bulk, max_in_flight_bytes=max_in_flight_bytes, store=store)
        self._producer: MediaProducer | None = None
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="async-media-producer")

    @property
    def next_offsets(self) -> dict[int, int]:
        """As `MediaProducer.next_offsets`."""
        return self._opened().next_offsets

    @property
    def in_flight_bytes(self) -> int:
        """As `MediaProducer.in_flight_bytes`."""
        return self._opened().in_flight_bytes

    async def send_picture(
        self,
        item_id: str,
        data: bytes,
        content_type: str,
        caption: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        acl: Sequence[str] | None = None,
        time: datetime | str | None = None,
    ) -> Acknowledged:
        """Send one picture; takes and raises as `MediaProducer.send_picture`.

        Returns
        -------
        asyncio.Future of RecordPosition
            Ends when the record is stored, or with UnavailableError.
        """
        return await self._sent(lambda: self._opened().send_picture(item_id, data, content_type, caption, attributes, acl, time))

    async def send_text(
        self,
        item_id: str,
        text: str,
        caption: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        acl: Sequence[str] | None = None,
        time: datetime | str | None = None,
    ) -> Acknowledged:
        """Send one text; returns and raises as `send_picture`."""
        return await self._sent(lambda: self._opened().send_text(item_id, text, caption, attributes, acl, time))

    async def delete(self, item_id: str) -> Acknowledged:
        """Delete an id; returns and raises as `send_picture`."""
        return await self._sent(lambda: self._opened().delete(item_id))

    async def patch(self, item_id: str, attributes: Mapping[str, Any], acl: Sequence[str] | None = None) -> Acknowledged:
        """Change an item's attributes, and its acl where one is given, without its media; returns and raises as `send_picture`."""
        return await self._sent(lambda: self._opened().patch(item_id, attributes, acl))

    async def send(self, record: OutgoingRecord, item_id: str) -> Acknowledged:
        """Send a record of any form (`ingest.records`); returns and raises as `send_picture`."""
        return await self._sent(lambda: self._opened().send(record, item_id))

    async def send_vectors(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, NDArray[np.floating[Any]]],
        *,
        texts: Sequence[str | None] | None = None,
        attributes: Sequence[Mapping[str, Any] | None] | None = None,
        acls: Sequence[Sequence[str] | None] | None = None,
        times: Sequence[datetime | None] | None = None,
    ) -> list[Acknowledged]:
        """Send own vectors, per field a matrix of shape (n, d), many items per record; takes and raises as `MediaProducer.send_vectors`."""
        futures = await self._in_thread(lambda: self._opened().send_vectors(ids, vectors, texts=texts, attributes=attributes, acls=acls, times=times))
        return [_awaitable(future) for future in futures]

    async def flush(self, timeout_seconds: float = DELIVERY_SECONDS) -> None:
        """Wait until everything sent so far is stored; raises as `MediaProducer.flush`."""
        await self._in_thread(lambda: self._opened().flush(timeout_seconds))

    async def __aenter__(self) -> Self:
        try:
            self._producer = await self._in_thread(self._open)
        except BaseException:  # raised again: only the thread is let go
            self._sender.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        producer = self._opened()
        try:
            if kind is None:
                await self._in_thread(producer.close)
            else:  # a send that waits for room is woken by this, so it must not queue behind it
                await asyncio.to_thread(producer.__exit__, kind, error, trace)
        finally:
            self._sender.shutdown(wait=False, cancel_futures=True)

    def _opened(self) -> MediaProducer:
        if self._producer is None:
            raise RuntimeError("use `async with AsyncMediaProducer(...) as producer`")
        return self._producer

    async def _in_thread(self, call: Callable[[], _Found]) -> _Found:
        return await asyncio.get_running_loop().run_in_executor(self._sender, call)

    async def _sent(self, call: Callable[[], Future[RecordPosition]]) -> Acknowledged:
        return _awaitable(await self._in_thread(call))


def _awaitable(future: Future[RecordPosition]) -> Acknowledged:
    """A future of the running loop that ends as `future` does; cancelling it does not reach the log, which cannot take a record back."""
    loop = asyncio.get_running_loop()
    found: Acknowledged = loop.create_future()

    def end() -> None:
        if found.cancelled():
            return
        error = future.exception()
        if error is None:
            found.set_result(future.result())
        else:
            found.set_exception(error)
            found.exception()  # seen: `flush` and leaving the context raise it for those who do not await it

    def ended(_: Future[RecordPosition]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(end)

    future.add_done_callback(ended)
    return found
