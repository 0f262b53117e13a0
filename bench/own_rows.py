"""A collection of own vectors in this process, on the memory log and the memory store: what search is measured on.

Segments, manifests and batches are written here as the builder and the embed worker write them, with the same functions, at the moment that a
workload wants; the query side is the real one. Row number n has the id ``row-n``.

Takes: vectors. Gives: stored segments, commits, an open view with its pipeline. Owns: the collection, until its context ends.
Never: encodes while something is measured, unless that is what is measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap
from ulid import ULID

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.manifests import ManifestChain
from backends.catalog.objects import upload
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from bench.feeds import VECTOR_FIELD, VECTOR_FIELD_WORDS
from bench.trained import FIRST_GENERATION
from contracts.chain import BatchSpan
from contracts.collection import CollectionRecord
from contracts.deletes import DeleteDelta, encode_delete_delta
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.generation import Generation, encode_generation
from contracts.manifest import Checkpoint, Manifest, ObjectEntry, ReadManifest, ReadVersion, SegmentEntry
from contracts.object_keys import CollectionKeys
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, CodedPart, rows_schema, write_coded_part, write_rows_part
from contracts.settings import load_settings
from contracts.store import PutOutcome
from contracts.vectors_batch import NOTICE_KEY, BatchItem, CommitNotice, batch_headers, batch_schema, build_batch, encode_batch, notice_headers
from embedding.decode_pool import DecodePool
from headwater.wiring import vector_field
from indexer.field_parts import coded_part
from query.collection_view import CollectionView
from query.pipeline import Pipeline
from vectors.inverted_lists import build_lists, write_lists
from vectors.quantizer import Quantizer

PARTITIONS = 4
TAIL_BATCH_ROWS = 64
MEASURED_EVERY = 10
"""Of many small segments one in so many gets a table of recall: they are alike, a table takes longer than coding, and the trainer's counts most."""
LOAD_SECONDS = 120.0
_WRITER, _ROLE, _PREFIX = "bench", "b", "row-"


def id_of(number: int) -> str:
    """Id of a row number."""
    return f"{_PREFIX}{number}"


def row_of(item_id: str) -> int:
    """Row number of an id."""
    return int(item_id.removeprefix(_PREFIX))


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment whose objects are stored, not committed yet: rows `first_number` and on, of a partition; `part` are their codes."""

    partition: int
    first_number: int
    entry: SegmentEntry
    part: CodedPart


@dataclass(frozen=True, slots=True)
class PreparedCommit:
    """The next manifest of a partition and its bytes, not stored yet."""

    partition: int
    manifest: Manifest
    data: bytes


@dataclass(slots=True)
class _Chain:
    """One partition's newest manifest, how far its media log would be, and up to where rows were committed or sent."""

    read: ReadManifest
    next_offset: int = 0
    visible_offset: int = 0
    deleted: list[ObjectEntry] = field(default_factory=list)


class OwnRows:
    """One collection.

    Parameters
    ----------
    engines : Engines
        On memory log and memory store.
    generation : Generation
        Its only one, from `bench.trained`.
    attributes : Mapping of str to str
        The collection's typed attributes.
    """

    def __init__(self, engines: Engines, generation: Generation, attributes: Mapping[str, str]) -> None:
        self.engines = engines
        request = CollectionRequest("rows", [vector_field(VECTOR_FIELD_WORDS)], partitions=PARTITIONS, attributes=attributes)
        self.record: CollectionRecord = create_collection(engines, request)
        self.index = self.record.index()
        self.field = self.index.fields[0]
        self._schema = rows_schema(attributes)
        self._keys = CollectionKeys(self.record.name, self.record.incarnation).index(self.index.name)
        engines.store.put_if_absent(self._keys.generation(FIRST_GENERATION, VECTOR_FIELD), encode_generation(generation))
        self.quantizer = Quantizer.open(generation)
        self._producer = engines.log.producer()
        self._chains = {partition: self._chain(partition) for partition in range(PARTITIONS)}

    def _chain(self, partition: int) -> _Chain:
        chain = ManifestChain(self.engines.store, self._keys.partition(partition))
        head = chain.head()
        if head is None:
            raise UnavailableError("the collection that was just made has no manifest", hint="run the tests of backends/catalog")
        return _Chain(head)

    def store(
        self,
        partition: int,
        first_number: int,
        matrix: NDArray[np.float32],
        attributes: Mapping[str, pa.Array] | None = None,
        *,
        measured: bool = True,
    ) -> StoredSegment:
        """Encode and store one segment of rows, vectors of shape (n, d), with their attributes by name; nobody sees it before `commit`.

        Without being `measured` it has no table of recall, whose making takes longer than the coding of a small segment.
        """
        rows, ulid, chain = len(matrix), str(ULID()), self._chains[partition]
        start = chain.next_offset
        chain.next_offset += rows
        keys, store = self._keys.partition(partition), self.engines.store
        part = (coded_part if measured else _unmeasured_part)(self.quantizer, matrix.astype(np.float16), np.arange(rows), rows)
        stored = {ROWS_PART: write_rows_part(self._rows(start, first_number, rows, attributes or {}), {})}
        stored[FIELD_PART_PREFIX + VECTOR_FIELD] = write_coded_part(self.field, part)
        parts = {name: upload(store, keys.part(_ROLE, 1, ulid, name), data) for name, data in stored.items()}
        entry = SegmentEntry(segment_id=ulid, rows=rows, start_offset=start, next_offset=start + rows, schema_version=1, parts=parts)
        return StoredSegment(partition, first_number, entry, part)

    def _rows(self, start: int, first_number: int, rows: int, attributes: Mapping[str, pa.Array]) -> pa.RecordBatch:
        struct = self._schema.field("attributes").type
        columns = {
            "offset": pa.array(np.arange(start, start + rows)),
            "item": pa.array(np.zeros(rows, np.int32)),
            "id": pa.array([id_of(number) for number in range(first_number, first_number + rows)]),
            "attributes": pa.StructArray.from_arrays(
                [attributes.get(target.name, pa.nulls(rows, target.type)).cast(target.type) for target in struct], fields=list(struct)
            ),
        }
        arrays = [columns.get(target.name, pa.nulls(rows, target.type)).cast(target.type) for target in self._schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def commit(self, partition: int, segments: Sequence[StoredSegment], deleted: Mapping[str, NDArray[np.int64]] | None = None) -> int:
        """Commit stored segments of a partition, and deleted rows by segment id; announce it, and give the manifest's version."""
        return self.publish(self.prepare(partition, segments, deleted))

    def prepare(self, partition: int, segments: Sequence[StoredSegment], deleted: Mapping[str, NDArray[np.int64]] | None = None) -> PreparedCommit:
        """Do all of a commit that takes the interpreter; what follows builds upon it, and `publish` must come in the same order."""
        chain = self._chains[partition]
        if deleted:
            delta = DeleteDelta({name: BitMap(rows.tolist()) for name, rows in deleted.items()}, [])
            key = self._keys.partition(partition).part(_ROLE, 1, str(ULID()), "deletes")
            chain.deleted.append(upload(self.engines.store, key, encode_delete_delta(delta)))
        manifest = chain.read.next(
            commit_id=str(ULID()),
            writer=_WRITER,
            committed_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            generation={VECTOR_FIELD: FIRST_GENERATION},
            checkpoint=Checkpoint(
                vectors_offset=self.engines.log.bounds(self.index.vectors_topic)[partition].next_offset,
                media_offset=max([chain.read.manifest.checkpoint.media_offset, *(segment.entry.next_offset for segment in segments)]),
            ),
            segments=(*chain.read.manifest.segments, *(segment.entry for segment in segments)),
            deletes=tuple(chain.deleted),
        )
        data = manifest.to_bytes()
        chain.read = ReadVersion(manifest, data)
        return PreparedCommit(partition, manifest, data)

    def publish(self, prepared: PreparedCommit) -> int:
        """Store a manifest and announce it; gives its version."""
        partition, manifest = prepared.partition, prepared.manifest
        outcome = self.engines.store.put_if_absent(self._keys.partition(partition).manifest(manifest.version), prepared.data)
        if outcome is not PutOutcome.CREATED:
            raise UnavailableError("a manifest could not be created", hint="run it again")
        chain = self._chains[partition]
        chain.visible_offset = max(chain.visible_offset, manifest.checkpoint.media_offset)
        self._append(partition, NOTICE_KEY, None, notice_headers(CommitNotice(manifest.version, manifest.commit_id, manifest.incarnation)))
        return manifest.version

    def send(self, partition: int, first_number: int, matrix: NDArray[np.float32]) -> None:
        """Send rows as the embed worker does, vectors of shape (n, d): they are a tail until a commit covers them."""
        chain, schema = self._chains[partition], batch_schema(self.index, self.record.attributes)
        for at in range(0, len(matrix), TAIL_BATCH_ROWS):
            block, start = matrix[at : at + TAIL_BATCH_ROWS], chain.next_offset
            items = [
                BatchItem(start + row, 0, "upsert", id_of(first_number + at + row), vectors={VECTOR_FIELD: vector}, attributes={})
                for row, vector in enumerate(block)
            ]
            value = encode_batch(build_batch(items, schema))
            chain.next_offset += len(block)
            span = BatchSpan(self.record.incarnation, self.record.source_topic_id, start, chain.next_offset)
            self._append(partition, None, value, batch_headers(span, value))
        chain.visible_offset = chain.next_offset

    def _append(self, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        self._producer.send(self.index.vectors_topic, partition=partition, key=key, value=value, headers=headers).result()

    @contextmanager
    def opened(self) -> Iterator[tuple[CollectionView, Pipeline]]:
        """The query side, which has caught up and found codes and graph for everything."""
        view = CollectionView(self.engines, self.record)
        with DecodePool(self.engines.settings) as decoding:
            view.start()
            try:
                wait_for(lambda: self.is_served(view), "a collection that is loaded and coded")
                yield view, Pipeline(self.engines, decoding)
            finally:
                view.stop()

    def is_served(self, view: CollectionView) -> bool:
        """Whether a view has all rows, finds them by codes, and has the graph that it wants."""
        if not view.ready:
            return False
        snapshot = view.snapshot()
        numbers = snapshot.numbers(VECTOR_FIELD)
        reached = all(snapshot.views[partition].expected >= chain.visible_offset for partition, chain in self._chains.items())
        return reached and not numbers.flat and not any(numbering.index.graph_due for numbering in numbers.coded)


def _unmeasured_part(quantizer: Quantizer, vectors: NDArray[np.float16], rows: NDArray[np.int64], segment_rows: int) -> CodedPart:
    encoded = quantizer.encode(vectors)
    lists = write_lists(build_lists(quantizer.nlist, encoded.list_numbers, encoded.codes, rows))
    sizes = (quantizer.nlist, quantizer.code_bytes)
    return CodedPart(quantizer.number, quantizer.codec.name, *sizes, lists, encoded.refine, rows.astype(np.uint32), segment_rows, {})


@contextmanager
def own_rows(generation: Generation, attributes: Mapping[str, str] | None = None) -> Iterator[OwnRows]:
    """A collection that is gone when the context ends."""
    with tempfile.TemporaryDirectory(prefix="headwater-bench-") as folder:
        settings = load_settings(log_url="memory://", store_url="memory://", cache_dir=Path(folder), query_port=0)
        engines = Engines(settings, MemoryLog(), MemoryStore())
        try:
            yield OwnRows(engines, generation, attributes or {})
        finally:
            engines.log.close()


def wait_for(condition: Callable[[], bool], what: str, limit_seconds: float = LOAD_SECONDS) -> None:
    """Wait until a condition holds; UnavailableError when time is over."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"waited {limit_seconds:g} s for {what}", hint="look at the log with HEADWATER_LOG_LEVEL=INFO")
        time.sleep(0.01)
