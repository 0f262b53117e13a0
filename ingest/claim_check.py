"""The claim check from the producer's side: large media goes into the object store, and the record names it.

Takes: a record that is ready to send. Gives: the same record, or a light one whose media lies under the collection's `claim/` prefix.
Owns: when media is too large for the log. Never: sends a reference before the object it names is stored whole.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from contracts.collection import CollectionRecord
from contracts.errors import RecordError, UnavailableError
from contracts.media_envelope import ARROW_TYPE, CLOUDEVENT_TYPE, PARTS_TYPE, REF_HEADERS
from contracts.object_keys import CollectionKeys
from contracts.payload_ref import PayloadRef, encode_payload_ref
from contracts.settings import Settings
from contracts.store import ObjectStore, PutOutcome
from ingest.records import OutgoingRecord

PUT_ATTEMPTS = 4
_WITH_ENVELOPE = (ARROW_TYPE, CLOUDEVENT_TYPE, PARTS_TYPE)


class ClaimCheck:
    """Puts large media into the store. Safe between threads.

    Parameters
    ----------
    store : ObjectStore
        Takes the media, named by its sha256, so that the same media is stored once.
    collection : CollectionRecord
        Whose `claim/` prefix it goes under.
    settings : Settings
        ``claim_check_bytes`` and ``max_picture_bytes`` are read.
    record_limit_bytes : int
        Largest record that the media topic takes.
    """

    def __init__(self, store: ObjectStore, collection: CollectionRecord, settings: Settings, record_limit_bytes: int) -> None:
        self._store, self._settings, self._record_limit_bytes = store, settings, record_limit_bytes
        self._keys = CollectionKeys(collection.name, collection.incarnation)

    def lighten(self, record: OutgoingRecord) -> OutgoingRecord:
        """The record itself where it is small; else one without a value whose header names the media, which is stored by then.

        Raises
        ------
        RecordError
            ``too_large``: no worker would take media of this size; nothing was stored.
        UnavailableError
            The store does not answer.
        """
        value = record.value
        if not value or _has_envelope(record):
            return record
        if len(value) > self._settings.max_picture_bytes:
            raise RecordError("too_large", f"media of {len(value)} bytes; max_picture_bytes is {self._settings.max_picture_bytes}")
        if len(value) <= self._settings.claim_check_bytes and record.size_bytes <= self._record_limit_bytes:
            return record
        digest = hashlib.sha256(value)
        ref = PayloadRef(self._keys.claim(digest.hexdigest()), len(value), digest.digest())
        self._put(ref, value)
        header = REF_HEADERS[any(name == "ce_specversion" for name, _ in record.headers)]
        return replace(record, value=b"", headers=(*record.headers, (header, encode_payload_ref(ref))))

    def _put(self, ref: PayloadRef, data: bytes) -> None:
        """Store the object once; where the outcome is not known, what is there is looked at."""
        for _ in range(PUT_ATTEMPTS):
            if self._store.put_if_absent(ref.key, data) is PutOutcome.CREATED:
                return
            found = self._store.head(ref.key)
            if found is not None and found.size_bytes == len(data):
                return
        raise UnavailableError(f"object {ref.key} could not be stored", hint="check the object store, then send again")


def _has_envelope(record: OutgoingRecord) -> bool:
    """Whether the value is more than media, so that it cannot lie somewhere else."""
    content_type = next((value for name, value in reversed(record.headers) if name == "content-type"), b"").decode("latin-1")
    return content_type.split(";")[0].strip().lower() in _WITH_ENVELOPE
