"""HTTP: what a query costs beyond the search itself, and how many a second 16 callers get.

The query role runs as a process of its own; this process opens the same stored segments, so that both search the same rows with the same code.

Takes: own vectors. Gives: milliseconds between the round trip and the search in process, and queries a second. Owns: the callers.
Never: counts the making of a request or the reading of an answer's JSON, which are the caller's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.frame import Bench, Goal, Outcome
from bench.generated_rows import generated_rows
from bench.intervals import abba, percentile, ratio
from bench.own_rows import PARTITIONS
from bench.processes import BenchProcess, Others, module_command
from bench.served_rows import Caller, Served, body_of, served_rows
from bench.trained import generation
from query.collection_view import CollectionView
from query.http_models import QueryRequest
from query.pipeline import Pipeline
from query.query_role import spare_the_collector

SEGMENTS = 20
TRAIN_ROWS = 30_000
LIMIT, QUERIES, CLIENTS = 10, 256, 16


class HttpOverhead:
    """The workload."""

    name = "HTTP"
    title = "round trip of a vector query over HTTP, and 16 callers"

    @property
    def goals(self) -> Mapping[str, Goal]:
        """The goal of the round trip."""
        return {"overhead_p50_ms": Goal(1.0)}

    def run(self, bench: Bench) -> Outcome:
        """Single queries A B B A, then 16 callers and as many threads in process, A B B A."""
        rows, pairs = bench.length(self.name, "rows"), bench.length(self.name, "pairs")
        source = generated_rows(bench.seed)
        with bench.steps("HTTP: make rows"):
            matrix, queries, trained = source.first(rows), source.queries(QUERIES), generation(TRAIN_ROWS, bench.seed)
        with served_rows(trained) as served:
            with bench.steps("HTTP: store segments"):
                _store(served, matrix)
            with served.rows.opened() as (view, pipeline), served.running():
                others = Others(*served.pids)
                outcome = _single(bench, served, view, pipeline, queries, pairs)
                with bench.steps(f"HTTP: {CLIENTS} callers", 2 * pairs) as step:
                    over_http, in_process = _many(served, view, pipeline, queries, pairs, step.done)
                outcome.notes["others_share_of_cpu"] = others.share()
        outcome.modes["qps_16"] = ratio(over_http, in_process)
        outcome.notes |= {"rows": rows, "qps_16_http": float(np.median(over_http)), "qps_16_in_process": float(np.median(in_process))}
        return outcome


def _store(served: Served, matrix: NDArray[np.float32]) -> None:
    bounds = np.linspace(0, len(matrix), SEGMENTS + 1).astype(int)
    segments = [
        served.rows.store(at % PARTITIONS, int(start), matrix[start:stop]) for at, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    for partition in range(PARTITIONS):
        served.rows.commit(partition, [segment for segment in segments if segment.partition == partition])


def _single(bench: Bench, served: Served, view: CollectionView, pipeline: Pipeline, queries: NDArray[np.float32], pairs: int) -> Outcome:
    bodies, requests = [body_of(query, LIMIT) for query in queries], [QueryRequest(query=query, limit=LIMIT) for query in queries]
    caller = served.caller()
    spare_the_collector()  # as the query role does
    found: dict[str, list[float]] = {"A": [], "B": []}
    work: dict[str, Callable[[int], object]] = {
        "A": lambda at: caller.ask(bodies[at]),
        "B": lambda at: pipeline.query(view.snapshot(), requests[at]),
    }
    with bench.steps("HTTP: one caller", 2 * pairs) as step:
        for which in ("A", "B"):
            _milliseconds(work[which])
        for which in abba(pairs):
            found[which].append(_milliseconds(work[which]))
            step.done()
    caller.close()
    added = [one - other for one, other in zip(found["A"], found["B"], strict=True)]
    notes = {"round_trip_p50_ms": float(np.median(found["A"])), "in_process_p50_ms": float(np.median(found["B"])), "pairs": pairs}
    return Outcome({"overhead_p50_ms": percentile(added, 50, "milliseconds")}, notes)


def _milliseconds(work: Callable[[int], object]) -> float:
    """p50 of all queries, one after the other."""
    took = []
    for at in range(QUERIES):
        begin = time.perf_counter()
        work(at)
        took.append(time.perf_counter() - begin)
    return 1000 * float(np.median(took))


def _many(
    served: Served, view: CollectionView, pipeline: Pipeline, queries: NDArray[np.float32], pairs: int, done: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Queries a second of 16 callers, a process of their own, and of the service's number of threads in this process."""
    threads = served.place.settings.query_threads
    requests = [QueryRequest(query=query.tolist(), limit=LIMIT) for query in queries]
    rates: dict[str, list[float]] = {"A": [], "B": []}
    port, name = str(served.place.settings.query_port), served.rows.record.name
    np.save(served.place.folder / "queries.npy", queries)
    command = module_command("bench.http_overhead", port, name, "queries.npy")
    with BenchProcess("callers", command, served.place.values, served.place.folder, talks=True) as callers, ThreadPoolExecutor(threads) as pool:
        callers.read_line()
        work = partial(_ask_in_process, view, pipeline, requests)
        for which in abba(pairs):
            if which == "A":
                rates["A"].append(float(callers.ask("go")))
            else:
                begin = time.perf_counter()
                list(pool.map(work, range(4 * QUERIES)))
                rates["B"].append(4 * QUERIES / (time.perf_counter() - begin))
            done()
    return rates["A"], rates["B"]


def _ask_in_process(view: CollectionView, pipeline: Pipeline, requests: Sequence[QueryRequest], at: int) -> None:
    pipeline.query(view.snapshot(), requests[at % QUERIES])


def _ask_all(callers: Sequence[Caller], bodies: Sequence[bytes]) -> float:
    """Queries a second of all callers, each of which asks every query of its share."""

    def ask(number: int) -> None:
        for body in bodies[number::CLIENTS] * 4:
            callers[number].ask(body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(callers))]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 4 * len(bodies) / (time.perf_counter() - begin)


def main(arguments: list[str]) -> None:
    """The 16 callers: for each line of stdin all queries once, and one line: queries a second."""
    callers = [Caller(int(arguments[0]), arguments[1]) for _ in range(CLIENTS)]
    bodies = [body_of(query, LIMIT) for query in np.load(arguments[2])]
    print("ready", flush=True)
    for _ in sys.stdin:
        print(_ask_all(callers, bodies), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
