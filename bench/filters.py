"""Filters: recall@10 and p50 of single filtered queries by the share of rows that pass, and how the planner searches.

Twice: a filter that knows nothing of the vectors, and one that passes whole clusters of them, so that most queries lie where nothing passes.

Takes: own vectors, two attributes. Gives: recall, milliseconds, ways. Owns: which rows pass. Never: measures without exact ground truth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.feeds import VECTOR_FIELD
from bench.frame import Bench, Goal, Measure, Outcome, Step
from bench.generated_rows import generated_rows
from bench.intervals import mean, percentile
from bench.own_rows import PARTITIONS, OwnRows, own_rows
from bench.processes import Others, memory_mib
from bench.trained import generation
from bench.w3_many_segments import LIMIT, TARGET_RECALL, TRAIN_ROWS, rows_of
from query.collection_view import CollectionView
from query.filter_estimate import Estimate
from query.filter_plan import plan_filter
from query.http_models import QueryRequest
from query.pipeline import Pipeline
from query.query_role import spare_the_collector
from vectors.nearest_rows import NearestRows

SHARES = ("1e-5", "1e-3", "0.1", "0.5", "0.99")
ATTRIBUTES = {"number": "integer", "place": "integer"}
KINDS = {"": "number", "correlated_": "place"}
"""Attribute of each kind of filter: `number` is a random order of the rows, `place` one in which the rows of a cluster stand together."""
SEGMENT_ROWS = 50_000
TRUTH_ROWS = 50_000
LEAST_RECALL = 0.93


class Filters:
    """The workload."""

    name = "filters"
    title = "filtered queries by the share of rows that pass"

    @property
    def goals(self) -> Mapping[str, Goal]:
        """Goals of recall: that of a query without a filter, less what a sample of queries may be off."""
        return {f"{kind}recall_{share}": Goal(LEAST_RECALL, smaller_is_better=False) for kind in KINDS for share in SHARES}

    def run(self, bench: Bench) -> Outcome:
        """All shares of both kinds."""
        rows = bench.length(self.name, "rows")
        source = generated_rows(bench.seed)
        with bench.steps("filters: make rows, train"):
            matrix, queries = source.first(rows), source.queries(bench.length(self.name, "queries"))
            trained = generation(min(rows, TRAIN_ROWS), bench.seed)
        columns = _columns(source.first_clusters(rows), np.random.default_rng(bench.seed))
        outcome = Outcome(notes={"rows": rows, "queries": len(queries), "limit": LIMIT, "threads": 1})
        with own_rows(trained, ATTRIBUTES) as made, bench.steps("filters: store segments", -(-rows // SEGMENT_ROWS)) as step:
            _store(made, matrix, columns, step)
            with made.opened() as (view, pipeline):
                spare_the_collector()
                others = Others()
                measured = _Measured(view, pipeline, queries, matrix)
                with bench.steps("filters: measure", len(KINDS) * len(SHARES)) as step:
                    for kind, attribute in KINDS.items():
                        for share in SHARES:
                            modes, notes = measured.of(attribute, columns[attribute], max(LIMIT, round(float(share) * rows)))
                            outcome.modes |= {f"{kind}{name}_{share}": measure for name, measure in modes.items()}
                            outcome.notes[f"{kind}{share}"] = notes
                            step.done()
                outcome.modes |= {f"{name}_unfiltered": measure for name, measure in measured.of(None, columns["number"], rows)[0].items()}
                outcome.notes |= {"others_share_of_cpu": others.share(), "memory_mib": memory_mib(None)}
        return outcome


def _columns(clusters: NDArray[np.int64], random: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Values of both attributes by row, shape (n,), each of them a permutation: values below m are m rows."""
    rows = len(clusters)
    turned = random.permutation(int(clusters.max()) + 1)[clusters]
    place = np.empty(rows, np.int64)
    place[np.argsort(turned, kind="stable")] = np.arange(rows)
    return {"number": random.permutation(rows), "place": place}


def _store(made: OwnRows, matrix: NDArray[np.float32], columns: Mapping[str, NDArray[np.int64]], step: Step) -> None:
    segments = []
    for at, start in enumerate(range(0, len(matrix), SEGMENT_ROWS)):
        stop = min(len(matrix), start + SEGMENT_ROWS)
        attributes = {name: pa.array(values[start:stop]) for name, values in columns.items()}
        segments.append(made.store(at % PARTITIONS, start, matrix[start:stop], attributes))
        step.done()
    for partition in range(PARTITIONS):
        made.commit(partition, [segment for segment in segments if segment.partition == partition])


class _Measured:
    """One collection that is asked with filters."""

    def __init__(self, view: CollectionView, pipeline: Pipeline, queries: NDArray[np.float32], matrix: NDArray[np.float32]) -> None:
        self._view, self._pipeline, self._queries, self._matrix = view, pipeline, queries, matrix

    def of(self, attribute: str | None, values: NDArray[np.int64], passing: int) -> tuple[dict[str, Measure], dict[str, Any]]:
        """Recall and p50 where `passing` rows pass, and how they were searched."""
        rows = np.flatnonzero(values < passing)
        nearest = NearestRows(self._queries, LIMIT, "cosine")
        for start in range(0, len(rows), TRUTH_ROWS):  # a copy of all rows at once would be the largest thing in memory
            nearest.add(start, self._matrix[rows[start : start + TRUTH_ROWS]])
        truth = rows[nearest.rows()]
        chosen = None if attribute is None else {"must": [{"key": attribute, "range": {"lt": passing}}]}
        requests = [QueryRequest(query=query, limit=LIMIT, filter=chosen) for query in self._queries]
        self._pipeline.query(self._view.snapshot(), requests[0])
        took: list[float] = []
        recalls: list[float] = []
        compared: list[int] = []
        for request, best in zip(requests, truth.tolist(), strict=True):
            begin = time.perf_counter()
            answer = self._pipeline.query(self._view.snapshot(), request)
            took.append(1000 * (time.perf_counter() - begin))
            recalls.append(len(set(rows_of(answer.result)) & set(best)) / LIMIT)
            compared.append(answer.usage["searched_rows"])
        numbering = self._view.snapshot().numbers(VECTOR_FIELD).coded[0]
        nlist, nprobe = numbering.index.quantizer.nlist, numbering.nprobe(TARGET_RECALL)
        plan = plan_filter(Estimate.exact(len(rows)), len(values), nlist, nprobe, LIMIT)
        notes = {
            "passing": len(rows),
            "way": plan.way,
            "nprobe": plan.nprobe,
            "nprobe_unfiltered": nprobe,
            "compared_p50": float(np.median(compared)),
        }
        return {"recall": mean(recalls, "recall"), "p50_ms": percentile(took, 50, "milliseconds")}, notes
