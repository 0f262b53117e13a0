"""The workloads of search: what they build is what they say, and what they count is counted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from rich.progress import Progress

from bench.clip_like import ClipLike, Shape
from bench.filters import SHARES, Filters, _columns
from bench.frame import Bench
from bench.http_overhead import HttpOverhead
from bench.merged_index import MergedIndex
from bench.own_rows import PARTITIONS, OwnRows, id_of, own_rows, row_of, wait_for
from bench.processes import Others, cpu_seconds
from bench.served_rows import body_of, served_rows
from bench.trained import generation_of
from bench.w3_many_segments import ManySegments, recall, rows_of
from bench.w5_hot_load import Arriver, Asked, HotLoad, _catch_up, _window
from contracts.errors import CorruptError, UnavailableError
from query.http_models import QueryBatchRequest, QueryRequest

ROWS = 2000
SOURCE = ClipLike(4, Shape(clusters=40))


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    return SOURCE.sample(np.arange(ROWS) / ROWS, 0)


@pytest.fixture(scope="module")
def made(matrix: np.ndarray) -> Iterator[OwnRows]:
    with own_rows(generation_of(matrix[:1000]), {"number": "integer"}) as rows:
        yield rows


def test_ids_name_rows() -> None:
    assert row_of(id_of(17)) == 17


def test_segments_deletes_and_a_tail_are_searched_as_the_merged_index_of_the_same_rows(made: OwnRows, matrix: np.ndarray) -> None:
    parts, live = [], np.ones(ROWS, np.bool_)
    for at, start in enumerate(range(0, 1800, 150)):
        numbers = {"number": pa.array(np.arange(start, start + 150))}
        segment = made.store(at % PARTITIONS, start, matrix[start : start + 150], numbers)
        deleted = np.arange(at, 150, 20)
        live[start + deleted] = False
        made.commit(at % PARTITIONS, [segment], {segment.entry.segment_id: deleted})
        parts.append(segment.part)
    made.send(1, 1800, matrix[1800:])
    merged = MergedIndex(made.quantizer, parts)
    queries = SOURCE.sample(np.linspace(0, 1, 40), 9)
    with made.opened() as (view, pipeline):
        everything = {"nprobe": made.quantizer.nlist}
        requests = [QueryRequest(query=query, limit=10, params=everything) for query in queries]  # type: ignore[arg-type]
        ours = [rows_of(pipeline.query(view.snapshot(), request).result) for request in requests]
        batch = pipeline.query_batch(view.snapshot(), QueryBatchRequest(searches=requests)).result
        filtered = QueryRequest(query=queries[0], limit=ROWS // 2, filter={"must": [{"key": "number", "range": {"lt": 200}}]})
        passing = sorted(rows_of(pipeline.query(view.snapshot(), filtered).result))
    assert [rows_of(answer) for answer in batch] == ours
    assert any(row >= 1800 for row in np.concatenate(ours)), "the tail is searched"
    assert live[np.unique(np.concatenate(ours))].all(), "deleted rows are not"
    assert passing == [row for row in range(200) if live[row]]
    theirs = merged.searcher(made.quantizer.nlist, 10.0, live[:1800], by_graph=False).closest(queries, 10)
    for mine, other in zip(ours, theirs.tolist(), strict=True):
        kept = [row for row in mine if row < 1800]
        assert kept == other[: len(kept)], "the same codes, refined by the same codes"
    truth = np.flatnonzero(live)[np.argsort(-(queries @ matrix[live].T), axis=1)[:, :10]]
    assert recall(ours, truth) > 0.95 > 0.0 == recall([[-1]] * 40, truth)


def test_nobody_waits_for_ever() -> None:
    with pytest.raises(UnavailableError, match="the moon"):
        wait_for(lambda: False, "the moon", 0.02)


@pytest.mark.slow
def test_the_service_answers_as_the_pipeline_does_and_finds_what_arrives(matrix: np.ndarray) -> None:
    with served_rows(generation_of(matrix[:1000])) as served:
        rows = served.rows
        first = rows.store(0, 0, matrix[:1000])
        for partition in range(PARTITIONS):
            rows.commit(partition, [first] if partition == 0 else [])
        later = [rows.store(1, 1000, matrix[1000:1500]), rows.store(2, 1500, matrix[1500:], measured=False)]
        with served.running():
            caller, asked = served.caller(), Asked(matrix, np.random.default_rng(0))
            asked.arrived(1000, {0: 2})
            with rows.opened() as (view, pipeline):
                mine = rows_of(pipeline.query(view.snapshot(), QueryRequest(query=matrix[3], limit=10)).result)
            assert [row_of(point["id"]) for point in json.loads(caller.ask(body_of(matrix[3], 10)))["result"]["points"]] == mine
            arriver = Arriver(rows, later, 10, asked)
            arriver.thread.start()
            took = _window(caller, asked, 1.0)
            arriver.thread.join()
            _catch_up(caller, asked)
            _window(caller, asked, 0.3)
            with pytest.raises(UnavailableError, match="400"):
                caller.ask(b"{")
            caller.close()
    assert len(took) > 10 and asked.known == ROWS and asked.versions == {0: 2, 1: 3, 2: 3}
    assert (asked.lost, asked.doubled) == (0, 0)
    asked.check()


def test_lost_and_doubled_hits_are_told_from_rows_that_few_lists_miss() -> None:
    asked = Asked(np.zeros((10, 4), np.float32), np.random.default_rng(0))
    asked.arrived(10, {0: 3})

    def answer(version: int, *rows: int) -> bytes:
        points = [{"id": id_of(row)} for row in rows]
        return json.dumps({"result": {"points": points}, "freshness": {"versions": {"0": version}}}).encode()

    asked.take(1, {0: 3}, answer(3, 1, 2), all_lists=True)
    asked.take(1, {0: 3}, answer(2, 2), all_lists=True)  # not loaded yet
    asked.take(1, {0: 3}, answer(3, 2), all_lists=False)
    assert asked.counts() == {"questions": 3, "lost": 0, "doubled": 0, "missed_by_few_lists": 1}
    asked.check()
    asked.take(1, {0: 3}, answer(4, 2), all_lists=True)
    asked.take(1, {0: 3}, answer(4, 1, 2, 2), all_lists=True)
    assert (asked.lost, asked.doubled) == (1, 1)
    with pytest.raises(CorruptError, match="1 hits were lost and 1 came twice"):
        asked.check()


def test_one_attribute_is_random_and_the_other_keeps_clusters_together() -> None:
    clusters = np.random.default_rng(0).integers(0, 20, 1000)
    columns = _columns(clusters, np.random.default_rng(1))
    for values in columns.values():
        assert sorted(values) == list(range(1000))
    assert len(set(clusters[columns["place"] < 100])) <= 4
    assert len(set(clusters[columns["number"] < 100])) > 15


def test_the_goals_are_those_that_were_set() -> None:
    assert {mode: goal.limit for mode, goal in ManySegments().goals.items()} == {
        "batch_100": 0.90,
        "batch_500": 0.90,
        "single_100": 0.87,
        "single_500": 0.87,
    }
    assert not any(goal.smaller_is_better for goal in ManySegments().goals.values())
    assert {mode: goal.limit for mode, goal in HotLoad().goals.items()} == {"s1": 1.15, "s10": 1.3}
    assert HttpOverhead().goals["overhead_p50_ms"].limit == 1.0
    assert {f"{kind}recall_{share}" for kind in ("", "correlated_") for share in SHARES} == set(Filters().goals)


def test_others_are_what_ran_beside_the_benchmark() -> None:
    others, end = Others(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert 0 <= others.share() < 1
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with_busy, without, before = Others(), Others(busy.pid), cpu_seconds(busy.pid) or 0.0
        wait_for(lambda: (cpu_seconds(busy.pid) or 0.0) > before + 0.1, "a busy process to be busy")
        assert with_busy.share() > without.share(), "a process counts to the others unless it is named"
    finally:
        busy.kill()
        busy.wait()


def test_a_run_is_quick_usual_or_full() -> None:
    with Progress(disable=True) as progress:
        lengths = [Bench(quick, 0, progress, full).length("filters", "rows") for quick, full in ((True, False), (False, False), (False, True))]
        assert lengths == [50_000, 200_000, 1_000_000]
        assert Bench(True, 0, progress).lengths("W2") == {"pairs": 2, "segment_rows": 20_000, "train_rows": 12_000}
