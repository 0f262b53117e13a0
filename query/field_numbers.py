"""Row numbers of a snapshot: from a hit in a logical index back to the row it stands for, and from live rows to bitmaps.

Takes: the pinned views of all partitions. Gives: `FieldNumbers`, per field: which parts are searched as they are, and per logical index which numbers
mean which rows. Owns: reuse of what did not change since the snapshot before. Never: changes a bitmap that a search may read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from query.found import FoundRows, Place
from query.partition_view import PartitionView
from query.parts import TAIL, CodedSpan, Part
from vectors.logical_index import LogicalIndex
from vectors.nprobe import MeasuredRecall, choose_nprobe
from vectors.tiers import Allowed

EXPIRY_STEP_US = 1_000_000
"""Rows that expire leave the bitmap this much later at most; hits are looked at once more."""


class PlacedPart(NamedTuple):
    """A part, and the partition that it belongs to."""

    partition: int
    part: Part


@dataclass(frozen=True, slots=True)
class _Spans:
    """Spans of one block in one logical index: where each begins, where its rows are, and the recall that the segments' writers measured."""

    placed: tuple[PlacedPart, ...]
    spans: tuple[CodedSpan, ...]
    starts: list[int]
    places: list[Place]
    measured: MeasuredRecall

    @classmethod
    def of(cls, entries: Sequence[tuple[PlacedPart, CodedSpan]], measured: MeasuredRecall) -> _Spans:
        placed, spans = tuple(placed for placed, _ in entries), tuple(span for _, span in entries)
        starts = [span.lease.numbers.start for span in spans]
        places = [Place.of(*at, span.first_row - start) for at, span, start in zip(placed, spans, starts, strict=True)]
        return cls(placed, spans, starts, places, measured)


@dataclass(frozen=True, slots=True)
class _Block:
    """Parts of one partition that change together: those of its segments, or the tail."""

    parts: tuple[Part, ...]
    flat: tuple[PlacedPart, ...]
    coded: Mapping[LogicalIndex, _Spans]

    @classmethod
    def of(cls, partition: int, parts: tuple[Part, ...], field_name: str) -> _Block:
        flat: list[PlacedPart] = []
        coded: dict[LogicalIndex, list[tuple[PlacedPart, CodedSpan]]] = {}
        tables: dict[LogicalIndex, list[tuple[int, Mapping[int, float]]]] = {}
        for part in parts:
            coding = part.vectors[field_name].coding
            placed = PlacedPart(partition, part)
            if coding is None:
                flat.append(placed)
            else:
                coded.setdefault(coding.index, []).extend((placed, span) for span in coding.spans)
                if coding.recall:
                    tables.setdefault(coding.index, []).append((part.rows, coding.recall))
        spans = {index: _Spans.of(entries, MeasuredRecall.of(tables.get(index, ()))) for index, entries in coded.items()}
        return cls(parts, tuple(flat), spans)


Blocks = Mapping[tuple[int, bool], _Block]


class Numbering:
    """Which row each number of one logical index means in one snapshot; arrays below have shape (n,), and numbers must be allowed ones.

    Parameters
    ----------
    index : LogicalIndex
        What is searched.
    blocks : Mapping
        All parts of the snapshot.
    allowed : Allowed
        Numbers of the rows that live and have a vector.
    field_name : str
        Whose vectors.
    """

    def __init__(self, index: LogicalIndex, blocks: Blocks, allowed: Allowed, field_name: str) -> None:
        self._field = field_name
        mine = [block.coded[index] for block in blocks.values() if index in block.coded]
        self.index, self.allowed = index, allowed
        self.placed = tuple(chain.from_iterable(each.placed for each in mine))
        self.spans = tuple(chain.from_iterable(each.spans for each in mine))
        starts = np.array(list(chain.from_iterable(each.starts for each in mine)), np.int64)
        places, order = list(chain.from_iterable(each.places for each in mine)), np.argsort(starts)
        self._later_starts, self._places = starts[order[1:]], [places[at] for at in order.tolist()]
        self._measured = MeasuredRecall.sum([each.measured for each in mine])
        if self._measured.rows and (trained := index.quantizer.trained_recall):
            self._measured_or_trained = self._measured + MeasuredRecall.of([(index.quantizer.trained_rows, trained)])
        else:
            self._measured_or_trained = self._measured
        self._nprobe: dict[float, int] = {}

    def found(self, numbers: NDArray[np.int64], scores: NDArray[np.float32]) -> list[FoundRows]:
        """The rows of each query: numbers, -1 where there is none, and scores, both of shape (q, k)."""
        places, places_of = self._places, self._later_starts.searchsorted(numbers, "right").tolist()
        return [
            FoundRows([(place := places[at], number + place[2], score) for at, number, score in zip(*each, strict=True) if number >= 0])
            for each in zip(places_of, numbers.tolist(), scores.tolist(), strict=True)
        ]

    def gone(self, expired_before_us: int | None) -> NDArray[np.uint8]:
        """Bitmap of rows of segments that are not live, or have expired: no later view shows them."""
        bits = np.zeros(self.index.numbers.limit >> 3, np.uint8)
        for (_, part), span in zip(self.placed, self.spans, strict=True):
            if part.name != TAIL:
                _put(bits, span, ~part.eligible(expired_before_us))
        return bits

    def nprobe(self, target_recall: float) -> int:
        """Lists to probe for a recall, by what the writers of the segments and the trainer measured."""
        found = self._nprobe.get(target_recall)
        if found is None:
            found = self._nprobe[target_recall] = choose_nprobe(self._measured_or_trained, target_recall, self.index.quantizer.nlist)
        return found

    def recall(self, target_recall: float) -> tuple[int, float]:
        """Rows whose writers measured recall, and the recall that a search for `target_recall` has among them."""
        rows = self._measured.rows
        return rows, self._measured_or_trained.at(self.nprobe(target_recall)) if rows else 0.0

    def allow(self, masks: Mapping[int, NDArray[np.bool_]]) -> Allowed:
        """Bitmap of some rows: masks over parts' rows, by the part's identity (`id`)."""
        bits = np.zeros(self.index.numbers.limit >> 3, np.uint8)
        for placed, span in zip(self.placed, self.spans, strict=True):
            _put(bits, span, placed.part.vectors[self._field].having(masks[id(placed.part)]))
        return Allowed(bits)


def _put(bits: NDArray[np.uint8], span: CodedSpan, mask: NDArray[np.bool_] | None) -> None:
    """Write a span's bits: those of a mask over its part's rows, shape (rows,); None for no row."""
    start, stop = span.lease.numbers.start >> 3, span.lease.numbers.stop >> 3
    if mask is None:
        bits[start:stop] = 0
        return
    rows = mask[max(0, span.first_row) : span.stop_row]
    if span.first_row < 0:
        rows = np.concatenate([np.zeros(-span.first_row, np.bool_), rows])
    packed = np.packbits(rows, bitorder="little")
    bits[start : start + len(packed)] = packed
    bits[start + len(packed) : stop] = 0


@dataclass(frozen=True, slots=True)
class FieldNumbers:
    """One field of one snapshot: `flat` parts are searched as they are, the others through `coded`."""

    blocks: Blocks
    flat: tuple[PlacedPart, ...]
    coded: tuple[Numbering, ...]
    expiry_step: int | None
    views: tuple[PartitionView, ...]

    def recall(self, target_recall: float) -> float | None:
        """Estimate of the recall of a search without filter, as the mean over rows.

        It is 1 for rows that are compared one by one, for others what their segments' writers measured at the number of lists that is probed.
        None where no row has either: all of them were coded here, or there is none.
        """
        counted = [(placed.part.rows, 1.0) for placed in self.flat] + [numbering.recall(target_recall) for numbering in self.coded]
        rows = sum(count for count, _ in counted)
        return sum(count * share for count, share in counted) / rows if rows else None


class FieldNumbersCache:
    """The newest `FieldNumbers` of each field of a collection; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, FieldNumbers] = {}

    def get(self, field_name: str, views: Mapping[int, PartitionView], expired_before_us: int | None) -> FieldNumbers:
        """Row numbers of a snapshot's views; rows that expired `EXPIRY_STEP_US` before or longer are not allowed."""
        step = None if expired_before_us is None else expired_before_us // EXPIRY_STEP_US
        found = self._newest.get(field_name)
        if found is not None and _is_of(found, views, step):
            return found
        with self._lock:
            before = self._newest.get(field_name)
            if before is not None and _is_of(before, views, step):
                return before
            made = _build(field_name, views, step, before)
            self._newest[field_name] = made
            return made

    def forget(self, views: Mapping[int, PartitionView]) -> None:
        """Let go of what belongs to older views: it would keep segments in memory that nobody asks for."""
        with self._lock:
            for name, numbers in list(self._newest.items()):
                if not _is_of(numbers, views, numbers.expiry_step):
                    del self._newest[name]


def _is_of(numbers: FieldNumbers, views: Mapping[int, PartitionView], step: int | None) -> bool:
    return numbers.expiry_step == step and len(numbers.views) == len(views) and all(map(is_, numbers.views, views.values()))


def _build(field_name: str, views: Mapping[int, PartitionView], step: int | None, before: FieldNumbers | None) -> FieldNumbers:
    blocks: dict[tuple[int, bool], _Block] = {}
    for partition, view in views.items():
        for is_tail, parts in ((False, view.sealed), (True, (view.tail,))):
            old = None if before is None else before.blocks.get((partition, is_tail))
            blocks[partition, is_tail] = old if old is not None and _same(old.parts, parts) else _Block.of(partition, parts, field_name)
    flat = tuple(chain.from_iterable(block.flat for block in blocks.values()))
    indexes = dict.fromkeys(chain.from_iterable(block.coded for block in blocks.values()))
    expired_us = None if step is None else step * EXPIRY_STEP_US
    kept = before if before is not None and before.expiry_step == step else None
    numberings = tuple(Numbering(index, blocks, Allowed(_live_bits(index, field_name, blocks, kept, expired_us)), field_name) for index in indexes)
    return FieldNumbers(blocks, flat, numberings, step, tuple(views.values()))


def _same(old: tuple[Part, ...], new: tuple[Part, ...]) -> bool:
    return old is new or (len(old) == len(new) and all(map(is_, old, new)))


def _live_bits(index: LogicalIndex, field_name: str, blocks: Blocks, before: FieldNumbers | None, expired_us: int | None) -> NDArray[np.uint8]:
    """Bitmap of the live rows: a copy of the last one, in which only the parts are written that are not as they were."""
    bits = np.zeros(index.numbers.limit >> 3, np.uint8)
    last = None if before is None else next((numbering.allowed.bits for numbering in before.coded if numbering.index is index), None)
    old_blocks: Blocks = {} if before is None or last is None else before.blocks
    if last is not None:
        bits[: len(last)] = last[: len(bits)]
    stale = [block for key, block in old_blocks.items() if blocks.get(key) is not block]
    fresh = [block for key, block in blocks.items() if old_blocks.get(key) is not block]
    was = {span.lease.numbers.start: (placed.part.live, span) for placed, span in _entries(stale, index)}
    for placed, span in _entries(fresh, index):
        live, _ = was.pop(span.lease.numbers.start, (None, None))
        if live is not placed.part.live:
            _put(bits, span, placed.part.vectors[field_name].having(placed.part.eligible(expired_us)))
    for _, span in was.values():
        _put(bits, span, None)
    return bits


def _entries(blocks: Sequence[_Block], index: LogicalIndex) -> Iterator[tuple[PlacedPart, CodedSpan]]:
    for block in blocks:
        if index in block.coded:
            yield from zip(block.coded[index].placed, block.coded[index].spans, strict=True)
