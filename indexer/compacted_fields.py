"""One field of several segments in one part: flat vectors, or codes of a generation that are moved, not made anew.

Takes: field parts with the rows of each that stay. Gives: the bytes of one field part. Owns: which codes can be moved.
Never: trains, or decodes a row whose codes are of the generation that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from contracts.segment import CodedPart, FieldPart, write_coded_part, write_field_part
from indexer.field_parts import check_quantizer
from vectors.inverted_lists import unpack_lists, write_lists
from vectors.quantizer import EncodedRows, Quantizer
from vectors.recall import measure_encoded


@dataclass(frozen=True, slots=True)
class FieldInput:
    """A segment's part of a field, None where it has none. Its rows `kept`, shape (k,), ascending, get the numbers from `base` on."""

    part: FieldPart | CodedPart | None
    kept: NDArray[np.int64]
    base: int
    where: str

    def moved(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of the part's vectors, shape (m,), stay, and the new row numbers of those, shape (k,)."""
        if self.part is None:
            return np.zeros(0, np.bool_), np.zeros(0, np.int64)
        rows = self.part.rows.astype(np.int64)
        at = np.searchsorted(self.kept, rows)
        stays = at < len(self.kept)
        stays[stays] = self.kept[at[stays]] == rows[stays]
        return stays, at[stays] + self.base


def compacted_field(
    field: FieldRecord, inputs: Sequence[FieldInput], rows: int, chosen: Quantizer | None, quantizer_of: Callable[[int], Quantizer]
) -> bytes:
    """Bytes of the field part of a segment of `rows` rows.

    Parameters
    ----------
    field : FieldRecord
        Whose vectors these are.
    inputs : sequence of FieldInput
        In the order of their rows.
    rows : int
        Rows of the new segment.
    chosen : Quantizer or None
        What new segments are coded with; None where they are flat.
    quantizer_of : callable
        The field's quantizer of a generation.

    Raises
    ------
    CorruptError
        A part is not of the generation that it names.
    """
    coded = [each.part.generation for each in inputs if isinstance(each.part, CodedPart)]
    quantizer = chosen or (quantizer_of(max(coded)) if coded else None)
    if quantizer is None:
        return _flat(field, inputs, rows)
    numbers, encoded = [], []
    for each in inputs:
        stays, new = each.moved()
        numbers.append(new)
        encoded.append(_encoded(each, stays, quantizer, quantizer_of))
    at = np.concatenate(numbers)
    together = EncodedRows(*(np.concatenate([getattr(one, name) for one in encoded]) for name in ("list_numbers", "codes", "refine")))
    measured = measure_encoded(quantizer, together, at)
    part = CodedPart(
        generation=quantizer.number,
        codec=quantizer.codec.name,
        nlist=quantizer.nlist,
        code_bytes=quantizer.code_bytes,
        lists=write_lists(measured.lists),
        refine=together.refine,
        rows=at.astype(np.uint32),
        segment_rows=rows,
        statistics=measured.statistics,
    )
    return write_coded_part(field, part)


def _flat(field: FieldRecord, inputs: Sequence[FieldInput], rows: int) -> bytes:
    matrix, present = np.zeros((rows, field.dimension), field.dtype), np.zeros(rows, np.bool_)
    for each in inputs:
        stays, new = each.moved()
        if isinstance(each.part, FieldPart):
            matrix[new], present[new] = each.part.matrix[stays], True
    return write_field_part(field, matrix, present)


def _encoded(each: FieldInput, stays: NDArray[np.bool_], quantizer: Quantizer, quantizer_of: Callable[[int], Quantizer]) -> EncodedRows:
    """A part's vectors that stay, in the codes of `quantizer`: moved where they are its own, else coded from what is stored."""
    part = each.part
    if part is None:
        return quantizer.encode(np.zeros((0, quantizer.dimension), np.float32))
    if isinstance(part, FieldPart):
        return quantizer.encode(part.matrix[stays])
    own = quantizer_of(part.generation)
    check_quantizer(part, own, each.where)
    if own.number != quantizer.number:
        return quantizer.encode(own.decode(part.refine[stays]))
    list_numbers, codes = unpack_lists(part.lists, own, part.rows, each.where)
    return EncodedRows(list_numbers[stays], codes[stays], part.refine[stays])
