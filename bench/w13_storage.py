"""W13, storage: bytes in the store divided by those of codes, refine codes and rows alone.

Takes: `Bench`; the prepared index where there is a local stack. Gives: a ratio by number of rows. Owns: what counts as a row's own bytes.
Never: counts an object that no manifest names any more as needed; the notes tell their bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.generations import publish_generation
from backends.catalog.objects import download
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from bench.frame import Bench, Goal, Measure, Outcome
from bench.generated_rows import rows_of
from bench.places import stack_values
from bench.prepared import PreparedIndex, newest_manifests
from bench.trained import field_record, generation
from bench.vector_batches import fill
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.item import ID_HASH_BYTES
from contracts.object_keys import CollectionKeys, parse_key
from contracts.segment import FIELD_PART_PREFIX, ROWS_PART, FieldPart, read_field_part, read_rows_part
from contracts.settings import load_settings
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource

FLAT_ROWS = 1000
POLL_SECONDS = 1.0


@dataclass(slots=True)
class StoredBytes:
    """Bytes of a collection's objects: needed ones by kind, those that no manifest names any more, and what rows and vectors are by themselves."""

    needed: dict[str, int]
    forgotten: int
    vectors: int
    rows: int

    @property
    def ratio(self) -> float:
        """Needed bytes over those of rows and vectors."""
        return sum(self.needed.values()) / (self.vectors + self.rows)

    def notes(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "needed": self.needed,
            "not named any more": self.forgotten,
            "codes and refine codes, or flat vectors": self.vectors,
            "rows": self.rows,
        }


class Storage:
    """The workload.

    Parameters
    ----------
    prepared : PreparedIndex
        The largest index.
    """

    name = "W13"
    title = "bytes in the store / codes, refine codes and rows"

    def __init__(self, prepared: PreparedIndex) -> None:
        self._prepared = prepared

    @property
    def goals(self) -> Mapping[str, Goal]:
        """One for each number of rows that was asked for."""
        return {str(rows): Goal(1.1) for rows in (1000, 65_536, 1_000_000)}

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Without the local stack the largest index is left out."""
        outcome = Outcome(notes={"not named any more": "flat parts whose vectors were coded since; garbage collection deletes them"})
        trained_rows = bench.length(self.name, "rows")
        for rows in (FLAT_ROWS, trained_rows):
            with bench.steps(f"W13: {rows} rows"):
                _add(outcome, rows, built(rows, trained_rows, bench.seed))
        if stack_values() is not None:
            made = self._prepared.open(bench)
            _add(outcome, made.rows, stored_bytes(made.engines, made.record))
        return outcome


def _add(outcome: Outcome, rows: int, found: StoredBytes) -> None:
    outcome.modes[str(rows)] = Measure(found.ratio, "ratio", found.ratio, found.ratio, 1)
    outcome.notes[str(rows)] = found.notes()


def built(rows: int, trained_rows: int, seed: int) -> StoredBytes:
    """One segment, built in this process: flat below the training size, else in the codes of a generation."""
    engines = Engines(load_settings(log_url="memory://", store_url="memory://"), MemoryLog(), MemoryStore())
    record = create_collection(engines, CollectionRequest("stored", [field_record()], partitions=1))
    builder = PartitionBuilder(PartitionSource(engines, record, record.index(), 0), "bench", UlidSource())
    reader = engines.log.reader(record.index().vectors_topic, {0: builder.start()})
    if rows >= trained_rows:
        made = publish_generation(engines.store, builder.codecs.keys, record.index().fields[0], generation(trained_rows, seed))
        builder.codecs.adopt(builder.codecs.add(made))
    fill(engines.log.producer(), record, rows_of(rows, seed), rows)
    while batches := reader.poll(POLL_SECONDS):
        for batch in batches:
            builder.feed(batch)
    builder.commit()
    try:
        return stored_bytes(engines, record)
    finally:
        engines.log.close()


def stored_bytes(engines: Engines, record: CollectionRecord) -> StoredBytes:
    """Look at every object of a collection."""
    manifests = newest_manifests(engines, record)
    named = {entry.key for manifest in manifests for segment in manifest.segments for entry in segment.parts.values()}
    named |= {entry.key for manifest in manifests for entry in manifest.deletes} | {each.object.key for m in manifests for each in m.ledger}
    found = StoredBytes({}, 0, 0, 0)
    for info in engines.store.list(CollectionKeys(record.name, record.incarnation).prefix):
        parsed = parse_key(info.key)
        kind = "other" if parsed is None else parsed.fields["part"] if parsed.kind == "part" else parsed.kind
        if parsed is not None and parsed.kind == "part" and info.key not in named:
            found.forgotten += info.size_bytes
        else:
            found.needed[kind] = found.needed.get(kind, 0) + info.size_bytes
    for segment in (segment for manifest in manifests for segment in manifest.segments):
        entry = segment.parts[ROWS_PART]
        found.rows += row_bytes(read_rows_part(download(engines.store, entry), entry.key).batch)
        for field in record.index().fields:
            entry = segment.parts[FIELD_PART_PREFIX + field.name]
            part = read_field_part(download(engines.store, entry), field, entry.key)
            found.vectors += part.matrix.nbytes if isinstance(part, FieldPart) else len(part.refine) * (part.code_bytes + part.refine.shape[1])
    return found


def row_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of rows by themselves: Arrow's columns that hold anything, and the hash of each id."""
    return sum(int(column.nbytes) for column in batch.columns if column.null_count < len(column)) + ID_HASH_BYTES * int(batch.num_rows)
