"""Compressed record batches of Kafka, expanded within a bound: 6 KB of zstd may hold 200 MiB, and any client may produce them.

kafka-python expands a batch whole, whatever comes of it. Its fetcher hands what it fetched to a class that it looks up on itself, so a
consumer gets another class there, and nobody else in the process is touched. `tests/backends/test_kafka_batches.py` holds every name
of kafka-python that is used here; a version without them is refused when a consumer is opened.

Takes: fetched bytes. Gives: kafka-python's records; for a batch that cannot be expanded, one record per offset that says so.
Owns: the bound on a batch, and on what one poll may bring of expanded records.
Never: expands more than the bound, or raises for what a batch holds before its records are read.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import lz4.frame
import zstandard
from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from backends.kafka_settings import max_expanded_bytes, open_client
from contracts.errors import SettingsError
from contracts.log import Unreadable
from contracts.settings import Settings

_CHUNK_BYTES = 1024 * 1024
_XERIAL_HEADER, _XERIAL_HEADER_BYTES = b"\x82SNAPPY\0", 16
_GZIP, _SNAPPY, _LZ4, _ZSTD = (
    DefaultRecordBatch.CODEC_GZIP,
    DefaultRecordBatch.CODEC_SNAPPY,
    DefaultRecordBatch.CODEC_LZ4,
    DefaultRecordBatch.CODEC_ZSTD,
)
_NAMES = {_GZIP: "gzip", _SNAPPY: "snappy", _LZ4: "LZ4", _ZSTD: "zstd"}


class _Stream(Protocol):
    def read(self, size: int) -> bytes: ...


class ExpansionError(Exception):
    """A batch whose records cannot be had; `unreadable` says why."""

    def __init__(self, unreadable: Unreadable) -> None:
        super().__init__(unreadable.message)
        self.unreadable = unreadable


@dataclass
class ExpansionBound:
    """How much a batch may expand to, and how much of that one poll may still bring."""

    max_bytes: int
    left_bytes: int = 0


class UnreadableHeaders(list[tuple[str, bytes | None]]):
    """No headers, and why: this way through kafka-python no producer can write."""

    def __init__(self, unreadable: Unreadable) -> None:
        super().__init__()
        self.unreadable = unreadable


def expanded(kind: int, data: memoryview, max_bytes: int) -> bytearray:
    """The records of a compressed batch.

    Parameters
    ----------
    kind : int
        Kafka's number of the codec.
    data : memoryview
        The batch's bytes behind its header.
    max_bytes : int
        Largest result.

    Raises
    ------
    ExpansionError
        It would be larger (``too_large``), or it cannot be expanded (``bad_envelope``).
    """
    name, size_bytes = _NAMES.get(kind, f"codec {kind}"), len(data)
    try:
        found = _unsnapped(data, max_bytes) if kind == _SNAPPY else _read(_stream(kind, data), max_bytes)
    except (OSError, EOFError, RuntimeError, ValueError, zlib.error, zstandard.ZstdError) as error:
        message = f"its Kafka batch of {size_bytes} bytes cannot be expanded ({name}: {type(error).__name__})"
        raise ExpansionError(Unreadable("bad_envelope", message, size_bytes)) from error
    if found is None:
        message = f"its Kafka batch of {size_bytes} bytes ({name}) expands to more than {max_bytes} bytes"
        raise ExpansionError(Unreadable("too_large", message, size_bytes))
    return found


def _stream(kind: int, data: memoryview) -> _Stream:
    file: Any = io.BytesIO(data)
    if kind == _GZIP:
        return gzip.GzipFile(fileobj=file, mode="rb")
    if kind == _LZ4:
        stream: _Stream = lz4.frame.open(file, mode="rb")
        return stream
    if kind == _ZSTD:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    raise ValueError(f"codec {kind} is not known")


def _read(stream: _Stream, max_bytes: int) -> bytearray | None:
    """All of a stream, or None where it is larger."""
    out = bytearray()
    while chunk := stream.read(_CHUNK_BYTES):
        out += chunk
        if len(out) > max_bytes:
            return None
    return out


def _unsnapped(data: memoryview, max_bytes: int) -> bytearray | None:
    """All of snappy's blocks, or None where they are larger: each says its size, so nothing is taken before that is known."""
    import pyarrow as pa  # kafka-python needs one more package for snappy, this one is here

    blocks, at = [data], _XERIAL_HEADER_BYTES
    if bytes(data[: len(_XERIAL_HEADER)]) == _XERIAL_HEADER:  # Java's framing: blocks with their lengths before them
        blocks = []
        while at < len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            blocks.append(data[at + 4 : end])
            at = end
    sizes = [_varint(block) for block in blocks]
    if sum(sizes) > max_bytes:
        return None
    snappy, out = pa.Codec("snappy"), bytearray()
    for block, size in zip(blocks, sizes, strict=True):
        out += snappy.decompress(block, decompressed_size=size, asbytes=True)
    return out


def _varint(block: memoryview) -> int:
    """The number that a snappy block begins with."""
    value = 0
    for at, byte in enumerate(block[:5]):
        value |= (byte & 0x7F) << 7 * at
        if not byte & 0x80:
            return value
    raise ValueError("a snappy block without its size")


def _placeholder(offset: int, timestamp_ms: int, timestamp_type: int, unreadable: Unreadable) -> DefaultRecord:
    return DefaultRecord(0, offset, timestamp_ms, timestamp_type, None, None, UnreadableHeaders(unreadable))


class _Batch(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python has no types
    """A compressed batch of today's format."""

    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def __init__(self, buffer: Any, bound: ExpansionBound) -> None:
        super().__init__(buffer)
        self._bound = bound

    def __iter__(self) -> Iterator[Any]:
        try:
            found = expanded(self.compression_type, memoryview(self._buffer)[self._pos :], self._bound.max_bytes)
        except ExpansionError as error:  # the header, which is never compressed, says which offsets these are
            unreadable, kind = error.unreadable, self.timestamp_type
            return (_placeholder(offset, self.max_timestamp, kind, unreadable) for offset in range(self.base_offset, self.next_offset))
        self._buffer, self._pos, self._decompressed = found, 0, True
        return self

    def __next__(self) -> Any:
        record = super().__next__()
        self._bound.left_bytes -= record.size_in_bytes
        return record


class _LegacyBatch(LegacyRecordBatch):  # type: ignore[misc]  # kafka-python has no types
    """A compressed batch of the formats before Kafka 0.11, which old segments may still hold; it names its last offset alone."""

    def __init__(self, buffer: Any, magic: int, bound: ExpansionBound) -> None:
        super().__init__(buffer, magic)
        self._bound = bound

    def _decompress(self, key_offset: int) -> bytearray:
        _, value = self._read_key_value(key_offset)
        return expanded(self.compression_type, memoryview(value or b""), self._bound.max_bytes)

    def __iter__(self) -> Iterator[Any]:
        try:
            for record in super().__iter__():
                self._bound.left_bytes -= record.size_in_bytes
                yield record
        except ExpansionError as error:
            yield _placeholder(self.base_offset, self._timestamp or 0, self.timestamp_type or 0, error.unreadable)


class _Batches:
    """`MemoryRecords` whose compressed batches are bounded."""

    def __init__(self, records: MemoryRecords, bound: ExpansionBound) -> None:
        self._records, self._bound = records, bound

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None or not batch.compression_type:
            return batch
        if isinstance(batch, LegacyRecordBatch):
            return _LegacyBatch(batch._buffer, batch.magic, self._bound)
        return _Batch(batch._buffer, self._bound)


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """What was fetched of one partition; its end is dropped, and fetched again, where this poll has no room for it."""

    record_iterator: Iterator[Any]

    def __init__(self, bound: ExpansionBound, fetch_offset: int, at: Any, records: MemoryRecords, **options: Any) -> None:
        super().__init__(fetch_offset, at, _Batches(records, bound), **options)
        self._bound = bound
        self.record_iterator = self._while_room(self.record_iterator)

    def _while_room(self, records: Iterator[Any]) -> Iterator[Any]:
        while self._bound.left_bytes > 0:
            record = next(records, None)
            if record is None:
                return
            yield record
        self.drain()


class BoundedConsumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python's consumer, whose compressed batches expand to `max_expanded_bytes` at most.

    A poll returns at most that much of expanded records, and one record (or a record of each partition) more.
    """

    def __init__(self, max_expanded_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        self._expansion = ExpansionBound(max_expanded_bytes, max_expanded_bytes)
        fetcher = self._fetcher
        if not isinstance(getattr(fetcher, "PartitionRecords", None), type):
            self.close(autocommit=False)
            raise SettingsError("this kafka-python reads batches in another way", hint="install a version that pyproject.toml allows")
        fetcher.PartitionRecords = partial(_PartitionRecords, self._expansion)

    def poll(self, timeout_ms: int = 0, max_records: int | None = None, update_offsets: bool = True) -> Any:
        """See `kafka.KafkaConsumer.poll`."""
        self._expansion.left_bytes = self._expansion.max_bytes
        return super().poll(timeout_ms, max_records, update_offsets)


def open_consumer(settings: Settings, options: dict[str, Any], what: str) -> BoundedConsumer:
    """A consumer with these options; raises as `backends.kafka_settings.open_client`."""
    consumer: BoundedConsumer = open_client(partial(BoundedConsumer, max_expanded_bytes(settings)), options, what)
    return consumer
