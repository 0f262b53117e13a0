"""The manifest: the whole state of one partition of one index, one object per version (docs/formats/manifest.md).

A commit is the creation of version v+1 by put-if-absent. Everything a reader needs is in it or named by it with size and sha256.

Takes: what a commit changes. Gives: frozen manifests and their canonical bytes. Owns: the fields and their limits.
Never: is edited; `previous` chains each version to the bytes of the one before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from contracts import FORMAT_VERSION, canonical_json
from contracts.collection import Name, StoredModel, Ulid
from contracts.errors import CorruptError, SettingsError
from contracts.footer_file import chunk_hashes
from contracts.hashed_json import without_hash
from contracts.object_keys import validate_key

MAX_OFFSET = 2**63 - 1


def _checked_key(key: str) -> str:
    try:
        return validate_key(key)
    except SettingsError as error:  # a ValueError is what pydantic turns into "field ...: ..."
        raise ValueError(error.message) from None


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, AfterValidator(_checked_key)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]


class ObjectEntry(StoredModel):
    """A stored object: key, size, sha256, and one sha256 per 1 MiB chunk (base64; empty for one chunk)."""

    key: Key
    size_bytes: int = Field(ge=0)
    sha256: Sha256
    chunks_sha256: str = ""

    @classmethod
    def of(cls, key: str, data: bytes) -> ObjectEntry:
        """Entry of `data` under `key`."""
        return cls(key=key, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), chunks_sha256=chunk_hashes(data))


class Interval(StoredModel):
    """Media offsets ``[start_offset, next_offset)``; never empty."""

    start_offset: Offset
    next_offset: Offset

    @model_validator(mode="after")
    def _covers_something(self) -> Interval:
        if self.next_offset <= self.start_offset:
            raise ValueError(f"offsets {self.start_offset} to {self.next_offset} cover nothing")
        return self


class LedgerEntry(Interval):
    """A ledger object and the media offsets that its runs tile."""

    object: ObjectEntry


class SegmentEntry(Interval):
    """A committed segment: its parts by name (`rows`, `field.<name>`, later `lexical`)."""

    segment_id: Ulid
    rows: int = Field(ge=0)
    min_event_time_us: int | None = None
    max_event_time_us: int | None = None
    schema_version: int = Field(ge=1)
    parts: dict[str, ObjectEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size_bytes for part in self.parts.values())


class Previous(StoredModel):
    """The version before, by number and sha256 of its bytes."""

    version: int = Field(ge=1)
    sha256: Sha256


class Epochs(StoredModel):
    """Claims: each commit of a role must hold the newest epoch of that role."""

    builder: int = Field(0, ge=0)
    compactor: int = Field(0, ge=0)
    gc: int = Field(0, ge=0)


class Checkpoint(StoredModel):
    """Where the index stands: the first vectors batch not fully consumed, and the media offset expected there."""

    vectors_offset: Offset
    media_offset: Offset


class ChainedModel(StoredModel):
    """What every version of a partition's chain carries, of an index or of the archive: a commit is the creation of the next version."""

    format: int = FORMAT_VERSION
    version: int = Field(ge=1)
    previous: Previous | None
    commit_id: Ulid
    writer: str = Field(min_length=1, max_length=200)
    committed_at: str
    incarnation: Ulid
    partition: int = Field(ge=0)
    cluster_id: str
    media_topic_id: str
    checkpoint: StoredModel
    epochs: StoredModel


class Manifest(ChainedModel):
    """One version of one partition of one index."""

    index: Name
    vectors_topic_id: str
    schema_version: int = Field(ge=1)
    origin_offset: Offset
    checkpoint: Checkpoint
    epochs: Epochs = Epochs()
    published: dict[str, Ulid] = {}
    generation: dict[Name, Annotated[int, Field(ge=0)]] = {}
    segments: tuple[SegmentEntry, ...] = ()
    deletes: tuple[ObjectEntry, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()

    @property
    def rows(self) -> int:
        """Stored rows, deleted ones included."""
        return sum(segment.rows for segment in self.segments)


Chained = TypeVar("Chained", bound=ChainedModel)


class ReadVersion(Generic[Chained]):
    """One version of a chain with the sha256 of the bytes it was read from, which the next version must name.

    Parameters
    ----------
    manifest : Chained
        What the bytes say.
    data : bytes
        The bytes as stored.
    """

    __slots__ = ("_listed", "manifest", "sha256")

    def __init__(self, manifest: Chained, data: bytes) -> None:
        self.manifest = manifest
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._listed: dict[str, list[bytes]] | None = None  # made when a later version is read

    @staticmethod
    def parse(model: type[Chained], data: bytes, where: str, before: ReadVersion[Chained] | None = None) -> ReadVersion[Chained]:
        """Read stored bytes; CorruptError where they are no `model` of this format.

        A version lists mostly what the one `before` it lists. What stands there in the same bytes was checked and is taken over: reading a commit
        costs as much as it brought, and not as much as there is.
        """
        line = without_hash(data, where)
        read = None if before is None else before._later(model, line, data, where)
        return ReadVersion(model.from_line(line, where), data) if read is None else read

    def _later(self, model: type[Chained], line: bytes, data: bytes, where: str) -> ReadVersion[Chained] | None:
        """A later version whose lists begin as ours; None where that is not plainly so, or where something is wrong with it."""
        if b"\\" in line or len(line) > canonical_json.MAX_JSON_BYTES:  # without escapes no string holds a quote: bytes tell where a list begins
            return None
        if self._listed is None:
            self._listed = _listed(self.manifest, {})
        cut, kept = line, dict[str, list[bytes]]()
        for name, entries in self._listed.items():
            marker = b'"%s":[' % name.encode()
            start = cut.find(marker) + len(marker)
            if start < len(marker) or cut.find(marker, start) >= 0:
                return None
            count, end = _common(entries, cut, start)
            kept[name], cut = entries[:count], cut[:start] + cut[end:]
        try:
            rest = model.from_line(cut, where)
            fields: dict[str, Any] = {name: getattr(rest, name) for name in model.model_fields}
            for name, entries in kept.items():
                fields[name] = (*getattr(self.manifest, name)[: len(entries)], *fields[name])
            later = ReadVersion(model(**fields), data)
        except (CorruptError, ValidationError):  # who reads it as a whole says where
            return None
        later._listed = _listed(later.manifest, kept)
        return later

    def next(self, **changes: Any) -> Chained:
        """Return the version that would follow this one, with `changes` applied and `previous` set."""
        model = type(self.manifest)
        fields = {name: getattr(self.manifest, name) for name in model.model_fields}
        fields.update(changes)
        fields.update(version=self.manifest.version + 1, previous=Previous(version=self.manifest.version, sha256=self.sha256))
        return model(**fields)


def _listed(manifest: ChainedModel, known: Mapping[str, list[bytes]]) -> dict[str, list[bytes]]:
    """The bytes of all entries in the lists of a manifest that hold some; those of the first ones may be known."""
    out: dict[str, list[bytes]] = {}
    for name in type(manifest).model_fields:
        value = getattr(manifest, name)
        if isinstance(value, tuple) and value and isinstance(value[0], StoredModel):
            first = known.get(name, [])
            out[name] = first + [entry.to_line() for entry in value[len(first) :]]
    return out


def _common(entries: list[bytes], data: bytes, start: int) -> tuple[int, int]:
    """How many of these entries a list begins with that lies at `start`, and where what it has beside them goes on."""
    count, end, at = 0, start, start
    for entry in entries:
        if not data.startswith(entry, at):
            break
        at += len(entry)
        following = data[at : at + 2]
        if following[:1] == b"]":
            return count + 1, at
        if following != b",{":
            break
        at += 1
        count, end = count + 1, at
    return count, end


ReadManifest = ReadVersion[Manifest]
"""A version of an index's chain."""


def object_version(key: str) -> int:
    """Version number at the end of a chain key (``.../<v:020d>.json``)."""
    match = re.search(r"/([0-9]{20})\.json\Z", key)
    if not match:
        raise ValueError(f"{key} is not a versioned key")
    return int(match[1])
