"""Collections and their indexes: the two small chains that name them (docs/formats/collection.md).

    n/<name>/<v>.json                          which incarnation a name means now (or none, or an alias)
    c/<name>-<incarnation>/collection/<v>.json schema, topics, acl policy, indexes, which index is active

Takes: what the operator asked for. Gives: frozen records and their canonical bytes. Owns: defaults and validation of a collection.
Never: reads or writes the store (`backends.catalog` does).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from contracts import FORMAT_VERSION, canonical_json
from contracts.attributes import EXTRA, TYPE_PATTERN
from contracts.codec import AUTO, CODEC_PATTERN, parse_codec
from contracts.encoder import Metric
from contracts.errors import CorruptError
from contracts.hashed_json import with_hash, without_hash

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
Ulid = Annotated[str, StringConstraints(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
MAX_PARTITIONS = 4096
MAX_DIMENSION = 16_384


class StoredModel(BaseModel):
    """Base of what is stored as canonical JSON and its hash: strict, frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_line(self) -> bytes:
        """Canonical JSON of this record, or of this part of one."""
        return canonical_json.dump(self.model_dump(mode="json"))

    def to_bytes(self) -> bytes:
        """What is stored: the line, and its hash (`contracts.hashed_json`)."""
        return with_hash(self.to_line())

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Any:
        """Parse stored bytes; `where` names the object in the error.

        Raises
        ------
        CorruptError
            Not what was written, or as `from_line`.
        """
        return cls.from_line(without_hash(data, where), where)

    @classmethod
    def from_line(cls, line: bytes, where: str) -> Any:
        """Parse canonical JSON whose hash was compared.

        Raises
        ------
        CorruptError
            Not the JSON of a record of this format version (types are strict: a number in quotes is no number).
        """
        try:
            value = canonical_json.load(line)
        except ValueError as error:
            raise CorruptError(f"{where}: {error}", hint="restore the object from a backup") from None
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT_VERSION:
            raise CorruptError(
                f"{where}: format {found!r}, this version reads {FORMAT_VERSION}", hint="upgrade headwater on this machine", code="unknown_format"
            )
        try:
            return cls.model_validate_json(line)  # JSON mode: strict, and an array is a tuple
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise CorruptError(
                f"{where}: field {'.'.join(map(str, first['loc']))}: {first['msg']}", hint="restore the object from a backup"
            ) from None


class FieldRecord(StoredModel):
    """One vector field of an index."""

    name: Name
    source: Literal["image", "text", "fused", "vector"] = Field(description="what is embedded; `vector` takes the producers' own")
    encoder: str | None = Field(description="name of the encoder as in settings; None for own vectors")
    space_id: str
    dimension: int = Field(ge=1, le=MAX_DIMENSION)
    metric: Metric = "cosine"
    dtype: Literal["float16", "float32"] = "float16"


class IndexRecord(StoredModel):
    """One index of a collection: its fields and its vectors topic."""

    name: Name
    fields: tuple[FieldRecord, ...] = Field(min_length=1, max_length=32)
    vectors_topic: str
    vectors_topic_id: str
    codec: str = Field(AUTO, pattern=CODEC_PATTERN)

    @model_validator(mode="after")
    def _codec_fits(self) -> IndexRecord:
        for field in self.fields:
            parse_codec(self.codec, field.dimension)
        return self

    def field(self, name: str) -> FieldRecord | None:
        """The field of that name, or None."""
        return next((field for field in self.fields if field.name == name), None)


class CollectionRecord(StoredModel):
    """One version of a collection."""

    format: int = FORMAT_VERSION
    version: int = Field(ge=1)
    name: Name
    incarnation: Ulid
    created_at: str
    schema_version: int = Field(1, ge=1)
    attributes: dict[Name, str] = {}
    acl: Literal["off", "filter"] = "off"
    partitions: int = Field(ge=1, le=MAX_PARTITIONS)
    cluster_id: str
    source_topic: str
    source_topic_id: str
    owns_source_topic: bool
    start: str = "earliest"
    id_from: str = Field("key", pattern=r"^(key|header:.+|json:.+)$")
    partitioner: Literal["producer", "murmur2", "crc32"] = "producer"
    retention_seconds: int | None = Field(None, gt=0)
    on_reject: Literal["keep", "remove"] = "keep"
    on_partial: Literal["keep", "reject"] = "keep"
    archive: Literal["on", "off"] = "on"
    notifications: bool = False
    paused_partitions: tuple[Annotated[int, Field(ge=0, lt=MAX_PARTITIONS)], ...] = ()
    active_index: Name
    indexes: tuple[IndexRecord, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> CollectionRecord:
        for name, kind in self.attributes.items():
            if not TYPE_PATTERN.match(kind):
                raise ValueError(f"attribute {name}: {kind!r} is not a type")
            if name == EXTRA:
                raise ValueError(f"{EXTRA!r} is reserved")
        if all(index.name != self.active_index for index in self.indexes):
            raise ValueError(f"active index {self.active_index!r} is not among the indexes")
        if len({index.name for index in self.indexes}) < len(self.indexes):
            raise ValueError("two indexes have one name")
        if any(partition >= self.partitions for partition in self.paused_partitions):
            raise ValueError(f"a paused partition is not below {self.partitions}")
        return self

    def index(self, name: str | None = None) -> IndexRecord:
        """The index of that name, or the active one."""
        wanted = name or self.active_index
        return next(index for index in self.indexes if index.name == wanted)

    def seen_by(self, index: str) -> CollectionRecord:
        """The record as who works on, or serves, one index sees it: that index is the active one, there are no others and no pauses.

        Two versions of a record of which this says the same ask nothing new of them.
        """
        return self.model_copy(update={"version": 1, "paused_partitions": (), "active_index": index, "indexes": (self.index(index),)})

    @property
    def dead_letter_topic(self) -> str:
        """Topic of rejected records."""
        return dead_letter_topic(self.name)

    def group(self, index: str, role: Literal["embed", "index", "maintain"]) -> str:
        """Consumer group of a role on one index."""
        return f"headwater.{self.name}.{index}.{role}"

    @property
    def archive_group(self) -> str:
        """Consumer group of the archivers."""
        return f"headwater.{self.name}.archive"


class NameRecord(StoredModel):
    """One version of a name: the incarnation it means, or that it is deleted, or an alias."""

    format: int = FORMAT_VERSION
    version: int = Field(ge=1)
    name: Name
    incarnation: Ulid | None
    deleted: bool = False
    alias: Name | None = None


def media_topic(collection: str) -> str:
    """Topic that producers write to, where the collection owns it."""
    return f"headwater.{collection}.media"


def vectors_topic(collection: str, index: str) -> str:
    """Topic of embedded batches, one per index."""
    return f"headwater.{collection}.{index}.vectors"


def dead_letter_topic(collection: str) -> str:
    """Topic of rejected records with their original bytes."""
    return f"headwater.{collection}.dead-letter"


def own_vector_space(field: str, dimension: int, metric: str) -> str:
    """Space of vectors that producers bring themselves: named by field, dimension and metric."""
    body = canonical_json.dump({"field": field, "dimension": dimension, "metric": metric})
    return f"own:{field}@{hashlib.sha256(body).hexdigest()[:16]}"
