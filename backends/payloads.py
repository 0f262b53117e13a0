"""Payloads: media that a record only names, fetched from the object store and checked (docs/formats/media_record.md, claim check, notifications).

Takes: items whose parts name a payload. Gives: the same items with their media, or whether there is none any more.
Owns: the checks, which come before any parser sees the bytes.
Never: holds more than one payload at a time, or rejects an item because the store does not answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from contracts.errors import RecordError
from contracts.media_item import PICTURE_TYPES, TEXT_TYPE, MediaItem, MediaPart, RecordLimits, fill_item
from contracts.payload_ref import PayloadRef
from contracts.store import BucketObject, ObjectStore


class PayloadReader:
    """Fetches payloads; thread-safe as its store is.

    Parameters
    ----------
    store : ObjectStore
        Holds the claims; the buckets of notifications are read through the same endpoint and credentials.
    limits : RecordLimits
        ``max_payload_bytes`` and ``max_text_bytes`` are read.
    """

    def __init__(self, store: ObjectStore, limits: RecordLimits) -> None:
        self._store, self._limits = store, limits

    def fill(self, item: MediaItem) -> None:
        """Fetch what the item's parts name and give it picture and text; nothing is changed where that fails.

        Raises
        ------
        RecordError
            ``too_large``, ``bad_text``, ``payload_missing``, ``payload_mismatch``, or what `fill_item` raises.
        UnavailableError
            The store does not answer; the item is as good as before.
        """
        fill_item(item, [part if part.ref is None else self._fetched(part, part.ref) for part in item.parts], self._limits)

    def is_gone(self, item: MediaItem) -> bool:
        """Whether nothing lies where a delete's parts point to, as far as this store reads; UnavailableError where it does not answer."""
        refs = [part.ref for part in item.parts if part.ref is not None and part.ref.bucket is not None]
        try:
            return all(self._store.get_from_bucket(ref.bucket or "", ref.key, None, 1) is None for ref in refs)
        except RecordError:  # a bucket of another region: nothing was indexed from there
            return True

    def _fetched(self, part: MediaPart, ref: PayloadRef) -> MediaPart:
        if ref.size_bytes is not None and ref.size_bytes > self._limits.max_payload_bytes:
            raise RecordError("too_large", f"the payload has {ref.size_bytes} bytes, more than {self._limits.max_payload_bytes}")
        if part.content_type == TEXT_TYPE and (ref.size_bytes or 0) > self._limits.max_text_bytes:
            raise RecordError("bad_text", f"the text has {ref.size_bytes} bytes, more than {self._limits.max_text_bytes}")
        if ref.bucket is not None:
            return self._from_bucket(part, ref, ref.bucket)
        size_bytes = self._limits.max_payload_bytes if ref.size_bytes is None else ref.size_bytes
        data = self._store.get_range(ref.key, 0, size_bytes + 1)  # one byte more than there may be: a longer object shows
        if data is None:
            raise RecordError("payload_missing", f"there is no object {ref.key}")
        return replace(part, data=_checked(data, ref, len(data)), ref=None)

    def _from_bucket(self, part: MediaPart, ref: PayloadRef, bucket: str) -> MediaPart:
        found = self._store.get_from_bucket(bucket, ref.key, ref.version_id, self._limits.max_payload_bytes)
        if found is None:
            raise RecordError("payload_missing", f"there is no object {ref.key[:200]!r} in bucket {bucket}")
        if found.size_bytes > self._limits.max_payload_bytes:
            raise RecordError("too_large", f"the object has {found.size_bytes} bytes, more than {self._limits.max_payload_bytes}")
        if ref.etag is not None and found.etag != ref.etag:
            raise RecordError(
                "payload_mismatch", "the object was replaced since: its entity tag differs; the newer object has a notification of its own"
            )
        return replace(part, data=_checked(found.data, ref, found.size_bytes), content_type=part.content_type or _content_type(found), ref=None)


def _checked(data: bytes, ref: PayloadRef, size_bytes: int) -> bytes:
    if ref.size_bytes is not None and size_bytes != ref.size_bytes:
        raise RecordError("payload_mismatch", f"the object has another size than the {ref.size_bytes} bytes that the record names")
    if ref.sha256 is not None and hashlib.sha256(data).digest() != ref.sha256:
        raise RecordError("payload_mismatch", "the object has another sha256 than the record names")
    return data


def _content_type(found: BucketObject) -> str:
    """The stored content type where it is one that we index; uploaders often leave a meaningless one, and then the first bytes tell."""
    stored = found.content_type.split(";")[0].strip().lower()
    return stored if stored in (*PICTURE_TYPES, TEXT_TYPE) else ""
