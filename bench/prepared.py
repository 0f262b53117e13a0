"""One index that several workloads look at: own vectors, end to end through Kafka and MinIO, with everything sealed, trained and coded.

It is made once, by the workload that comes first, while the real roles run; then they are stopped, and the bucket stays until the run ends.

Takes: `Bench`, the local stack. Gives: the place, the collection, what making it took, and what the query service answered.
Owns: bucket, topics and vectors, until it is closed. Never: changes after it was made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.manifests import ManifestChain
from bench.feeds import VECTOR_FIELD, VECTOR_FIELD_WORDS
from bench.frame import Bench
from bench.generated_rows import generated_rows, rows_of
from bench.places import Place, open_place
from bench.processes import memory_mib, wait_until
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.manifest import Manifest
from contracts.object_keys import CollectionKeys
from contracts.segment import FIELD_PART_PREFIX
from contracts.settings import load_settings
from headwater.client import HeadwaterClient
from headwater.wiring import open_engines, vector_field
from indexer.recode import is_flat
from ingest.producer import MediaProducer
from vectors.nearest_rows import NearestRows

SEND_ROWS = 10_000
LIMIT = 10
SEARCHABLE_SECONDS, INDEXED_SECONDS = 1800.0, 900.0


@dataclass(slots=True)
class Prepared:
    """The index: `minutes` until everything is searchable and indexed, memory of each role, and the answers to the queries.

    `queries`, shape (q, d), have the true neighbours `truth`, shape (q, `LIMIT`); `recalls` are the share of these found by each query,
    `latencies` its seconds over HTTP.
    """

    place: Place
    engines: Engines
    record: CollectionRecord
    rows: int
    minutes: dict[str, float] = field(default_factory=dict)
    recalls: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    queries: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    truth: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def manifests(self) -> list[Manifest]:
        """The newest manifest of each partition."""
        return newest_manifests(self.engines, self.record)


class PreparedIndex:
    """Makes the index when it is first asked for; `close` takes everything away."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._made: Prepared | None = None

    def open(self, bench: Bench) -> Prepared:
        """The index of this run; raises as `bench.places.open_place`, and UnavailableError where a role does not do its work in time."""
        if self._made is None:
            self._made = self._stack.enter_context(_prepared(bench))
        return self._made

    def close(self) -> None:
        """Delete collection, topics and bucket."""
        self._made = None
        self._stack.close()


def newest_manifests(engines: Engines, record: CollectionRecord) -> list[Manifest]:
    """The newest manifest of each partition of a collection."""
    keys = CollectionKeys(record.name, record.incarnation).index(record.index().name)
    reads = [ManifestChain(engines.store, keys.partition(number)).head() for number in range(record.partitions)]
    return [read.manifest for read in reads if read is not None]


@contextmanager
def _prepared(bench: Bench) -> Iterator[Prepared]:
    rows, partitions = bench.length("E2E", "rows"), bench.length("E2E", "partitions")
    with ExitStack() as stack:
        place = stack.enter_context(open_place("kafka"))
        if not bench.full:  # with fewer rows no segment would become as large, nor any index be trained
            changed = {"seal_rows": rows // 4, "seal_seconds": 5, "train_rows": rows // 2}
            place.values = dict(place.values) | {name: str(value) for name, value in changed.items()}
            place.settings = load_settings(**place.values)
        engines = stack.enter_context(open_engines(place.settings))
        request = CollectionRequest(f"bench-e2e-{time.time_ns():x}"[:30], [vector_field(VECTOR_FIELD_WORDS)], partitions)
        record = create_collection(engines, request)
        stack.callback(delete_collection, engines, record.name)
        made = Prepared(place, engines, record, rows)
        with bench.steps(f"E2E: {rows} vectors"):
            matrix = rows_of(rows, bench.seed)
            queries = generated_rows(bench.seed).queries(bench.length("E2E", "queries"))
            truth = nearest(matrix, queries)
        made.queries, made.truth = queries, truth
        with place.running():
            _fill(bench, made, matrix)
            _ask(bench, made, queries, truth)
        yield made


def nearest(matrix: NDArray[np.float16], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The `LIMIT` true neighbours of each query among the rows, shape (n, d), as they are stored; shape (q, `LIMIT`)."""
    found = NearestRows(queries, LIMIT, "cosine")
    for start in range(0, len(matrix), SEND_ROWS):
        found.add(start, matrix[start : start + SEND_ROWS].astype(np.float32))
    return found.rows()


def _fill(bench: Bench, made: Prepared, matrix: NDArray[np.float16]) -> None:
    """Send all rows, and wait until they are searchable, then until every segment is committed and coded."""
    place, record, rows = made.place, made.record, len(matrix)
    before, begin = place.cpu(), time.perf_counter()
    with HeadwaterClient(place.url) as client, MediaProducer(made.engines.log, record, place.settings, bulk=True) as producer:
        with bench.steps(f"E2E: send {rows} vectors", rows // SEND_ROWS) as step:
            for start in range(0, rows, SEND_ROWS):
                producer.send_vectors([str(row) for row in range(start, start + SEND_ROWS)], {VECTOR_FIELD: matrix[start : start + SEND_ROWS]})
                step.done()
            producer.flush()
        made.minutes["sent"] = (time.perf_counter() - begin) / 60
        with bench.steps("E2E: until all are searchable"):
            client.wait_for(record.name, producer.next_offsets, timeout_seconds=SEARCHABLE_SECONDS)
        made.minutes["searchable"] = (time.perf_counter() - begin) / 60
    with bench.steps("E2E: until all are sealed, trained and coded"):
        wait_until(partial(_is_indexed, made, rows, set()), "an index of coded segments", place.processes, INDEXED_SECONDS, pause_seconds=0.5)
    made.minutes["indexed"] = (time.perf_counter() - begin) / 60
    after = place.cpu()
    made.notes["cpu_seconds"] = {name: round(spent - before.get(name, 0.0), 1) for name, spent in after.items()}
    made.notes["segments"] = sum(len(manifest.segments) for manifest in made.manifests())


def _is_indexed(made: Prepared, rows: int, coded: set[str]) -> bool:
    """Whether all rows are in committed segments and every vector is coded; `coded` are the keys of parts that were found so."""
    manifests = made.manifests()
    if sum(manifest.rows for manifest in manifests) < rows:
        return False
    for manifest in manifests:
        for segment in manifest.segments:
            entry = segment.parts[FIELD_PART_PREFIX + VECTOR_FIELD]
            if entry.key not in coded:
                if is_flat(made.engines.store, entry):
                    return False
                coded.add(entry.key)
    return True


def _ask(bench: Bench, made: Prepared, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
    with bench.steps("E2E: until the roles rest"):
        made.place.settle(120.0)
    with bench.steps("E2E: queries", len(queries)) as step, HeadwaterClient(made.place.url) as client:
        for query in queries[:50]:
            client.search(made.record.name, vector=query.tolist(), limit=LIMIT)
        for query, wanted in zip(queries, truth, strict=True):
            vector, begin = query.tolist(), time.perf_counter()
            answer = client.search(made.record.name, vector=vector, limit=LIMIT)
            made.latencies.append(time.perf_counter() - begin)
            made.recalls.append(float(np.isin(wanted, [int(hit.id) for hit in answer.hits]).mean()))
            step.done()
    made.notes["memory_mib"] = {process.name: memory_mib(process.pid) for process in made.place.processes}
