"""Object keys: every key is formatted, parsed and validated here, and nowhere else.

Takes: names, versions, epochs, ULIDs. Gives: keys, and what a key says. Owns: the layout of the bucket (docs/formats/object_keys.md).
Never: joins strings into a key outside this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contracts.errors import SettingsError

MAX_KEY_BYTES = 1024
ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_KEY = re.compile(r"(?!\.{1,2}(/|\Z))[A-Za-z0-9._=-]+(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._=-]+)*\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")

_COLLECTION = r"c/(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,62})-(?P<incarnation>" + ULID + ")"
_INDEX = _COLLECTION + r"/i/(?P<index>[A-Za-z0-9][A-Za-z0-9_-]{0,62})"
_PARTITION = _INDEX + r"/p(?P<partition>[0-9]{5})"
PATTERNS: dict[str, str] = {
    "name": r"n/(?P<name>[A-Za-z0-9][A-Za-z0-9_-]{0,62})/(?P<version>[0-9]{20})\.json",
    "collection": _COLLECTION + r"/collection/(?P<version>[0-9]{20})\.json",
    "archive_manifest": _COLLECTION + r"/archive/p(?P<partition>[0-9]{5})/manifest/(?P<version>[0-9]{20})\.json",
    "archive_tar": _COLLECTION + r"/archive/p(?P<partition>[0-9]{5})/(?P<role>[bm])(?P<epoch>[0-9]{10})/(?P<ulid>" + ULID + r")\.tar",
    "archive_boundary": _COLLECTION + r"/archive/p(?P<partition>[0-9]{5})/gc/boundary",
    "claim": _COLLECTION + r"/claim/(?P<sha256>[0-9a-f]{64})",
    "generation": _INDEX + r"/generation/(?P<generation>[0-9]{10})/(?P<field>[A-Za-z0-9][A-Za-z0-9_-]{0,62})",
    "manifest": _PARTITION + r"/manifest/(?P<version>[0-9]{20})\.json",
    "part": _PARTITION + r"/(?P<role>[bm])(?P<epoch>[0-9]{10})/(?P<ulid>" + ULID + r")\.(?P<part>[A-Za-z0-9_.-]+)",
    "boundary": _PARTITION + r"/gc/boundary",
    "pin": _PARTITION + r"/pins/(?P<ulid>" + ULID + r")\.json",
    "purge": _PARTITION + r"/purge/(?P<ulid>" + ULID + r")\.json",
}
"""One pattern per kind of object; `parse_key` reads by them and the tests format and parse by them."""

_COMPILED = {kind: re.compile(pattern + r"\Z") for kind, pattern in PATTERNS.items()}


def validate_key(key: str) -> str:
    """Return `key` if it can only name an object inside the bucket.

    Raises
    ------
    SettingsError
        Empty, longer than 1,024 bytes, or with an empty segment, ``.``, ``..`` or a character outside ``A-Za-z0-9._=-``
        (reliability.md S12: minio-py's raw put does not check keys).
    """
    if not _KEY.match(key) or len(key) > MAX_KEY_BYTES:
        raise SettingsError(f"object key {key[:80]!r} is not valid", hint="keys are path segments of A-Z a-z 0-9 . _ = -", code="invalid_key")
    return key


def validate_name(name: str, what: str = "collection") -> str:
    """Return `name` if it can name a collection, index or field.

    Raises
    ------
    SettingsError
        Not 1 to 63 letters, digits, ``_`` and ``-``, beginning with a letter or digit.
    """
    if not _NAME.match(name):
        raise SettingsError(
            f"{what} name {name[:80]!r} is not valid",
            hint="use 1 to 63 letters, digits, _ and -, beginning with a letter or digit",
            code="invalid_name",
        )
    return name


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """What a key says: its kind (a key of `PATTERNS`) and its fields as text."""

    kind: str
    fields: dict[str, str]


def parse_key(key: str) -> ParsedKey | None:
    """Read a key back; None when it is none of ours."""
    for kind, pattern in _COMPILED.items():
        if match := pattern.match(key):
            return ParsedKey(kind, match.groupdict())
    return None


def _made(kind: str, key: str) -> str:
    """Return a formatted key if `parse_key` would read it back as this kind (numbers in range, ULIDs, hashes)."""
    if not _COMPILED[kind].match(key) or len(key) > MAX_KEY_BYTES:
        raise SettingsError(f"{key[:120]!r} is not a key of kind {kind}", hint="a number, ULID or hash in it is out of range", code="invalid_key")
    return key


def name_prefix(name: str) -> str:
    """Prefix of a name's chain."""
    return f"n/{validate_name(name)}/"


def name_key(name: str, version: int) -> str:
    """Key of one version of a name: which incarnation it means."""
    return _made("name", f"{name_prefix(name)}{version:020d}.json")


NAMES_PREFIX, COLLECTIONS_PREFIX = "n/", "c/"


@dataclass(frozen=True, slots=True)
class CollectionKeys:
    """Keys under one incarnation of a collection."""

    name: str
    incarnation: str

    def __post_init__(self) -> None:
        validate_name(self.name)
        if not re.fullmatch(ULID, self.incarnation):
            raise SettingsError(f"incarnation {self.incarnation[:40]!r} is not a ULID", code="invalid_key")

    @property
    def prefix(self) -> str:
        """Prefix of everything that belongs to this incarnation."""
        return f"c/{self.name}-{self.incarnation}/"

    @property
    def versions_prefix(self) -> str:
        """Prefix of the collection's own chain."""
        return f"{self.prefix}collection/"

    def version(self, version: int) -> str:
        """Key of one version of the collection's schema and settings."""
        return _made("collection", f"{self.versions_prefix}{version:020d}.json")

    def claim(self, sha256_hex: str) -> str:
        """Key of a claim-check payload, by its content."""
        return _made("claim", f"{self.prefix}claim/{sha256_hex}")

    def archive(self, partition: int) -> ArchiveKeys:
        """Keys of the archive of one partition of the media topic."""
        return ArchiveKeys(self, partition)

    def index(self, index: str) -> IndexKeys:
        """Keys of one of the collection's indexes."""
        return IndexKeys(self, validate_name(index, "index"))


@dataclass(frozen=True, slots=True)
class ArchiveKeys:
    """Keys of one partition's archive: manifests, tars, GC boundary."""

    collection: CollectionKeys
    partition: int

    @property
    def prefix(self) -> str:
        """Prefix of the partition's archive."""
        return f"{self.collection.prefix}archive/p{self.partition:05d}/"

    @property
    def manifests_prefix(self) -> str:
        """Prefix of the manifest chain."""
        return f"{self.prefix}manifest/"

    def manifest(self, version: int) -> str:
        """Key of one manifest version."""
        return _made("archive_manifest", f"{self.manifests_prefix}{version:020d}.json")

    def tar(self, role: str, epoch: int, ulid: str) -> str:
        """Key of one WebDataset tar, under the claim (``b`` archiver, ``m`` purge) that wrote it."""
        return _made("archive_tar", f"{self.prefix}{role}{epoch:010d}/{ulid}.tar")

    @property
    def boundary(self) -> str:
        """Key of the highest manifest version that may be deleted."""
        return _made("archive_boundary", f"{self.prefix}gc/boundary")


@dataclass(frozen=True, slots=True)
class IndexKeys:
    """Keys of one index of a collection."""

    collection: CollectionKeys
    index: str

    @property
    def prefix(self) -> str:
        """Prefix of the index."""
        return f"{self.collection.prefix}i/{self.index}/"

    @property
    def generations_prefix(self) -> str:
        """Prefix of the generations of all fields."""
        return f"{self.prefix}generation/"

    def generation(self, generation: int, field: str) -> str:
        """Key of the quantizers of one field in one generation."""
        return _made("generation", f"{self.generations_prefix}{generation:010d}/{validate_name(field, 'field')}")

    def partition(self, partition: int) -> PartitionKeys:
        """Keys of one partition of the index."""
        return PartitionKeys(self, partition)


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """Keys of one partition of one index: manifests, segment parts, GC boundary, pins, purge requests."""

    index: IndexKeys
    partition: int

    @property
    def prefix(self) -> str:
        """Prefix of the partition."""
        return f"{self.index.prefix}p{self.partition:05d}/"

    @property
    def manifests_prefix(self) -> str:
        """Prefix of the manifest chain."""
        return f"{self.prefix}manifest/"

    def manifest(self, version: int) -> str:
        """Key of one manifest version."""
        return _made("manifest", f"{self.manifests_prefix}{version:020d}.json")

    def part(self, role: str, epoch: int, ulid: str, part: str) -> str:
        """Key of a segment part, delete delta or ledger, under the claim (``b`` builder, ``m`` compactor) that wrote it."""
        return _made("part", f"{self.prefix}{role}{epoch:010d}/{ulid}.{part}")

    @property
    def boundary(self) -> str:
        """Key of the highest manifest version that may be deleted."""
        return _made("boundary", f"{self.prefix}gc/boundary")

    @property
    def pins_prefix(self) -> str:
        """Prefix of readers' pins."""
        return f"{self.prefix}pins/"

    def pin(self, ulid: str) -> str:
        """Key of a reader's pin."""
        return _made("pin", f"{self.pins_prefix}{ulid}.json")

    @property
    def purges_prefix(self) -> str:
        """Prefix of what purges ask of the compactor."""
        return f"{self.prefix}purge/"

    def purge(self, ulid: str) -> str:
        """Key of one request of a purge."""
        return _made("purge", f"{self.purges_prefix}{ulid}.json")
