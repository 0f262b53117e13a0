"""W3: the public search over many segments, a tail and deletes, divided by one merged faiss index of the same rows.

Takes: own vectors. Gives: QPS of batches of 64, p50 of single queries, the microseconds that a single one takes more. Owns: what lies where.
Never: compares at different recall: both probe as many lists and refine as many candidates, and the recall of both stands in the notes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.feeds import VECTOR_FIELD
from bench.frame import Bench, Goal, Measure, Outcome
from bench.generated_rows import generated_rows
from bench.intervals import abba, percentile, ratio
from bench.merged_index import MergedIndex, MergedSearch
from bench.own_rows import MEASURED_EVERY, PARTITIONS, OwnRows, StoredSegment, own_rows, row_of
from bench.processes import Others
from bench.trained import generation
from contracts.errors import CorruptError
from indexer.field_parts import coded_part
from query.collection_view import CollectionView
from query.http_models import QueryBatchRequest, QueryRequest
from query.pipeline import Pipeline
from query.query_role import spare_the_collector
from query.search import LEAST_CANDIDATES
from vectors import coarse_graph
from vectors.flat import one_thread
from vectors.recall import REFINE_FACTOR

SEGMENTS = (100, 500)
TAIL_ROWS = 10_000
DELETED_SHARE = 0.05
LIMIT, BATCH, QUERIES = 10, 64, 1024
TRAIN_ROWS = 65_536
TARGET_RECALL = 0.95
MOST_RECALL_DIFFERENCE = 0.01
Truth = NDArray[np.int64]


class ManySegments:
    """The workload."""

    name = "W3"
    title = "search of many segments, a tail and deletes / one merged faiss index"

    @property
    def goals(self) -> Mapping[str, Goal]:
        """Goals of the ratios."""
        least = {"batch": 0.90, "single": 0.87}
        return {f"{kind}_{count}": Goal(limit, smaller_is_better=False) for kind, limit in least.items() for count in SEGMENTS}

    def run(self, bench: Bench) -> Outcome:
        """Both numbers of segments, one after the other."""
        outcome = Outcome()
        rows = bench.length(self.name, "rows")
        source = generated_rows(bench.seed)
        with bench.steps("W3: make rows, train"):
            matrix, queries = source.first(rows + TAIL_ROWS), source.queries(QUERIES)
            trained = generation(min(rows, TRAIN_ROWS), bench.seed)
        for count in SEGMENTS:
            with bench.steps(f"W3: {count} segments: store, load, measure"), own_rows(trained) as made:
                filled = Filled.of(made, matrix, count, bench.seed)
                with made.opened() as (view, pipeline):
                    measures, notes = _compare(bench, filled, view, pipeline, queries)
            outcome.modes |= measures
            outcome.notes[f"segments_{count}"] = notes
        return outcome


class Filled:
    """A collection of many segments with deleted rows and a tail, and the same rows in one index; `live` has shape (n,)."""

    def __init__(self, made: OwnRows, matrix: NDArray[np.float32], live: NDArray[np.bool_], merged: MergedIndex) -> None:
        self.made, self.matrix, self.live, self.merged = made, matrix, live, merged

    @classmethod
    def of(cls, made: OwnRows, matrix: NDArray[np.float32], count: int, seed: int) -> Filled:
        """Store `matrix`, shape (n, d), in so many segments and, for its last `TAIL_ROWS`, a tail."""
        random = np.random.default_rng(seed)
        sealed = len(matrix) - TAIL_ROWS
        bounds = np.linspace(0, sealed, count + 1).astype(int)
        segments = [
            made.store(at % PARTITIONS, int(start), matrix[start:stop], measured=at % MEASURED_EVERY == 0)
            for at, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False))
        ]
        live = np.ones(len(matrix), np.bool_)
        for partition in range(PARTITIONS):
            mine = [segment for segment in segments if segment.partition == partition]
            made.commit(partition, mine, {segment.entry.segment_id: _deleted(segment, live, random) for segment in mine})
        tails = np.linspace(sealed, len(matrix), PARTITIONS + 1).astype(int)
        for partition, (start, stop) in enumerate(zip(tails, tails[1:], strict=False)):
            made.send(partition, int(start), matrix[start:stop])
        tail = coded_part(made.quantizer, matrix[sealed:].astype(np.float16), np.arange(TAIL_ROWS), TAIL_ROWS)
        return cls(made, matrix, live, MergedIndex(made.quantizer, [*(segment.part for segment in segments), tail]))

    def truth(self, queries: NDArray[np.float32]) -> Truth:
        """The closest live rows, shape (q, LIMIT), by the vectors themselves."""
        rows = np.flatnonzero(self.live)
        faiss.omp_set_num_threads(0)
        _, found = faiss.knn(queries, self.matrix[self.live], LIMIT, faiss.METRIC_INNER_PRODUCT)
        return rows[found]


def _deleted(segment: StoredSegment, live: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.int64]:
    rows = np.sort(random.choice(segment.entry.rows, round(DELETED_SHARE * segment.entry.rows), replace=False))
    live[segment.first_number + rows] = False
    return rows


def recall(found: Sequence[Sequence[int]], truth: Truth) -> float:
    """Mean share of the true neighbours, shape (q, k), that were found."""
    return float(np.mean([len(set(hits) & set(best)) / len(best) for hits, best in zip(found, truth.tolist(), strict=True)]))


def rows_of(result: Mapping[str, Any]) -> list[int]:
    """Row numbers of an answer's points."""
    return [row_of(point["id"]) for point in result["points"]]


def _compare(
    bench: Bench, filled: Filled, view: CollectionView, pipeline: Pipeline, queries: NDArray[np.float32]
) -> tuple[dict[str, Measure], dict[str, Any]]:
    count = sum(len(pinned.sealed) for pinned in view.snapshot().views.values())
    requests = [QueryRequest(query=query, limit=LIMIT) for query in queries]
    nprobe = view.snapshot().numbers(VECTOR_FIELD).coded[0].nprobe(TARGET_RECALL)
    truth = filled.truth(queries)
    one_thread()  # of OpenMP, for both sides
    spare_the_collector()  # as the query role does
    ours = recall([rows_of(pipeline.query(view.snapshot(), request).result) for request in requests], truth)
    bare, by_graph = _fastest(filled, nprobe, queries)
    theirs = recall(bare.closest(queries, LIMIT).tolist(), truth)
    if abs(ours - theirs) > MOST_RECALL_DIFFERENCE:
        raise CorruptError(f"{count} segments: recall {ours:.4f}, of the merged index {theirs:.4f}: rows are lost or found twice")
    pairs, others = bench.length("W3", "pairs"), Others()
    batches = [requests[at : at + BATCH] for at in range(0, QUERIES, BATCH)]
    bodies = [QueryBatchRequest(searches=batch) for batch in batches]
    our_qps, bare_qps = _rates(
        lambda: [pipeline.query_batch(view.snapshot(), body) for body in bodies],
        lambda: [bare.closest(queries[at : at + BATCH], LIMIT) for at in range(0, QUERIES, BATCH)],
        pairs,
    )
    our_p50, bare_p50 = _single(lambda at: pipeline.query(view.snapshot(), requests[at]), partial(_closest_of_one, bare, queries), pairs)
    added = [1e6 * (one - other) for one, other in zip(our_p50, bare_p50, strict=True)]
    measures = {
        f"batch_{count}": ratio(our_qps, bare_qps),
        f"single_{count}": ratio(bare_p50, our_p50),
        f"added_us_{count}": percentile(added, 50, "microseconds"),
    }
    notes = {
        "rows": len(filled.matrix),
        "nlist": filled.made.quantizer.nlist,
        "nprobe": nprobe,
        "recall_at_10": ours,
        "recall_at_10_merged": theirs,
        "merged_by_graph": by_graph,
        "our_qps_batch_64": float(np.median(our_qps)),
        "merged_qps_batch_64": float(np.median(bare_qps)),
        "our_p50_us": 1e6 * float(np.median(our_p50)),
        "merged_p50_us": 1e6 * float(np.median(bare_p50)),
        "threads": 1,
        "others_share_of_cpu": others.share(),
    }
    return measures, notes


def _fastest(filled: Filled, nprobe: int, queries: NDArray[np.float32]) -> tuple[MergedSearch, bool]:
    """The merged index by all centroids or by its graph, whichever answers single queries faster, and whether that is the graph."""
    factor = max(LEAST_CANDIDATES / LIMIT, REFINE_FACTOR)
    kinds = [False, True] if coarse_graph.is_used(filled.made.quantizer.nlist, nprobe) and coarse_graph.pays(filled.made.quantizer) else [False]
    searches = {by_graph: filled.merged.searcher(nprobe, factor, filled.live, by_graph=by_graph) for by_graph in kinds}
    took: dict[bool, float] = {}
    for by_graph, search in searches.items():
        took[by_graph] = _median_seconds(partial(_closest_of_one, search, queries), QUERIES)
    best = min(took, key=lambda by_graph: took[by_graph])
    return searches[best], best


def _closest_of_one(search: MergedSearch, queries: NDArray[np.float32], at: int) -> None:
    search.closest(queries[at : at + 1], LIMIT)


def _median_seconds(work: Callable[[int], Any], count: int) -> float:
    """Median time of some work, done for each number below `count`."""
    took = []
    for at in range(count):
        begin = time.perf_counter()
        work(at)
        took.append(time.perf_counter() - begin)
    return float(np.median(took))


def _rates(ours: Callable[[], Any], bare: Callable[[], Any], pairs: int) -> tuple[list[float], list[float]]:
    """Queries a second of each repetition, A B B A; both run once before."""
    rates: dict[str, list[float]] = {"A": [], "B": []}
    for warm in (ours, bare):
        warm()
    for which in abba(pairs):
        begin = time.perf_counter()
        (ours if which == "A" else bare)()
        rates[which].append(QUERIES / (time.perf_counter() - begin))
    return rates["A"], rates["B"]


def _single(ours: Callable[[int], Any], bare: Callable[[int], Any], pairs: int) -> tuple[list[float], list[float]]:
    """p50 in seconds of each repetition, A B B A."""
    found: dict[str, list[float]] = {"A": [], "B": []}
    for which in abba(pairs):
        found[which].append(_median_seconds(ours if which == "A" else bare, QUERIES))
    return found["A"], found["B"]
