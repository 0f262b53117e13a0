"""The footer-indexed file: named sections, then a JSON footer that says where they lie (docs/formats/footer_file.md).

    magic "HWFILE01" | sections, aligned to 64 or 4096 | footer JSON | footer length, u32 LE | crc32 of footer, u32 LE | magic "HWFILE01"

Takes: sections. Gives: bytes, and views into bytes. Owns: alignment and the footer.
Never: is asked before the object's sha256 was checked against the manifest (`check_bytes`).
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts import FORMAT_VERSION, canonical_json
from contracts.errors import CorruptError

MAGIC = b"HWFILE01"
ALIGNMENT = 64
PAGE_BYTES = 4096
"""Sections of this size and larger begin at multiples of it, so that they can be mapped alone."""
CHUNK_BYTES = 1024 * 1024
_TAIL = struct.Struct("<II8s")
MAX_FOOTER_BYTES = 16 * 1024 * 1024


def write_footer_file(kind: str, sections: Mapping[str, bytes | memoryview], meta: Mapping[str, Any]) -> bytes:
    """Lay out sections in order and close with the footer."""
    pieces: list[bytes | memoryview] = [MAGIC]
    size = len(MAGIC)
    placed: dict[str, dict[str, int]] = {}
    for name, data in sections.items():
        view = memoryview(data).cast("B")
        padding = -size % (PAGE_BYTES if len(view) >= PAGE_BYTES else ALIGNMENT)
        placed[name] = {"offset": size + padding, "size_bytes": len(view)}
        pieces += [bytes(padding), view]
        size += padding + len(view)
    footer = canonical_json.dump({"format": FORMAT_VERSION, "kind": kind, "meta": dict(meta), "sections": placed})
    return b"".join([*pieces, footer, _TAIL.pack(len(footer), zlib.crc32(footer), MAGIC)])


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says: kind, meta, and the sections' places as (offset, size) in bytes, from the file's start.

    `start` is the footer's own place in the bytes that it was read from.
    """

    kind: str
    meta: Mapping[str, Any]
    places: Mapping[str, tuple[int, int]]
    start: int


def read_footer(data: bytes | memoryview, where: str) -> Footer:
    """Read the footer at the end of a file's last bytes, of which the rest may be missing.

    Raises
    ------
    CorruptError
        Wrong magic, length, checksum or format, or the footer begins before these bytes.
    """
    view = memoryview(data).cast("B")
    if len(view) < _TAIL.size:
        raise CorruptError(f"{where}: not a headwater file")
    length, crc, magic = _TAIL.unpack(view[-_TAIL.size :])
    start = len(view) - _TAIL.size - length
    if magic != MAGIC or length > MAX_FOOTER_BYTES or start < 0:
        raise CorruptError(f"{where}: the file's end is damaged")
    footer = bytes(view[start : start + length])
    if zlib.crc32(footer) != crc:
        raise CorruptError(f"{where}: the footer's checksum does not match")
    try:
        body = canonical_json.load(footer)
        if body["format"] != FORMAT_VERSION:
            raise CorruptError(f"{where}: format {body['format']!r}", hint="upgrade headwater on this machine", code="unknown_format")
        places = {name: (place["offset"], place["size_bytes"]) for name, place in body["sections"].items()}
        if not all(type(number) is int and number >= 0 for place in places.values() for number in place):
            raise ValueError("a section's place is no number")
        return Footer(body["kind"], dict(body["meta"]), places, start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{where}: the footer cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class FooterFile:
    """A read file: its kind, meta and sections as views into the given bytes (no copy)."""

    kind: str
    meta: Mapping[str, Any]
    sections: Mapping[str, memoryview]

    @classmethod
    def read(cls, data: bytes | memoryview, where: str, kind: str | None = None) -> FooterFile:
        """Parse `data`; `where` names the object in errors.

        Raises
        ------
        CorruptError
            Wrong magic, lengths, checksum, format or kind.
        """
        view = memoryview(data).cast("B")
        if len(view) < len(MAGIC) + _TAIL.size or bytes(view[: len(MAGIC)]) != MAGIC:
            raise CorruptError(f"{where}: not a headwater file")
        footer = read_footer(view, where)
        if footer.start < len(MAGIC):
            raise CorruptError(f"{where}: the file's end is damaged")
        if kind is not None and footer.kind != kind:
            raise CorruptError(f"{where}: holds {footer.kind}, not {kind}")
        if any(start + size > footer.start for start, size in footer.places.values()):
            raise CorruptError(f"{where}: a section lies outside the file")
        return cls(footer.kind, footer.meta, {name: view[start : start + size] for name, (start, size) in footer.places.items()})

    def section(self, name: str, where: str) -> memoryview:
        """The bytes of one section; CorruptError when there is none."""
        try:
            return self.sections[name]
        except KeyError:
            raise CorruptError(f"{where}: section {name} is missing") from None


def chunk_hashes(data: bytes | memoryview) -> str:
    """Base64 of the concatenated sha256 digests of each 1 MiB chunk; empty for an object of one chunk."""
    view = memoryview(data).cast("B")
    if len(view) <= CHUNK_BYTES:
        return ""
    digests = (hashlib.sha256(view[start : start + CHUNK_BYTES]).digest() for start in range(0, len(view), CHUNK_BYTES))
    return base64.b64encode(b"".join(digests)).decode("ascii")


def check_bytes(data: bytes | memoryview, size_bytes: int, sha256: str, where: str) -> None:
    """Compare an object with what the manifest says of it, before any parser sees it.

    Raises
    ------
    CorruptError
        Size or hash differ.
    """
    if len(data) != size_bytes:
        raise CorruptError(
            f"{where}: {len(data)} bytes, the manifest says {size_bytes}", hint="restore the object, or rebuild the index from the log"
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(f"{where}: sha256 differs from the manifest's", hint="restore the object, or rebuild the index from the log")


def check_chunks(data: bytes | memoryview, first_chunk: int, chunks_sha256: str, where: str) -> None:
    """Check whole chunks of a range read, beginning with chunk number `first_chunk`, against the manifest's digests.

    Raises
    ------
    CorruptError
        A chunk differs, or lies beyond the object.
    """
    try:
        digests = base64.b64decode(chunks_sha256, validate=True)
    except ValueError:
        raise CorruptError(f"{where}: the manifest's chunk digests are not base64") from None
    view = memoryview(data).cast("B")
    for number, start in enumerate(range(0, len(view), CHUNK_BYTES), first_chunk):
        if hashlib.sha256(view[start : start + CHUNK_BYTES]).digest() != digests[number * 32 : number * 32 + 32]:
            raise CorruptError(
                f"{where}: chunk {number} differs from the manifest's digest", hint="restore the object, or rebuild the index from the log"
            )
