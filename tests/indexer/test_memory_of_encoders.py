"""A batch that the encoder has no memory for is encoded in parts; what does not fit alone is nobody's rejection here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.collection import IndexRecord
from contracts.vectors_batch import BatchItem
from indexer.embed import embed_slices
from indexer.slices import DecodedItem, DecodedSlice, FetchedSlice
from tests.encoders import ColourEncoder, colour_fields


class SmallDevice(ColourEncoder):
    """Has memory for so many texts at a time."""

    def __init__(self, most_items: int) -> None:
        self.most_items = most_items
        self.calls: list[int] = []

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(len(texts))
        if len(texts) > self.most_items:
            raise MemoryError
        return super().encode_texts(texts)


def texts(count: int) -> tuple[DecodedSlice, IndexRecord]:
    index = IndexRecord(name="main", fields=tuple(one for one in colour_fields() if one.name == "text"), vectors_topic="v", vectors_topic_id="t")
    items = [DecodedItem(BatchItem(number, 0, "upsert", f"id-{number}"), text=f"text {number}") for number in range(count)]
    return DecodedSlice(FetchedSlice(0, 0, 0, count, []), items), index


def test_a_batch_beyond_the_devices_memory_is_encoded_in_parts() -> None:
    device = SmallDevice(3)
    decoded, index = texts(20)
    embed_slices([decoded], index, device, 16)
    found = [item.row.vectors["text"] for item in decoded.items]
    assert np.array_equal(np.stack(found), ColourEncoder().encode_texts([str(item.text) for item in decoded.items]))
    assert max(device.calls) == 16 and decoded.rejections == []


def test_an_item_that_does_not_fit_alone_is_not_rejected() -> None:
    decoded, index = texts(5)
    with pytest.raises(MemoryError):
        embed_slices([decoded], index, SmallDevice(0), 16)
    assert decoded.rejections == []
