"""What is produced: the sample pictures with their captions, or own vectors, one item per record.

Takes: examples/media, a seed. Gives: `Feed`s, which send one item under an id. Owns: which bytes an item has.
Never: chooses an id.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.machine import ROOT
from contracts.errors import NotFoundError
from contracts.log import RecordPosition
from ingest.producer import MediaProducer
from ingest.records import rows_record

MEDIA = ROOT / "examples" / "media"
VECTOR_FIELD, DIMENSION = "embedding", 512
VECTOR_FIELD_WORDS = f"{VECTOR_FIELD}:{DIMENSION}:cosine:float16"
_VECTORS = 1024


class Feed(Protocol):
    """Sends the next item."""

    def send(self, producer: MediaProducer, item_id: str) -> Future[RecordPosition]:
        """Send one record with this id; returns at once."""
        ...


class PictureFeed:
    """The sample pictures in a seeded order, again and again; each with its caption."""

    def __init__(self, seed: int) -> None:
        with (MEDIA / "captions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise NotFoundError(f"{MEDIA} holds no pictures", hint="check out examples/media")
        order = np.random.default_rng(seed).permutation(len(rows))
        self._pictures = [((MEDIA / rows[at]["file"]).read_bytes(), rows[at]["caption"]) for at in order]
        self._next = 0

    def next_bytes(self, count: int) -> list[bytes]:
        """The next pictures as they lie on disk."""
        begin, self._next = self._next, self._next + count
        return [self._pictures[at % len(self._pictures)][0] for at in range(begin, begin + count)]

    def send(self, producer: MediaProducer, item_id: str) -> Future[RecordPosition]:
        """See `Feed.send`."""
        data, caption = self._pictures[self._next % len(self._pictures)]
        self._next += 1
        return producer.send_picture(item_id, data, "image/jpeg", caption=caption)


class VectorFeed:
    """Random unit vectors, float16; one row per Arrow record."""

    def __init__(self, seed: int) -> None:
        matrix = np.random.default_rng(seed).standard_normal((_VECTORS, DIMENSION)).astype(np.float32)
        self._matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float16)
        self._next = 0

    def _row(self) -> NDArray[np.float16]:
        at = self._next % _VECTORS
        self._next += 1
        row: NDArray[np.float16] = self._matrix[at : at + 1]
        return row

    def send(self, producer: MediaProducer, item_id: str) -> Future[RecordPosition]:
        """See `Feed.send`."""
        return producer.send_vectors([item_id], {VECTOR_FIELD: self._row()})[0]

    def value(self, item_id: str) -> bytes:
        """The bytes that `send` would put into the log: what the bare two hops carry."""
        return rows_record([item_id], {VECTOR_FIELD: self._row()}).value or b""


FEEDS: dict[str, Callable[[int], Feed]] = {"pictures": PictureFeed, "vectors": VectorFeed}
"""By kind: makes a feed from a seed."""
