"""Arrow columns as numpy sees them: raw values, masks, and the words of texts.

Takes: Arrow arrays, whole or sliced. Gives: arrays of the same length, without copying where that is possible. Owns: what a word is.
Never: decides what a filter means.

Comparing eight-byte numbers in numpy takes a fifth of the time of Arrow's kernels with their masks turned into arrays.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_NOT_A_WORD = r"[^\p{L}\p{M}\p{N}]+"
WORDS_CHUNK_ROWS = 65_536
"""Texts that are cut into words at once: bounds what that takes in memory."""


def unpacked(bits: NDArray[np.uint8], rows: int) -> Mask:
    """Mask of shape (rows,) from bits, shape (ceil(rows / 8),), lowest bit first."""
    return np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)


def _bits(buffer: pa.Buffer, offset: int, rows: int) -> Mask:
    first = offset // 8
    bits = np.frombuffer(buffer, np.uint8)[first : (offset + rows + 7) // 8]
    return unpacked(bits, offset - first * 8 + rows)[offset - first * 8 :]


def valid(values: pa.Array) -> Mask | None:
    """Mask of the values that are not null, shape (len(values),); None where none is."""
    if values.null_count == 0:
        return None
    buffer = values.buffers()[0]
    return np.zeros(len(values), np.bool_) if buffer is None else _bits(buffer, values.offset, len(values))


def as_mask(values: pa.BooleanArray) -> Mask:
    """Mask of the values that are true, shape (len(values),); null is false."""
    buffer = values.buffers()[1]
    if len(values) == 0 or buffer is None:
        return np.zeros(len(values), np.bool_)
    mask, known = _bits(buffer, values.offset, len(values)), valid(values)
    return mask if known is None else mask & known


def numbers(values: pa.Array) -> NDArray[np.generic]:
    """Raw values of a fixed-width array, shape (len(values),): int64 or float64, times as microseconds, bools as uint8.

    What stands where a value is null means nothing.
    """
    if pa.types.is_boolean(values.type):
        return as_mask(values).view(np.uint8)
    dtype = np.dtype(np.float64 if pa.types.is_floating(values.type) else np.int64)
    buffer = values.buffers()[1]
    if len(values) == 0 or buffer is None:
        return np.zeros(len(values), dtype)
    return np.frombuffer(buffer, dtype)[values.offset : values.offset + len(values)]


def is_text(values: pa.Array) -> bool:
    """Whether an array holds strings."""
    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


def list_counts(values: pa.ListArray) -> NDArray[np.int64]:
    """Elements of each list, shape (len(values),); 0 where it is null."""
    return pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def parents(values: pa.ListArray) -> NDArray[np.int64]:
    """Row of each element of `pc.list_flatten`, shape (elements,)."""
    return np.repeat(np.arange(len(values)), list_counts(values))


def words_of(texts: pa.Array) -> pa.ListArray:
    """Words of each text, null where it is null: runs of letters, their marks, and digits, in lower case, each as often as it comes.

    A text without any has one empty word.
    """
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), _NOT_A_WORD, " ")
    return pc.split_pattern(pc.utf8_trim(spaced, " "), " ")
