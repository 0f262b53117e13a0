"""The archive's tar: WebDataset samples, then an index of them as a member that WebDataset skips (docs/formats/archive.md).

    sample, sample, ... | `__index__`: Arrow file, a row per record | two zero blocks

The manifest says where the index lies, so that one small range read finds a record and a second one reads it.

Takes: log records. Gives: a tar; from its index the place, hash and ids of each record. Owns: tar headers, the index's columns.
Never: is parsed before its bytes equal the sha256 that the manifest or the index gives.
"""

from __future__ import annotations

import hashlib
import io
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from contracts import FORMAT_VERSION, canonical_json
from contracts.archive_record import Items, Members, sample_key, to_members
from contracts.collection import CollectionRecord
from contracts.errors import CorruptError, RecordError
from contracts.item import ID_HASH_BYTES, id_hash
from contracts.log import LogRecord
from contracts.media_origin import rejected_unread
from contracts.media_record import MediaItem, RecordLimits, read_media_record
from contracts.object_keys import CollectionKeys

UNREAD = "unread"
"""What stands as the reason in the sample of a record whose value nobody may read."""
INDEX_MEMBER = "__index__"
_BLOCK = 512
_AFTER_CHECKSUM = (b"0" + bytes(100) + b"ustar\00000").ljust(_BLOCK - 156, b"\0")
"""A regular file, no link name, magic and version, no names of owners, no device, no prefix."""
_MAX_MTIME = 8**11 - 1
_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("start", pa.int64()),
        pa.field("size_bytes", pa.int64()),
        pa.field("sha256", pa.binary(32)),
        pa.field("ids", pa.list_(pa.binary(ID_HASH_BYTES))),
        pa.field("claims", pa.list_(pa.binary(32))),
    ],
    metadata={"hw_kind": "archive_index", "hw_format": str(FORMAT_VERSION)},
)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One record of a tar: its bytes ``[start, start + size_bytes)``, their sha256, the hashes of its ids and of the claim checks it names.

    `start` is None for a record that was purged.
    """

    offset: int
    start: int | None
    size_bytes: int
    sha256: bytes
    ids: tuple[bytes, ...] = ()
    claims: tuple[bytes, ...] = ()


class TarIndex:
    """The index of a tar as its rows, in offset order.

    Parameters
    ----------
    table : pa.Table
        Columns of docs/formats/archive.md.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self.offsets: list[int] = self._table.column("offset").to_pylist()
        self._at = {offset: row for row, offset in enumerate(self.offsets)}

    @classmethod
    def read(cls, data: bytes, where: str) -> TarIndex:
        """Read an index whose sha256 was compared with the manifest's; CorruptError where it is none."""
        try:
            table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{where}: the tar's index cannot be read: {error}") from None
        if not table.schema.equals(_SCHEMA, check_metadata=True):
            raise CorruptError(f"{where}: not an archive index of format {FORMAT_VERSION}", code="unknown_format")
        return cls(table)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def size_bytes(self) -> int:
        """Memory that the index takes, about."""
        return int(self._table.nbytes) + 120 * len(self.offsets)

    def find(self, offset: int) -> IndexRow | None:
        """The record at a media offset, or None for a gap."""
        at = self._at.get(offset)
        return None if at is None else self._row(at)

    def run(self, offset: int, most_records: int, most_bytes: int) -> tuple[list[IndexRow], bool]:
        """Records from a media offset on, the first one whatever its size; True where they are the last ones of the tar."""
        first = bisect_left(self.offsets, offset)
        rows: list[IndexRow] = []
        left_bytes = most_bytes
        for at in range(first, min(len(self.offsets), first + most_records)):
            row = self._row(at)
            left_bytes -= row.size_bytes
            if rows and left_bytes < 0:
                break
            rows.append(row)
        return rows, first + len(rows) == len(self.offsets)

    def rows(self) -> list[IndexRow]:
        """All records, in offset order."""
        return [self._row(at) for at in range(len(self.offsets))]

    def with_ids(self, hashes: Iterable[bytes]) -> list[IndexRow]:
        """Records that hold one of the ids, by id hash."""
        return self._with("ids", list(hashes), ID_HASH_BYTES)

    def with_claims(self, claims: Iterable[bytes]) -> list[IndexRow]:
        """Records that name one of the claim-check objects, by sha256."""
        return self._with("claims", list(claims), 32)

    def _with(self, name: str, values: list[bytes], width: int) -> list[IndexRow]:
        column = self._table.column(name).combine_chunks()
        wanted = pc.is_in(column.flatten(), pa.array(values, pa.binary(width)))
        parents = pc.list_parent_indices(column)
        return [self._row(at) for at in sorted(set(pc.filter(parents, wanted).to_pylist()))]

    def _row(self, at: int) -> IndexRow:
        row = self._table.slice(at, 1).to_pylist()[0]
        return IndexRow(
            row["offset"], row["start"], row["size_bytes"] or 0, row["sha256"] or b"", tuple(row["ids"] or ()), tuple(row["claims"] or ())
        )


@dataclass(frozen=True, slots=True)
class FinishedTar:
    """A tar's bytes, its index, and where that lies in them."""

    data: bytes
    rows: tuple[IndexRow, ...]
    index_start: int
    index_bytes: int
    index_sha256: str

    @property
    def records(self) -> int:
        """Records in the tar."""
        return sum(row.start is not None for row in self.rows)


class TarWriter:
    """Builds one tar in memory, a record at a time.

    Parameters
    ----------
    collection : CollectionRecord
        Whose records; ``archive: off`` leaves media out.
    limits : RecordLimits
        Under which records are read.
    fill : callable, optional
        Fetches what an item only names (`backends.payloads`), so that the sample holds it; where that raises RecordError it goes without.
    """

    def __init__(self, collection: CollectionRecord, limits: RecordLimits, fill: Callable[[MediaItem], None] | None = None) -> None:
        self.collection, self._limits = collection, limits
        self._fill = fill if collection.archive == "on" else None
        self._buffer = bytearray()
        self._rows: list[IndexRow] = []

    @property
    def size_bytes(self) -> int:
        """Bytes so far, without the index."""
        return len(self._buffer)

    @property
    def records(self) -> int:
        """Records so far."""
        return sum(row.start is not None for row in self._rows)

    def encode(self, record: LogRecord) -> tuple[IndexRow, bytes]:
        """What `copy` would append for a record.

        Raises
        ------
        UnavailableError
            A payload's store does not answer: encode it again later.
        """
        items = read_media_record(record, self.collection, self._limits)
        claims = claims_of(record, items, self.collection)
        if self._fill is not None and len(items) == 1 and isinstance(items[0], MediaItem) and items[0].parts and not items[0].is_delete:
            with suppress(RecordError):
                self._fill(items[0])
        members = to_members(record, items, self.collection, keep_media=self.collection.archive == "on")
        data, ids = _tar_members(record, members), ids_of(record, items, self.collection)
        return IndexRow(record.offset, 0, len(data), hashlib.sha256(data).digest(), tuple(ids), tuple(claims)), data

    def encode_unread(self, record: LogRecord) -> tuple[IndexRow, bytes]:
        """The same for a record that ended processes which read it: its bytes as they came, with the ids that stand outside its value."""
        item = rejected_unread(record, self.collection, UNREAD, "it is kept unread")
        members = to_members(record, [item], self.collection, keep_media=self.collection.archive == "on")
        raws = (record.key, record.header("ce_id"), _id_header(record, self.collection))
        named = [item.id, *(raw.decode("utf-8", "replace") for raw in raws if raw)]
        ids = [id_hash(item_id) for item_id in dict.fromkeys(named) if item_id and _is_utf8(item_id)]
        data, claims = _tar_members(record, members), claims_of(record, [item], self.collection)
        return IndexRow(record.offset, 0, len(data), hashlib.sha256(data).digest(), tuple(ids), tuple(claims)), data

    def add(self, record: LogRecord) -> None:
        """Append a record, which must lie behind the one before."""
        self.copy(*self.encode(record))

    def copy(self, row: IndexRow, data: bytes) -> None:
        """Append an encoded record, or the bytes of another tar's record unchanged."""
        self._rows.append(replace(row, start=len(self._buffer)))
        self._buffer += data

    def skip(self, offset: int) -> None:
        """Note a record that was purged."""
        self._rows.append(IndexRow(offset, None, 0, b""))

    def finish(self) -> FinishedTar:
        """Close the tar with its index; nothing can be added after that."""
        columns = {
            "offset": [row.offset for row in self._rows],
            "start": [row.start for row in self._rows],
            "size_bytes": [None if row.start is None else row.size_bytes for row in self._rows],
            "sha256": [None if row.start is None else row.sha256 for row in self._rows],
            "ids": [list(row.ids) for row in self._rows],
            "claims": [list(row.claims) for row in self._rows],
        }
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(pa.table([pa.array(columns[target.name], target.type) for target in _SCHEMA], schema=_SCHEMA))
        index = sink.getvalue()
        start = len(self._buffer) + _BLOCK
        self._buffer += _tar_member(INDEX_MEMBER, index, 0) + bytes(2 * _BLOCK)
        return FinishedTar(bytes(self._buffer), tuple(self._rows), start, len(index), hashlib.sha256(index).hexdigest())


def _tar_members(record: LogRecord, members: Members) -> bytes:
    key, mtime = sample_key(record.offset), min(max(record.timestamp_ms // 1000, 0), _MAX_MTIME)
    return b"".join(_tar_member(f"{key}.{extension}", data, mtime) for extension, data in members)


def _tar_member(name: str, data: bytes, mtime: int) -> bytes:
    """Header, data and padding of one file (POSIX.1-1988 ustar); written here because `tarfile` takes ten times as long for it."""
    owner = b"0000000\0" * 2
    before = b"".join((name.encode("ascii").ljust(100, b"\0"), b"0000644\0", owner, b"%011o\0" % len(data), b"%011o\0" % mtime))
    checksum = sum(before) + 8 * ord(" ") + sum(_AFTER_CHECKSUM)  # its own field counts as spaces
    return b"".join((before, b"%06o\0 " % checksum, _AFTER_CHECKSUM, data, bytes(-len(data) % _BLOCK)))


def ids_of(record: LogRecord, items: Items, collection: CollectionRecord) -> list[bytes]:
    """Hashes of every id that a record can be found by.

    Those of its items, and where one was rejected before its id was read, all that may have been meant as one, so that `purge` misses none.
    """
    found: dict[str, None] = {item.id: None for item in items if item.id}
    if any(not item.id for item in items):
        raws = (record.key, record.header("ce_id"), _id_header(record, collection))
        found.update(dict.fromkeys(raw.decode("utf-8", "replace") for raw in raws if raw))
        found.update(dict.fromkeys(_json_ids(record.value or b"", collection)))
    return [id_hash(item_id) for item_id in found if _is_utf8(item_id)]


def _id_header(record: LogRecord, collection: CollectionRecord) -> bytes | None:
    return record.header(collection.id_from.removeprefix("header:")) if collection.id_from.startswith("header:") else None


def _json_ids(value: bytes, collection: CollectionRecord) -> list[str]:
    """Ids in an envelope that was rejected as a whole."""
    try:
        found = canonical_json.load(value) if value[:1] == b"{" else None
    except ValueError:
        return []
    paths = ["id", collection.id_from.removeprefix("json:")] if collection.id_from.startswith("json:") else ["id"]
    ids = []
    for path in paths:
        at = found
        for part in path.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, str | int) and not isinstance(at, bool):
            ids.append(str(at))
    return ids


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def claims_of(record: LogRecord, items: Items, collection: CollectionRecord) -> list[bytes]:
    """sha256 of each claim-check object of the collection that a record names, also in an envelope that was rejected."""
    prefix = CollectionKeys(collection.name, collection.incarnation).prefix + "claim/"
    named = re.compile(re.escape(prefix).encode() + rb"([0-9a-f]{64})")
    is_json = b"json" in (record.header("content-type") or b"")
    texts = [value or b"" for _, value in record.headers] + ([record.value or b""] if is_json else [])
    found = {bytes.fromhex(digest.decode()): None for text in texts for digest in named.findall(text)}
    parts = [part for item in items if isinstance(item, MediaItem) for part in item.parts]
    found.update({part.ref.sha256: None for part in parts if part.ref is not None and part.ref.bucket is None and part.ref.sha256 is not None})
    return list(found)
