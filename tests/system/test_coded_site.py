"""One process with all roles: own vectors stream in, the index is trained and switched under way, and every answer equals a dictionary's.

Rows come, change and go in rounds; after each the answer for exactly these offsets is compared with brute force, while sealing, training, re-encoding
and hot loading go on in the background and other threads search all the time. Then everything is sealed, the process is killed, and a new one says
the same from what is stored.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from contracts.engines import Engines
from ingest.producer import MediaProducer
from tests.query.writer import own_field
from tests.system.processes import Process, running, until
from tests.system.sites import open_site

DIMENSION, PARTITIONS, TRAIN_ROWS = 32, 2, 600
STABLE = 200
ROUND_ROWS, LEAST_ROUNDS, ROUNDS_AFTER = 80, 12, 12
SWITCH_SECONDS = 90.0
SCORE_TOLERANCE = 0.05
"""Half a step of a refine code in each dimension moves a cosine by less than 0.02; a number beyond those of the few training rows is cut, and
was seen to move one by 0.023. Another version of a row is another vector, and differs by 0.2 and more."""
SHADES = 10
FILTER = {"must": [{"key": "shade", "match": {"any": [1, 2]}}]}


def shade(item_id: str) -> int:
    """An attribute that knows nothing of the vector."""
    return zlib.crc32(item_id.encode()) % SHADES


@dataclass
class Stream:
    """The producer's side, and what it must be possible to find."""

    producer: MediaProducer
    live: dict[str, np.ndarray] = field(default_factory=dict)
    offsets: dict[int, int] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def vectors(self, rows: int) -> np.ndarray:
        """Unit vectors around fifty centres."""
        centres = np.random.default_rng(1).standard_normal((50, DIMENSION))
        found = centres[self.random.integers(0, 50, rows)] + 0.4 * self.random.standard_normal((rows, DIMENSION))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    def put(self, ids: list[str]) -> None:
        matrix = self.vectors(len(ids))
        self._sent(self.producer.send_vectors(ids, {"own": matrix}, attributes=[{"shade": shade(item_id)} for item_id in ids]))
        self.live |= dict(zip(ids, matrix, strict=True))

    def remove(self, ids: list[str]) -> None:
        self._sent([self.producer.delete(item_id) for item_id in ids])
        for item_id in ids:
            self.live.pop(item_id, None)

    def _sent(self, futures: list[Any]) -> None:
        for future in futures:
            position = future.result(30)
            self.offsets[position.partition] = max(self.offsets.get(position.partition, 0), position.offset + 1)

    def turn(self, number: int) -> None:
        """New rows, others anew, a few gone; never one of the stable ids gone."""
        self.put([f"r{number}-{at}" for at in range(ROUND_ROWS)])
        self.put([f"stable{at}" for at in self.random.choice(STABLE, 10, replace=False)])
        changing = [item_id for item_id in self.live if item_id.startswith("r")]
        self.put([str(each) for each in self.random.choice(changing, 15, replace=False)])
        self.remove([str(each) for each in self.random.choice(changing, 10, replace=False)])


def post(url: str, path: str, body: Any) -> Any:
    request = urllib.request.Request(f"{url}/collections/things/points/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def metric(url: str, name: str) -> dict[str, float]:
    """Values of a metric of the collection by its lines."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith(f'{name}{{collection="things"')]
    return {labels: float(value) for labels, value in found}


def index_bytes(url: str) -> dict[str, float]:
    return {labels.split('tier="')[1].split('"')[0]: value for labels, value in metric(url, "headwater_index_bytes").items()}


def check(url: str, stream: Stream) -> float:
    """Count, scan and hits, with a filter too, of exactly the produced state; the recall of the queries as everybody asks them."""
    consistency = {"min_offsets": {str(partition): offset for partition, offset in stream.offsets.items()}}
    assert post(url, "count", {"consistency": consistency})["result"]["count"] == len(stream.live)
    scanned, offset = [], None
    while True:
        page = post(url, "scroll", {"limit": 500, "offset": offset, "with_payload": False, "consistency": consistency})["result"]
        scanned += [point["id"] for point in page["points"]]
        offset = page["next_page_offset"]
        if offset is None:
            break
    assert sorted(scanned) == sorted(stream.live)
    shaded = {item_id: vector for item_id, vector in stream.live.items() if shade(item_id) in (1, 2)}
    assert post(url, "count", {"filter": FILTER, "consistency": consistency})["result"]["count"] == len(shaded)
    recalls = [check_hits(url, stream.live, stream.vectors(5), consistency, None), check_hits(url, shaded, stream.vectors(5), consistency, FILTER)]
    return float(np.mean(recalls))


def check_hits(url: str, rows: dict[str, np.ndarray], queries: np.ndarray, consistency: dict[str, Any], chosen: dict[str, Any] | None) -> float:
    """Exact answers are brute force's over these rows; others name rows that are there, each once, with their true scores; gives their recall."""
    ids, matrix = list(rows), np.stack(list(rows.values()))
    asked = [{"query": query.tolist(), "limit": 10, "filter": chosen, "params": {"exact": True}} for query in queries]
    asked += [{"query": query.tolist(), "limit": 10, "filter": chosen} for query in queries]
    answers = post(url, "query/batch", {"searches": asked, "consistency": consistency})["result"]
    recalls = []
    for at, query in enumerate(queries):
        truth = dict(zip(ids, (matrix @ query).tolist(), strict=True))
        best = sorted(truth.values(), reverse=True)[:10]
        exact, found = answers[at]["points"], answers[at + len(queries)]["points"]
        scores = [point["score"] for point in exact]
        np.testing.assert_allclose(scores, best, atol=SCORE_TOLERANCE)
        np.testing.assert_allclose(scores, [truth[point["id"]] for point in exact], atol=SCORE_TOLERANCE)
        assert len({point["id"] for point in found}) == len(found) == 10
        np.testing.assert_allclose([point["score"] for point in found], [truth[point["id"]] for point in found], atol=SCORE_TOLERANCE)
        recalls.append(sum(truth[point["id"]] >= best[-1] - 1e-6 for point in found) / 10)
    return float(np.mean(recalls))


@contextmanager
def searching(url: str, problems: list[str]) -> Iterator[list[int]]:
    """Threads that search all rows all the time: a stable id is in every answer, once."""
    stop, searches = threading.Event(), [0]
    query = np.random.default_rng(3).standard_normal(DIMENSION).tolist()

    def search() -> None:
        while not stop.is_set():
            answer = post(url, "query", {"query": query, "limit": 100_000, "params": {"nprobe": 100_000}})
            found = [point["id"] for point in answer["result"]["points"]]
            searches[0] += 1
            if len(found) != len(set(found)):
                problems.append("a row twice")
            missing = {f"stable{at}" for at in range(STABLE)} - set(found)
            if missing:
                problems.append(f"{len(missing)} stable rows are missing")

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield searches
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def create(engines: Engines) -> MediaProducer:
    field_record = own_field(dimension=DIMENSION)
    request = CollectionRequest("things", [field_record], PARTITIONS, partitioner="murmur2", archive="off", attributes={"shade": "integer"})
    record = create_collection(engines, request)
    return MediaProducer(engines.log, record, engines.settings)


@pytest.mark.slow
def test_an_index_is_trained_and_switched_under_a_stream_and_every_answer_equals_brute_force(tmp_path: Path) -> None:
    options = {"train_rows": TRAIN_ROWS, "seal_rows": 150, "seal_seconds": 0.5, "max_limit": 100_000, "embed_watchdog_seconds": 0.5}
    with open_site("sqlite", tmp_path, **options) as site, site.engines() as engines, create(engines) as producer:
        stream = Stream(producer)
        with running(site, "up") as processes:
            run_stream(processes["up"], stream)
            run_at_rest(processes["up"], stream)


def run_stream(process: Process, stream: Stream) -> None:
    url, problems = process.url, []
    stream.put([f"stable{at}" for at in range(STABLE)])
    check(url, stream)
    with searching(url, problems) as searches:
        began, number, after, recalls = time.monotonic(), 0, 0, []
        while number < LEAST_ROUNDS or after < ROUNDS_AFTER:
            process.must_run()
            assert time.monotonic() - began < SWITCH_SECONDS, f"not coded: {index_bytes(url)}"
            stream.turn(number)
            recall = check(url, stream)
            sizes = index_bytes(url)
            if sizes.get("flat") == 0 and sizes.get("small", 0) > 0:  # every segment is found by codes
                after += 1
                recalls.append(recall)
            number += 1
    assert problems == [] and searches[0] > 10
    assert np.mean(recalls) >= 0.9, recalls
    assert index_bytes(url)["mapped"] > 0


def run_at_rest(process: Process, stream: Stream) -> None:
    """All rows lie in segments, none in the tail; then a node that starts from nothing reads deletes and codes back from what is stored."""
    until(lambda: list(metric(process.url, "headwater_tail_rows").values()) == [0], 30, "the tail is sealed", alive=[process])
    assert check(process.url, stream) >= 0.9
    process.kill()
    process.start()
    process.wait_ready()
    assert check(process.url, stream) >= 0.9
    until(lambda: index_bytes(process.url).get("mapped", 0) > 0, 10, "mapped bytes are in the gauge", alive=[process])
    estimates = list(metric(process.url, "headwater_recall_estimate").values())
    assert len(estimates) == 1 and 0.85 < estimates[0] <= 1.0, "as the writers of the segments measured it"
