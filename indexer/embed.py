"""Decoded items -> vectors: one call of the encoder for all pictures at hand, one for all texts.

Takes: decoded slices. Gives: the same rows with their vectors filled in. Owns: which field gets which vector, and
what becomes of an item that the encoder refuses.
Never: waits for more work to come; batches grow by themselves under load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from contracts.collection import IndexRecord
from contracts.encoder import Encoder
from contracts.errors import RecordError, SettingsError
from embedding.fields import fuse
from indexer.slices import DecodedItem, DecodedSlice, Rejection, rejected_row

Matrix = NDArray[np.float32]


def check_spaces(index: IndexRecord, encoder: Encoder | None) -> None:
    """Refuse to embed into an index whose fields belong to another space.

    Raises
    ------
    SettingsError
        The encoder here has other weights, preprocessing, dimension or metric than the index was created with.
    """
    for field in index.fields:
        if field.source != "vector" and (encoder is None or encoder.space.space_id != field.space_id):
            found = encoder.space.space_id if encoder else "no encoder"
            raise SettingsError(
                f"field {field.name} of index {index.name} is in space {field.space_id}, this machine has {found}",
                hint="install the encoder that the index was created with, or create a new collection",
                code="space_mismatch",
            )


def embed_slices(
    slices: Sequence[DecodedSlice], index: IndexRecord, encoder: Encoder | None, most_items: int, on_partial: str = "keep", on_reject: str = "keep"
) -> None:
    """Fill in the vectors of all rows of these slices, in place; what the encoder refuses is rejected, as what cannot be decoded is.

    Raises
    ------
    UnavailableError
        The encoder does not answer now; nothing was changed that a second call does not change again.
    MemoryError
        One item alone is too much for the encoder's memory.
    """
    if encoder is None:
        return
    items = [item for decoded in slices for item in decoded.items]
    by_picture = _Encoded(lambda rows: encoder.encode_pictures(np.stack([item.picture for item in rows if item.picture is not None])))
    by_text = _Encoded(lambda rows: encoder.encode_texts([item.text for item in rows if item.text is not None]))
    by_picture.encode([item for item in items if item.picture is not None], most_items)
    by_text.encode([item for item in items if item.text is not None], most_items)
    for item in (item for item in items if item.row.op == "upsert"):
        picture, text = by_picture.vectors.get(id(item)), by_text.vectors.get(id(item))
        for field in index.fields:
            if field.source == "image":
                item.row.vectors[field.name] = picture
            elif field.source == "text":
                item.row.vectors[field.name] = text
            elif field.source == "fused":
                item.row.vectors[field.name] = _fused(picture, text)
    refused = by_text.refused | by_picture.refused
    if refused:
        encoded = by_picture.vectors.keys() | by_text.vectors.keys()
        for decoded in slices:
            _reject_refused(decoded, refused, encoded if on_partial == "keep" else set(), on_reject)


def _fused(picture: Matrix | None, text: Matrix | None) -> Matrix | None:
    if picture is None or text is None:
        return text if picture is None else picture
    fused: Matrix = fuse(picture[None], text[None])[0]
    return fused


class _Encoded:
    """Vectors of one side of many items, by the item's identity, and the items that the encoder refuses."""

    def __init__(self, encode: Callable[[Sequence[DecodedItem]], Matrix]) -> None:
        self._encode = encode
        self.vectors: dict[int, Matrix] = {}
        self.refused: dict[int, RecordError] = {}

    def encode(self, items: Sequence[DecodedItem], most_items: int) -> None:
        """Encode `items`, at most so many in one call; one that is refused, or too large for the memory, is halved until the guilty are alone."""
        for at in range(0, len(items), most_items):
            part = items[at : at + most_items]
            try:
                self.vectors.update((id(item), vector) for item, vector in zip(part, self._encode(part), strict=True))
            except (RecordError, MemoryError) as error:
                if len(part) > 1:
                    self.encode(part, len(part) // 2)
                elif isinstance(error, RecordError):
                    self.refused[id(part[0])] = error
                else:
                    raise  # the item, or the machine: `indexer.careful` finds out which


def _reject_refused(decoded: DecodedSlice, refused: Mapping[int, RecordError], kept: Set[int], on_reject: str) -> None:
    """Turn the rows of refused items into rejections, or into partial rows where the other side is encoded and may stay."""
    records = {record.offset: record for record in decoded.fetched.records}
    for item in decoded.items:
        error = refused.get(id(item))
        if error is None:
            continue
        row = item.row
        is_partial = id(item) in kept
        if is_partial:
            row.reason = error.reason
        else:
            item.row = rejected_row(row, error.reason, on_reject)
        decoded.rejections.append(Rejection(records[row.offset], row.item, error.reason, error.message, partial=is_partial))
    decoded.rejections.sort(key=lambda rejection: (rejection.record.offset, rejection.item))
