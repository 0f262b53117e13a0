"""Decoded items -> vectors: one call of the encoder for all pictures at hand, one for all texts.

Takes: decoded slices. Gives: the same rows with their vectors filled in. Owns: which field gets which vector.
Never: waits for more work to come; batches grow by themselves under load.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.collection import IndexRecord
from contracts.encoder import Encoder
from contracts.errors import SettingsError
from embedding.fields import fuse
from indexer.slices import DecodedItem, DecodedSlice

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


def embed_slices(slices: Sequence[DecodedSlice], index: IndexRecord, encoder: Encoder | None, most_items: int) -> None:
    """Fill in the vectors of all rows of these slices, in place."""
    items = [item for decoded in slices for item in decoded.items]
    if encoder is None:
        return
    pictures = [item for item in items if item.picture is not None]
    texts = [item for item in items if item.text is not None]
    by_picture = _encode_pictures(pictures, encoder, most_items)
    by_text = _encode_texts(texts, encoder, most_items)
    for item in (item for item in items if item.row.op == "upsert"):
        picture, text = by_picture.get(id(item)), by_text.get(id(item))
        for field in index.fields:
            if field.source == "image":
                item.row.vectors[field.name] = picture
            elif field.source == "text":
                item.row.vectors[field.name] = text
            elif field.source == "fused":
                item.row.vectors[field.name] = _fused(picture, text)


def _fused(picture: Matrix | None, text: Matrix | None) -> Matrix | None:
    if picture is None or text is None:
        return text if picture is None else picture
    fused: Matrix = fuse(picture[None], text[None])[0]
    return fused


def _encode_pictures(items: Sequence[DecodedItem], encoder: Encoder, most_items: int) -> dict[int, Matrix]:
    out: dict[int, Matrix] = {}
    for at in range(0, len(items), most_items):
        part = items[at : at + most_items]
        vectors = encoder.encode_pictures(np.stack([item.picture for item in part if item.picture is not None]))
        out.update((id(item), vector) for item, vector in zip(part, vectors, strict=True))
    return out


def _encode_texts(items: Sequence[DecodedItem], encoder: Encoder, most_items: int) -> dict[int, Matrix]:
    out: dict[int, Matrix] = {}
    for at in range(0, len(items), most_items):
        part = items[at : at + most_items]
        vectors = encoder.encode_texts([item.text for item in part if item.text is not None])
        out.update((id(item), vector) for item, vector in zip(part, vectors, strict=True))
    return out
