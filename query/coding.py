"""The coder: one thread per collection that finds rows by code where a generation is there, and rebuilds big tiers.

A node meets vectors that nobody has coded: tails, and segments from before the first generation or from below the training size. They are coded here,
beside the queries; until then they are compared exactly.

Takes: partitions, logical indexes. Gives: columns with codes. Owns: the order of the work: tails, segments, rebuilds.
Never: makes a row findable twice or not at all: partitions swap columns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from contracts.errors import HeadwaterError, UnavailableError
from query.field_indexes import FieldIndexes
from query.partition import Partition
from query.partition_view import PartitionView
from query.parts import CodedColumn, CodedSpan, Coding, VectorColumn
from query.segments import LoadedSegment
from vectors.logical_index import LogicalIndex
from vectors.quantizer import EncodedRows

if TYPE_CHECKING:
    from query.collection_view import CollectionSnapshot

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
STEP_ROWS = 4096
"""Rows that are coded at once: a tail is locked for them, some ten milliseconds."""


class Coder:
    """Codes what is not coded, and rebuilds.

    Parameters
    ----------
    name : str
        The collection's, for threads and logs.
    partitions : Mapping of int to Partition
        Whose rows are coded.
    indexes : FieldIndexes
        Where they are found then.
    snapshot : callable
        The newest snapshot, which says what is gone.
    is_loading : callable, optional
        Whether segments are loaded for the first time: then nothing is made faster or anew, which would only take processors from it.
    is_filling : callable, optional
        Whether refine codes of such segments still come. Their lists are put into a tier nevertheless, some time after the last one was loaded.
    """

    def __init__(
        self,
        name: str,
        partitions: Mapping[int, Partition],
        indexes: FieldIndexes,
        snapshot: Callable[[], CollectionSnapshot],
        is_loading: Callable[[], bool] = lambda: False,
        is_filling: Callable[[], bool] = lambda: False,
    ) -> None:
        self._name, self._partitions, self._indexes, self._snapshot = name, partitions, indexes, snapshot
        self._is_loading, self._is_filling, self._loading_seen = is_loading, is_filling, monotonic()
        self._wake = threading.Event()
        self._stopping = False
        self._failed: set[tuple[str, str]] = set()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"coder-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """End the thread after the step that it is in."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def look(self) -> None:
        """Look at once: something was loaded."""
        self._wake.set()

    def _run(self) -> None:
        next_rebuild = 0.0
        try:
            while not self._stopping:
                self._wake.wait(LOOK_SECONDS)
                self._wake.clear()
                now = monotonic()
                self.turn(may_rebuild=now >= next_rebuild)
                if now >= next_rebuild:
                    next_rebuild = now + LOOK_SECONDS
        except Exception as error:  # noqa: BLE001 - a mistake of ours; the role ends with it rather than serving ever slower answers
            self.failure = error

    def turn(self, *, may_rebuild: bool = True) -> None:
        """Do all work that there is; whether a rebuild pays takes a look at all rows, which is not worth it whenever a thousand of them came."""
        for partition in self._partitions.values():
            view = partition.view
            if view is not None:
                self._code(partition, view)
        if self._is_loading():
            self._loading_seen = monotonic()
            return
        is_filling = self._is_filling()
        may_merge = not is_filling or monotonic() >= self._loading_seen + LOOK_SECONDS
        for (field, _), index in self._indexes.all().items():
            if not self._stopping and not is_filling and index.graph_due:
                index.build_graph()
            if not self._stopping and (may_merge if index.is_attached else may_rebuild and not is_filling):
                self.rebuild(field, index)

    def rebuild(self, field: str, index: LogicalIndex, *, even_if_not_due: bool = False) -> None:
        """Make an index's tiers anew, without what is gone."""
        try:
            snapshot = self._snapshot()
        except UnavailableError:  # nothing is loaded
            return
        numbering = next((each for each in snapshot.numbers(field).coded if each.index is index), None)
        gone = np.zeros(0, np.uint8) if numbering is None else numbering.gone(snapshot.expired_before_us)
        if even_if_not_due or index.rebuild_due(int(np.bitwise_count(gone).sum())):
            index.rebuild(gone)

    def _code(self, partition: Partition, view: PartitionView) -> None:
        for field, generation in view.loaded.read.manifest.generation.items():
            try:
                index = self._indexes.get(field, generation)
            except HeadwaterError as error:
                logger.warning("a generation cannot be opened; its field is searched exactly: %s", error, extra={"collection": self._name})
                continue
            while not self._stopping and not _has_codes(partition, field, index) and not partition.code_tail(field, index, STEP_ROWS):
                pass
            for segment in view.loaded.segments.values():
                column = segment.vectors.get(field)
                if isinstance(column, VectorColumn) and not self._stopping:
                    self._code_segment(partition, segment, field, column, index)

    def _code_segment(self, partition: Partition, segment: LoadedSegment, field: str, column: VectorColumn, index: LogicalIndex) -> None:
        encoded = _together([index.quantizer.encode(column.matrix[start:stop]) for start, stop in _steps(len(column.matrix))], index)
        places = None if column.rows is None else column.rows.astype(np.int64)
        lease = index.add_rows(segment.rows, encoded, places)
        partition.recode(segment, field, CodedColumn(Coding(index, (CodedSpan(lease, 0, segment.rows),)), column.rows))


def _has_codes(partition: Partition, field: str, index: LogicalIndex) -> bool:
    view = partition.view
    coding = None if view is None else view.tail.vectors[field].coding
    return coding is not None and coding.index is index


def _steps(rows: int) -> Iterator[tuple[int, int]]:
    return ((start, min(rows, start + STEP_ROWS)) for start in range(0, rows, STEP_ROWS))


def _together(pieces: list[EncodedRows], index: LogicalIndex) -> EncodedRows:
    if not pieces:
        quantizer = index.quantizer
        return EncodedRows(np.zeros(0, np.int64), np.zeros((0, quantizer.code_bytes), np.uint8), np.zeros((0, quantizer.refine_bytes), np.uint8))
    arrays = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("list_numbers", "codes", "refine"))
    return EncodedRows(*arrays)
