"""What a segment stores of one field: flat vectors, or the codes of a generation with what they are worth; and vectors back from either.

Takes: a field's vectors, a quantizer or none. Gives: part bytes; vectors of stored rows. Owns: the choice of the layout.
Never: trains, or looks for a generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.collection import FieldRecord
from contracts.errors import CorruptError
from contracts.segment import CodedPart, FieldPart, write_coded_part, write_field_part
from vectors.inverted_lists import build_lists, write_lists
from vectors.quantizer import Quantizer
from vectors.recall import segment_statistics


def field_part(field: FieldRecord, matrix: NDArray[Any], present: NDArray[np.bool_], quantizer: Quantizer | None) -> tuple[bytes, Mapping[str, Any]]:
    """Bytes of a field part, coded where there is a quantizer, and its statistics.

    Parameters
    ----------
    field : FieldRecord
        Whose vectors these are.
    matrix : NDArray
        shape (n, d), in the field's dtype.
    present : NDArray[np.bool_]
        shape (n,): rows that have a vector.
    quantizer : Quantizer or None
        Of the field's generation; None below the training size.
    """
    if quantizer is None:
        return write_field_part(field, matrix, present), {}
    kept = matrix if present.all() else matrix[present]
    part = coded_part(quantizer, kept, np.flatnonzero(present), len(matrix))
    return write_coded_part(field, part), part.statistics


def coded_part(quantizer: Quantizer, vectors: NDArray[Any], rows: NDArray[np.integer[Any]], segment_rows: int) -> CodedPart:
    """Vectors, shape (m, d), of the segment rows `rows`, shape (m,), ascending, in the codes of a generation, with their statistics."""
    encoded = quantizer.encode(vectors)
    ids = rows.astype(np.int64)
    lists = build_lists(quantizer.nlist, encoded.list_numbers, encoded.codes, ids)
    return CodedPart(
        generation=quantizer.number,
        codec=quantizer.codec.name,
        nlist=quantizer.nlist,
        code_bytes=quantizer.code_bytes,
        lists=write_lists(lists),
        refine=encoded.refine,
        rows=rows.astype(np.uint32),
        segment_rows=segment_rows,
        statistics=segment_statistics(quantizer, vectors, encoded, lists, ids),
    )


def check_quantizer(part: CodedPart, quantizer: Quantizer, where: str) -> None:
    """Compare a coded part with the generation that it names.

    Raises
    ------
    CorruptError
        The generation's codes have other sizes.
    """
    said = (part.generation, part.codec, part.nlist, part.code_bytes, part.refine.shape[1])
    if said != (quantizer.number, quantizer.codec.name, quantizer.nlist, quantizer.code_bytes, quantizer.refine_bytes):
        raise CorruptError(f"{where}: generation, codec, lists and bytes are {said}, which generation {quantizer.number} is not")


def vectors_of(
    part: FieldPart | CodedPart, rows: NDArray[np.int64], quantizer: Quantizer | None, field: FieldRecord
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Vectors, shape (k, d), of segment rows, shape (k,), in the field's dtype, and which of them have one, shape (k,).

    A coded row gives the vector that its refine code stands for: with `sq8` at most half a step of each dimension away from the one that came. Coded
    again it gets the same refine code, however often it is patched.
    """
    at = np.searchsorted(part.rows, rows)  # vectors are stored in row order
    present = at < len(part.rows)
    present[present] = part.rows[at[present]] == rows[present]
    matrix = np.zeros((len(rows), field.dimension), field.dtype)
    if isinstance(part, FieldPart):
        matrix[present] = part.matrix[at[present]]
    elif quantizer is None:
        raise ValueError(f"field {field.name}: vectors of generation {part.generation} without its quantizer")
    else:
        matrix[present] = quantizer.decode(part.refine[at[present]])
    return matrix, present
