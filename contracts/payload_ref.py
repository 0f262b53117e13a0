"""The claim check: media that lies in the object store, and the reference that a record carries instead (docs/formats/media_record.md).

Takes: JSON out of a header or a part, or what was uploaded. Gives: a `PayloadRef`. Owns: its JSON, and which objects a record may name.
Never: fetches, or lets a record name an object outside its own collection's `claim/` prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from contracts import canonical_json
from contracts.collection import CollectionRecord
from contracts.errors import RecordError
from contracts.object_keys import parse_key

MAX_REF_BYTES = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class PayloadRef:
    """Where media lies, and what is known of it; a bucket is named only where it is not Headwater's own.

    `size_bytes`, `sha256`, `etag` and `version_id` are checked where they are known.
    """

    key: str
    size_bytes: int | None = None
    sha256: bytes | None = None
    bucket: str | None = None
    etag: str | None = None
    version_id: str | None = None


def encode_payload_ref(ref: PayloadRef) -> bytes:
    """JSON of a claim check, as `parse_payload_ref` reads it."""
    return canonical_json.dump({"key": ref.key, "sha256": None if ref.sha256 is None else ref.sha256.hex(), "size": ref.size_bytes})


def parse_payload_ref(value: bytes | dict[str, Any], collection: CollectionRecord) -> PayloadRef:
    """Read a claim check: JSON text, or the object that it stands for.

    Raises
    ------
    RecordError
        ``bad_envelope``: not ``{key, sha256, size}``, or the key is none of this collection's claims.
    """
    try:
        found = canonical_json.load(value, MAX_REF_BYTES) if isinstance(value, bytes) else value
    except ValueError as error:
        raise RecordError("bad_envelope", f"the payload reference: {error}") from None
    if not isinstance(found, dict) or set(found) != {"key", "sha256", "size"}:
        raise RecordError("bad_envelope", "the payload reference is not a JSON object of key, sha256 and size")
    key, sha256, size = found["key"], found["sha256"], found["size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 2**63:
        raise RecordError("bad_envelope", "the payload reference's size is not a number of bytes above 0")
    if not isinstance(sha256, str) or not _SHA256.match(sha256):
        raise RecordError("bad_envelope", "the payload reference's sha256 is not 64 hex digits in lower case")
    parsed = parse_key(key) if isinstance(key, str) else None
    fields = {} if parsed is None or parsed.kind != "claim" else parsed.fields
    if (fields.get("name"), fields.get("incarnation")) != (collection.name, collection.incarnation):
        raise RecordError("bad_envelope", f"the payload reference's key is none of c/{collection.name}-{collection.incarnation}/claim/")
    return PayloadRef(key, size, bytes.fromhex(sha256))
