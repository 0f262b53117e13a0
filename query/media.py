"""Media and thumbnails of points, read back by lineage: from log or archive, and from the store where the record only names its payload.

A payload that is gone, or another one by now, is shown as it was archived with its record.

Takes: a row's place. Gives: bytes and a content type that is safe to serve. Owns: a cache bounded by bytes.
Never: serves bytes that differ from the hash that was stored with the row, or a content type that a browser would run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from backends.catalog.archive import ArchiveReader
from backends.payloads import PayloadReader
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError, RecordError, SettingsError
from contracts.media_record import PICTURE_TYPES, TEXT_TYPE, MediaItem, RecordLimits, read_media_record
from embedding.decode_pool import DecodePool
from embedding.pictures import sniff_format
from query.collection_view import CollectionSnapshot
from query.found import RowRef

CACHE_BYTES = 64 * 1024 * 1024
THUMBNAIL_TYPE = "image/jpeg"
_TEXT = "text/plain; charset=utf-8"
_TYPE_OF_FORMAT = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp", "TIFF": "image/tiff"}

Place = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Media:
    """Bytes with a content type out of our own list."""

    data: bytes
    content_type: str


class MediaReader:
    """Reads media by lineage, with a least-recently-used cache of pictures and thumbnails.

    Parameters
    ----------
    engines : Engines
        Log, store and limits.
    decoding : DecodePool
        Makes thumbnails.
    """

    def __init__(self, engines: Engines, decoding: DecodePool) -> None:
        self._engines, self._decoding = engines, decoding
        self._archive = ArchiveReader(engines.store)
        settings = engines.settings
        self._record_limits = RecordLimits(max_text_bytes=settings.max_text_bytes, max_payload_bytes=settings.max_picture_bytes)
        self._payloads = PayloadReader(engines.store, self._record_limits)
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[Place, int], Media] = OrderedDict()
        self._cached_bytes = 0

    def media(self, snapshot: CollectionSnapshot, ref: RowRef) -> Media:
        """The picture or text that a row was made of.

        Raises
        ------
        NotFoundError
            ``media_not_found``: neither log nor archive holds the record, its payload is gone and was not archived, or the row never had media.
        """
        place = _place(snapshot, ref)
        cached = self._get((place, 0))
        if cached is not None:
            return cached
        found = self._read(snapshot.record, place, ref)
        self._put((place, 0), found)
        return found

    def thumbnail(self, snapshot: CollectionSnapshot, ref: RowRef, size_pixels: int) -> Media:
        """A JPEG whose longer side has at most `size_pixels`; raises as `media`, and SettingsError for a size out of range."""
        place = _place(snapshot, ref)
        if not 1 <= size_pixels <= 4096:
            raise SettingsError(f"a thumbnail of {size_pixels} pixels cannot be made", hint="ask for 1 to 4096", code="invalid_size")
        cached = self._get((place, size_pixels))
        if cached is not None:
            return cached
        full = self.media(snapshot, ref)
        if not full.content_type.startswith("image/"):
            raise _missing("the point has no picture")
        try:
            made = Media(self._decoding.thumbnail(full.data, size_pixels), THUMBNAIL_TYPE)
        except RecordError as error:
            raise _missing(f"the picture cannot be shown: {error.message}") from error
        self._put((place, size_pixels), made)
        return made

    def _read(self, record: CollectionRecord, place: Place, ref: RowRef) -> Media:
        stored = self._engines.log.read_at(record.source_topic, place[1], place[2])
        if stored is None:
            stored = self._archive.read(record, place[1], place[2])
        if stored is None:
            raise _missing("the media log no longer holds the record, and the archive does not hold it")
        items = read_media_record(stored, record, self._record_limits)
        found = next((item for item in items if isinstance(item, MediaItem) and item.item == place[3]), None)
        if found is None or found.is_delete:
            raise _missing("the record holds no media")
        try:
            if found.parts:
                self._payloads.fill(found)
        except RecordError as error:
            return self._archived_copy(record, place, ref, f"the payload that the record names cannot be shown: {error.message}")
        if found.media_sha256 != ref.part.value(ref.row, "media_sha256"):
            return self._archived_copy(record, place, ref, "the record's bytes are not those that were indexed")
        if found.picture is not None:
            return _picture(found.picture)
        if found.text is not None:
            return Media(found.text.encode(), _TEXT)
        raise _missing("the point has vectors only")

    def _archived_copy(self, record: CollectionRecord, place: Place, ref: RowRef, problem: str) -> Media:
        """What was archived with a record whose payload is gone, or is another one by now."""
        wanted = ref.part.value(ref.row, "media_sha256")
        data = None if wanted is None else self._archive.read_media(record, place[1], place[2], wanted)
        if data is None:
            raise _missing(problem)
        return Media(data, _TEXT) if ref.part.value(ref.row, "media_type") == TEXT_TYPE else _picture(data)

    def _get(self, key: tuple[Place, int]) -> Media | None:
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
            return found

    def _put(self, key: tuple[Place, int], media: Media) -> None:
        with self._lock:
            if key in self._cache or len(media.data) > CACHE_BYTES // 4:
                return
            self._cache[key] = media
            self._cached_bytes += len(media.data)
            while self._cached_bytes > CACHE_BYTES:
                _, gone = self._cache.popitem(last=False)
                self._cached_bytes -= len(gone.data)


def _place(snapshot: CollectionSnapshot, ref: RowRef) -> Place:
    return snapshot.record.source_topic_id, ref.partition, *ref.part.media_place(ref.row)


def _picture(data: bytes) -> Media:
    kind = _TYPE_OF_FORMAT.get(sniff_format(data) or "")
    return Media(data, kind if kind in PICTURE_TYPES else "application/octet-stream")


def _missing(what: str) -> NotFoundError:
    return NotFoundError(what, hint="GET .../lineage says where it came from", code="media_not_found")
