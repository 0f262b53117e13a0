"""Records -> decoded items: the step that runs in decode threads, off the embedding thread; pictures go on to child processes.

Takes: a `FetchedSlice`. Gives: a `DecodedSlice`. Owns: which part of a record is rejected, and partial items.
Never: decodes a picture in this process, or raises for what a record holds; only a store that does not answer for a payload, or
a machine on which no decoding process starts, ends a slice, which is then fetched again.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from backends.payloads import PayloadReader
from contracts.collection import CollectionRecord, IndexRecord
from contracts.encoder import Encoder
from contracts.errors import RecordError
from contracts.log import LogRecord
from contracts.media_envelope import may_refer
from contracts.media_origin import ReadItem, SupersededItem, read_items
from contracts.media_record import MediaItem, RecordLimits, RejectedItem
from contracts.settings import Settings
from contracts.store import ObjectStore
from contracts.vectors_batch import BatchItem, Op
from embedding.decode_pool import DecodePool
from embedding.texts import normalise_text
from indexer.slices import DecodedItem, DecodedSlice, FetchedSlice, Rejection, gap_rows, rejected_row

ROW_OVERHEAD_BYTES = 2048

_Pictures = dict[int, Future[NDArray[np.uint8]]]


def record_limits(settings: Settings, index: IndexRecord) -> RecordLimits:
    """Limits under which one record's batch still fits into one record of the vectors topic."""
    vector_bytes = sum(field.dimension * (2 if field.dtype == "float16" else 4) for field in index.fields)
    max_rows = max(1, settings.max_record_bytes // (vector_bytes + ROW_OVERHEAD_BYTES))
    return RecordLimits(settings.max_text_bytes, max_rows, settings.max_picture_bytes)


class Decoder:
    """Reads and decodes the records of one collection for one index. Thread-safe.

    Parameters
    ----------
    collection, index
        Whose records these are, and for which fields.
    encoder : Encoder or None
        Says how pictures are prepared; None for an index of own vectors only.
    settings : Settings
        Limits.
    store : ObjectStore
        Holds the payloads that records only name.
    pool : DecodePool
        Decodes pictures.
    """

    def __init__(
        self, collection: CollectionRecord, index: IndexRecord, encoder: Encoder | None, settings: Settings, store: ObjectStore, pool: DecodePool
    ) -> None:
        self.collection, self.encoder, self.pool = collection, encoder, pool
        self.limits = record_limits(settings, index)
        self._payloads = PayloadReader(store, self.limits)
        sources = {field.source for field in index.fields}
        self.wants_pictures = bool(sources & {"image", "fused"}) and encoder is not None
        self.wants_texts = bool(sources & {"text", "fused"}) and encoder is not None

    def is_slow(self, fetched: FetchedSlice) -> bool:
        """Whether decoding the slice may take longer than handing it to another thread: pictures to decode, payloads to fetch."""
        return self.wants_pictures or self.collection.notifications or any(may_refer(record) for record in fetched.records)

    def decode(self, fetched: FetchedSlice) -> DecodedSlice:
        """Turn every record of a slice into decoded items, rejections and gap rows, in offset order.

        Raises
        ------
        UnavailableError
            The store does not answer for a payload, or no decoding process can be started; no item is rejected for that.
        """
        decoded = DecodedSlice(fetched)
        decoded.items += [DecodedItem(row) for row in gap_rows(fetched.start_offset, fetched.records, fetched.next_offset)]
        read = list(zip(fetched.records, read_items(fetched.records, self.collection, self.limits), strict=True))
        pictures = self._submit_pictures(item for _, items in read for item in items)
        for record, items in read:
            for item in items:
                self._decode_item(record, item, pictures, decoded)
        decoded.items.sort(key=lambda item: (item.row.offset, item.row.item))
        return decoded

    def _submit_pictures(self, items: Iterable[ReadItem]) -> _Pictures:
        """Have the pictures that lie in the records decoded at the same time, by whichever children are free."""
        if not self.wants_pictures or self.encoder is None:
            return {}
        recipe = self.encoder.picture_recipe
        wanted = [item for item in items if isinstance(item, MediaItem)]
        return {id(item): self.pool.submit(item.picture, recipe) for item in wanted if item.picture is not None}

    def _decode_item(self, record: LogRecord, item: ReadItem, pictures: _Pictures, decoded: DecodedSlice) -> None:
        if isinstance(item, SupersededItem):
            decoded.items.append(_superseded(item))
            return
        if isinstance(item, RejectedItem):
            self._reject(record, item, decoded)
            return
        if item.is_delete and not self._payloads.is_gone(item):  # a version was deleted, and the bucket holds another one
            decoded.items.append(_superseded(item))
            return
        if item.is_delete or item.patch is not None:
            decoded.items.append(DecodedItem(_row(item)))
            return
        problem = self._fetch(item) or item.bad_part
        done = DecodedItem(_row(item))
        try:
            if self.wants_texts and item.text:
                done.text = normalise_text(item.text, self.limits.max_text_bytes) or None
            if (submitted := pictures.get(id(item))) is not None:
                done.picture = submitted.result()
            elif self.wants_pictures and self.encoder is not None and item.picture is not None:  # fetched just now
                done.picture = self.pool.prepare(item.picture, self.encoder.picture_recipe)
        except RecordError as error:
            problem = problem or error
        if problem is None:
            decoded.items.append(done)
        else:
            self._reject_part(record, item, done, problem, decoded)

    def _fetch(self, item: MediaItem) -> RecordError | None:
        """Fill in what lies behind a claim check or notification, one payload at a time; why it can never be, where it cannot."""
        try:
            if item.parts:
                self._payloads.fill(item)
        except RecordError as error:
            return error
        return None

    def _reject_part(self, record: LogRecord, item: MediaItem, done: DecodedItem, error: RecordError, decoded: DecodedSlice) -> None:
        """Keep the good part of an item whose other part is bad, unless the collection says otherwise (DESIGN section 3)."""
        if (done.text or done.picture is not None) and self.collection.on_partial == "keep":
            done.row.reason = error.reason
            decoded.items.append(done)
            decoded.rejections.append(Rejection(record, item.item, error.reason, error.message, partial=True))
        else:
            origin = item.origin_offset, item.origin_item
            rejected = RejectedItem(item.offset, item.item, error.reason, error.message, item.produced_at_us, item.id, *origin)
            self._reject(record, rejected, decoded)

    def _reject(self, record: LogRecord, item: RejectedItem, decoded: DecodedSlice) -> None:
        is_outdated = self.collection.notifications and item.reason == "payload_mismatch"  # another event of the object tells what it is now
        row = rejected_row(item, item.reason, "keep" if is_outdated else self.collection.on_reject)
        decoded.items.append(DecodedItem(row))
        decoded.rejections.append(Rejection(record, item.item, item.reason, item.message))


def _superseded(item: MediaItem | SupersededItem) -> DecodedItem:
    return DecodedItem(BatchItem(item.offset, item.item, "superseded", produced_at_us=item.produced_at_us))


def _row(item: MediaItem) -> BatchItem:
    return BatchItem(
        offset=item.offset,
        item=item.item,
        op=_op(item),
        id=item.id,
        origin_offset=item.origin_offset,
        origin_item=item.origin_item,
        vectors=dict(item.vectors),
        patch=item.patch,
        text=item.text,
        attributes=item.attributes,
        acl=item.acl,
        event_time_us=None if item.patch is not None else item.event_time_us,  # the base row's stays
        produced_at_us=item.produced_at_us,
        media_type=item.media_type,
        media_sha256=item.media_sha256,
    )


def _op(item: MediaItem) -> Op:
    if item.is_delete:
        return "delete"
    return "upsert" if item.patch is None else "patch"
