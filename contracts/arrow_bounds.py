"""What an Arrow stream from a stranger may take in memory, told before it does.

Compressed buffers name the size they expand to (Arrow columnar format, "Compression of body buffers"), which Arrow allocates before it decompresses.
Where they lie stands in the flatbuffer of each message (Arrow's Message.fbs), of which as much is read here as that takes. Nested columns may
hold values that take no bytes in a record and many as Python objects.

Takes: a stream's bytes, its batches. Gives: nothing, or a RecordError. Owns: the bounds. Never: decompresses, or trusts an offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pyarrow as pa

from contracts.errors import RecordError

_FRAMES = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""First bytes of a zstd and of an LZ4 frame: a stream without either of them has nothing that could be decompressed."""
_SEARCHED_BYTES = 4 * 1024
"""Up to this size a search for the frames is faster than a walk along the messages, which looks at none of their bodies."""
_HEADER, _DICTIONARY_DATA, _BUFFERS, _COMPRESSION = 2, 1, 2, 3
"""Fields of Message, DictionaryBatch and RecordBatch by their number in Message.fbs."""
_SHARING = (pa.types.is_dictionary, pa.types.is_run_end_encoded, pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def check_expansion(value: bytes, most_bytes: int) -> None:
    """Refuse a stream whose compressed buffers expand to more than `most_bytes` together.

    Raises
    ------
    RecordError
        ``too_large``; ``bad_envelope`` where a message cannot be read.
    """
    if len(value) <= _SEARCHED_BYTES and not any(frame in value for frame in _FRAMES):
        return
    total = 0
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(value)):
            if message.type in ("record batch", "dictionary") and message.body is not None:
                total += _expanded_bytes(memoryview(message.metadata), memoryview(message.body), message.type == "dictionary")
            if total > most_bytes:
                raise RecordError("too_large", f"compressed Arrow buffers expand to more than {most_bytes} bytes")
    except (pa.ArrowException, struct.error, ValueError, OSError) as error:
        raise RecordError("bad_envelope", f"not an Arrow IPC stream: {error}") from None


def _expanded_bytes(metadata: memoryview, body: memoryview, is_dictionary: bool) -> int:
    """Bytes that the compressed buffers of one message name; buffers that are not compressed lie in the record already."""
    batch = _table(metadata, _number(metadata, "<I", 0), _HEADER)
    if is_dictionary and batch is not None:
        batch = _table(metadata, batch, _DICTIONARY_DATA)
    if batch is None or _table(metadata, batch, _COMPRESSION) is None:
        return 0
    buffers = _field(metadata, batch, _BUFFERS)
    if buffers is None:
        return 0
    first = buffers + _number(metadata, "<I", buffers)
    total = 0
    for at in range(_number(metadata, "<I", first)):
        offset, length = _number(metadata, "<q", first + 4 + 16 * at), _number(metadata, "<q", first + 12 + 16 * at)
        if length > 0:
            total += max(0, _number(body, "<q", offset))  # -1: this buffer is not compressed
    return total


def _field(data: memoryview, table: int, field: int) -> int | None:
    """Place of a table's field, or None where it is left out."""
    vtable = table - _number(data, "<i", table)
    slot = 4 + 2 * field
    found = _number(data, "<H", vtable + slot) if slot + 2 <= _number(data, "<H", vtable) else 0
    return table + found if found else None


def _table(data: memoryview, table: int, field: int) -> int | None:
    """Place of the table that a field points to."""
    found = _field(data, table, field)
    return None if found is None else found + _number(data, "<I", found)


def _number(data: memoryview, form: str, at: int) -> int:
    if at < 0:  # struct would count from the end
        raise ValueError("an offset lies outside of the message")
    number: int = struct.unpack_from(form, data, at)[0]
    return number


def check_columns(schema: pa.Schema, names: Iterable[str]) -> None:
    """Refuse columns whose rows may share one value, so that a short record could name much; RecordError ``bad_envelope``."""
    for name in names:
        at = schema.get_field_index(name)
        if at >= 0 and _shares(schema.field(at).type):
            raise RecordError("bad_envelope", f"column {name} is {str(schema.field(at).type)[:80]}; send plain values (utf8, no dictionary, no view)")


def _shares(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _SHARING) or any(_shares(kind.field(at).type) for at in range(kind.num_fields))


def check_cells(table: pa.Table, names: Iterable[str], most_cells: int) -> None:
    """Refuse nested columns of a validated table with more than `most_cells` values together, which may take no bytes; ``too_large``."""
    nested = [table.column(at) for name in names if (at := table.schema.get_field_index(name)) >= 0 and table.schema.field(at).type.num_fields]
    if sum(_cells(chunk) for column in nested for chunk in column.chunks) > most_cells:
        raise RecordError("too_large", f"more than {most_cells} values in nested columns of one record")


def _cells(column: pa.Array) -> int:
    if pa.types.is_struct(column.type):
        return sum(_cells(column.field(at)) for at in range(column.type.num_fields))
    if any(is_kind(column.type) for is_kind in _LISTS):
        return len(column) + _cells(column.values)
    return len(column)
