"""The media producer: puts pictures, texts, own vectors and deletes on a collection's media topic.

Takes: an open log and a collection. Gives: a future of each record's position. Owns: the choice of partition, and the bytes in flight.
Never: loses a delivery error: it ends the record's future and is raised again by `flush` and on leaving the context.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from contracts.collection import CollectionRecord
from contracts.errors import HeadwaterError, NotFoundError, RecordError, SettingsError, UnavailableError
from contracts.item import MAX_ID_BYTES
from contracts.log import Log, RecordPosition
from contracts.media_record import TEXT_TYPE
from contracts.partitioner import partition_of
from contracts.settings import MEBIBYTE, Settings
from contracts.store import ObjectStore
from ingest.claim_check import ClaimCheck
from ingest.records import Annotations, OutgoingRecord, RowColumns, delete_record, patch_record, plain_record, rows_record

logger = logging.getLogger(__name__)

BULK_LINGER_SECONDS = 0.02
MAX_ROWS = 4096
MAX_ROWS_BYTES = 4 * MEBIBYTE
"""An Arrow record holds at most this many rows and about this many bytes: big enough to be cheap, small enough to be searchable soon."""

DELIVERY_SECONDS = 120.0
"""How long `send_*` waits for room, and `flush` for acknowledgements: Kafka's own delivery time-out."""


class MediaProducer:
    """Appends to one collection's media topic. Safe between threads; order within an id is the order of its sends.

    Parameters
    ----------
    log : Log
        An open log; it stays open.
    collection : CollectionRecord
        Whose media topic is written. Records go to ``partition_of(partitioner, id)``, murmur2 where the collection leaves it to producers.
    settings : Settings
        ``max_record_bytes``, ``claim_check_bytes`` and ``max_picture_bytes`` are read.
    bulk : bool
        False sends each record at once; True waits 20 ms for more, which is faster for many.
    max_in_flight_bytes : int
        Unacknowledged bytes beyond which `send_*` blocks.
    store : ObjectStore, optional
        Takes media that is too large for a record (claim check); without one such media is refused as ``too_large``.

    Examples
    --------
    >>> with MediaProducer(log, collection, settings, store=store) as producer:            # doctest: +SKIP
    ...     producer.send_picture("cat-1", data, "image/jpeg", caption="a cat").result()
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
        self._topic = collection.source_topic
        self._partitioner = "murmur2" if collection.partitioner == "producer" else collection.partitioner
        self._limit_bytes = _record_limit(log, collection, settings)
        self._claims = None if store is None else ClaimCheck(store, collection, settings, self._limit_bytes)
        self._open = functools.partial(log.producer, linger_seconds=BULK_LINGER_SECONDS if bulk else 0.0)
        self._producer = self._open()
        self._room = threading.Condition()
        self._max_in_flight_bytes = max_in_flight_bytes
        self._in_flight_bytes = 0
        self._tokens = itertools.count()
        self._in_flight: set[int] = set()
        self._failed = 0
        self._first_error: BaseException | None = None
        self._next_offsets: dict[int, int] = {}

    @property
    def next_offsets(self) -> dict[int, int]:
        """Per partition, the offset after the last acknowledged record: what a reader waits for to see them all."""
        with self._room:
            return dict(self._next_offsets)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes sent and not acknowledged yet."""
        with self._room:
            return self._in_flight_bytes

    def send_picture(
        self,
        item_id: str,
        data: bytes,
        content_type: str,
        caption: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        acl: Sequence[str] | None = None,
        time: datetime | str | None = None,
    ) -> Future[RecordPosition]:
        """Send one picture, as its encoded bytes.

        Parameters
        ----------
        item_id : str
            Id; the newest record of an id wins.
        data : bytes
            The encoded picture.
        content_type : str
            Such as ``image/jpeg``.
        caption, attributes, acl, time
            See `ingest.records.Annotations`.

        Returns
        -------
        Future of RecordPosition
            Ends when the record is stored, or with UnavailableError.

        Raises
        ------
        RecordError
            ``bad_id`` or ``too_large``; nothing was sent.
        UnavailableError
            The log took nothing for two minutes while too many bytes were in flight.
        """
        return self.send(plain_record(item_id, data, content_type, Annotations(caption, attributes, acl, time)), item_id)

    def send_text(
        self,
        item_id: str,
        text: str,
        caption: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        acl: Sequence[str] | None = None,
        time: datetime | str | None = None,
    ) -> Future[RecordPosition]:
        """Send one text; returns and raises as `send_picture`."""
        return self.send(plain_record(item_id, text.encode("utf-8"), TEXT_TYPE, Annotations(caption, attributes, acl, time)), item_id)

    def delete(self, item_id: str) -> Future[RecordPosition]:
        """Delete an id; returns and raises as `send_picture`."""
        return self.send(delete_record(item_id), item_id)

    def patch(self, item_id: str, attributes: Mapping[str, Any], acl: Sequence[str] | None = None) -> Future[RecordPosition]:
        """Change an item's attributes, and its acl where one is given, without its media (`ingest.records.patch_record`); as `send_picture`."""
        return self.send(patch_record(item_id, attributes, acl), item_id)

    def send_vectors(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, NDArray[np.floating[Any]]],
        *,
        texts: Sequence[str | None] | None = None,
        attributes: Sequence[Mapping[str, Any] | None] | None = None,
        acls: Sequence[Sequence[str] | None] | None = None,
        times: Sequence[datetime | None] | None = None,
    ) -> list[Future[RecordPosition]]:
        """Send own vectors, many items per record.

        Parameters
        ----------
        ids : Sequence of str
            n ids.
        vectors : Mapping of str to NDArray
            Per vector field of the collection a matrix, shape (n, d).
        texts, attributes, acls, times : Sequence, optional
            n entries each, any of them None.

        Returns
        -------
        list of Future
            One per record: rows are grouped by partition, so that each id stays in its own.

        Raises
        ------
        SettingsError
            A field does not exist, or a shape does not fit.
        RecordError
            ``bad_id``: an id cannot be stored.
        UnavailableError
            As `send_picture`; records before this one were sent.
        """
        columns = RowColumns(texts, attributes, acls, times)
        self._check_shapes(ids, vectors, columns)
        by_partition: dict[int, list[int]] = {}
        for row, item_id in enumerate(ids):
            by_partition.setdefault(self.partition(item_id), []).append(row)
        row_bytes = sum(4 * matrix.shape[1] for matrix in vectors.values()) + MAX_ID_BYTES
        per_record = max(1, min(MAX_ROWS, MAX_ROWS_BYTES // row_bytes))
        futures = []
        for partition, rows in sorted(by_partition.items()):
            for start in range(0, len(rows), per_record):
                chosen = rows[start : start + per_record]
                parts = {name: matrix[chosen] for name, matrix in vectors.items()}
                record = rows_record([ids[row] for row in chosen], parts, columns.pick(chosen))
                futures.append(self._send_to(partition, record))
        return futures

    def send(self, record: OutgoingRecord, item_id: str) -> Future[RecordPosition]:
        """Send a record of any form (`ingest.records`) to the partition of `item_id`; returns and raises as `send_picture`."""
        return self._send_to(self.partition(item_id), record if self._claims is None else self._claims.lighten(record))

    def partition(self, item_id: str) -> int:
        """Partition of an id."""
        return partition_of(self._partitioner, item_id.encode("utf-8", "surrogateescape"), self.collection.partitions)

    def _check_shapes(self, ids: Sequence[str], vectors: Mapping[str, NDArray[np.floating[Any]]], columns: RowColumns) -> None:
        fields = {field.name: field for index in self.collection.indexes for field in index.fields if field.source == "vector"}
        if not vectors:
            raise SettingsError("no vectors were given", hint=f"name one of the collection's vector fields: {', '.join(fields) or 'it has none'}")
        for name, matrix in vectors.items():
            if name not in fields:
                raise NotFoundError(
                    f"collection {self.collection.name!r} has no vector field {name!r}",
                    hint=f"its vector fields: {', '.join(sorted(fields)) or 'none'}",
                    code="field_not_found",
                )
            if matrix.shape != (len(ids), fields[name].dimension):
                raise SettingsError(f"vectors of field {name!r} have shape {matrix.shape}, not ({len(ids)}, {fields[name].dimension})")
        for column in (columns.texts, columns.attributes, columns.acls, columns.times):
            if column is not None and len(column) != len(ids):
                raise SettingsError(f"{len(ids)} ids were given, and a column of {len(column)} entries")

    def _send_to(self, partition: int, record: OutgoingRecord) -> Future[RecordPosition]:
        size_bytes = record.size_bytes
        if size_bytes > self._limit_bytes:
            raise RecordError("too_large", f"a record of {size_bytes} bytes; topic {self._topic} takes {self._limit_bytes}")
        token = self._take_room(size_bytes)
        try:
            future = self._producer.send(self._topic, partition=partition, key=record.key, value=record.value, headers=record.headers)
        except BaseException:  # raised again: only the room is given back
            self._give_back(token, size_bytes)
            raise
        future.add_done_callback(lambda done: self._acknowledge(done, token, size_bytes))
        return future

    def _take_room(self, size_bytes: int) -> int:
        """Block until the record fits; one that is larger than all the room goes alone."""
        with self._room:
            fits = self._room.wait_for(
                lambda: self._in_flight_bytes == 0 or self._in_flight_bytes + size_bytes <= self._max_in_flight_bytes, DELIVERY_SECONDS
            )
            if not fits:
                raise UnavailableError(
                    f"topic {self._topic} acknowledged nothing for {DELIVERY_SECONDS:.0f} s", hint="check the log, then send again"
                )
            token = next(self._tokens)
            self._in_flight.add(token)
            self._in_flight_bytes += size_bytes
            return token

    def _give_back(self, token: int, size_bytes: int) -> None:
        with self._room:
            self._in_flight.discard(token)
            self._in_flight_bytes -= size_bytes
            self._room.notify_all()

    def _acknowledge(self, done: Future[RecordPosition], token: int, size_bytes: int) -> None:
        error = done.exception()
        with self._room:
            if error is None:
                position = done.result()
                self._next_offsets[position.partition] = max(self._next_offsets.get(position.partition, 0), position.offset + 1)
            else:
                self._failed += 1
                self._first_error = self._first_error or error
        self._give_back(token, size_bytes)

    def flush(self, timeout_seconds: float = DELIVERY_SECONDS) -> None:
        """Wait until everything sent so far is stored.

        Raises
        ------
        UnavailableError
            Records were not stored since the last flush, or are not acknowledged in time. Sending them again is safe: an id sent twice
            is one item.
        SettingsError
            The log refused records for good.
        """
        deadline = monotonic() + timeout_seconds
        with self._room:
            sent = frozenset(self._in_flight)
        self._producer.flush(timeout_seconds)
        with self._room:  # a future's callback may run a moment after the producer's flush
            done = self._room.wait_for(lambda: self._in_flight.isdisjoint(sent), max(0.0, deadline - monotonic()))
        self._raise_failures()
        if not done:
            raise UnavailableError(
                f"topic {self._topic}: records were not acknowledged in {timeout_seconds:g} s", hint="check the log, then send again"
            )

    def _raise_failures(self) -> None:
        with self._room:
            failed, first = self._failed, self._first_error
            self._failed, self._first_error = 0, None
        if first is None:
            return
        message, hint = getattr(first, "message", str(first)), getattr(first, "hint", "")
        kind = SettingsError if isinstance(first, SettingsError) else UnavailableError
        raise kind(
            f"{failed} records were not stored in topic {self._topic}; the first: {message}",
            hint=hint or "send them again; an id sent twice is one item",
            code="not_stored",
        ) from first

    def renew(self) -> None:
        """After an outage, go on with a new producer of the log; the old one's failures, which their futures told, are forgotten.

        Raises
        ------
        UnavailableError
            The log does not answer yet; nothing has changed.
        """
        old, self._producer = self._producer, self._open()
        try:
            old.close()
        except HeadwaterError as error:
            logger.warning("closing failed: %s", error)
        with self._room:
            self._failed, self._first_error = 0, None

    def close(self) -> None:
        """Let go of the log's producer; raises as `flush` for records that were not stored."""
        try:
            self.flush()
        finally:
            self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        self._producer.close()  # the caller's error comes first; what was not stored is told in the log
        with self._room:
            if self._failed:
                logger.warning("records were not stored", extra={"topic": self._topic, "records": self._failed, "first": str(self._first_error)})


def _record_limit(log: Log, collection: CollectionRecord, settings: Settings) -> int:
    topic = log.describe_topic(collection.source_topic)
    if topic is None:
        raise NotFoundError(
            f"topic {collection.source_topic!r} of collection {collection.name!r} does not exist",
            hint="run `headwater doctor`; a deleted media topic is a new collection",
            code="topic_not_found",
        )
    if topic.topic_id != collection.source_topic_id:
        raise SettingsError(
            f"topic {collection.source_topic!r} was deleted and made again since collection {collection.name!r} was created",
            hint="create the collection anew; offsets of the old topic mean nothing in the new one",
            code="topic_changed",
        )
    return min(settings.max_record_bytes, int(topic.config.get("max.message.bytes", settings.max_record_bytes)))
