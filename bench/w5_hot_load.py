"""W5: the tail of query times while segments of 1,000 rows arrive, divided by that of the same service without arrivals.

A caller asks the query role over HTTP, some two hundred times a second, for the row that it names by its own vector. Beside it segments are committed
whose objects were stored and whose manifests were made before: the role meets a notice, a manifest and new objects, as from a builder elsewhere.
Made while questions are asked, manifests took some 2 ms each of the caller's own interpreter, whose questions then seemed to take longer.

Takes: own vectors. Gives: p99 / p99, and how many hits were lost or doubled, which must be none. Owns: the pace of both.
Never: takes a row that few lists missed for a lost one: every tenth question looks into all lists, and then the row must be there, once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.frame import Bench, Goal, Outcome
from bench.generated_rows import generated_rows
from bench.intervals import abba, percentile, ratio
from bench.own_rows import MEASURED_EVERY, PARTITIONS, OwnRows, StoredSegment, id_of, wait_for
from bench.processes import Others
from bench.served_rows import Caller, Served, body_of, served_rows
from bench.trained import generation
from contracts.errors import CorruptError

RATES = (1, 10)
SEGMENT_ROWS = 1000
BASE_SEGMENTS = 100
TRAIN_ROWS = 30_000
LIMIT = 10
MEAN_PAUSE_SECONDS = 0.004
ALL_LISTS_EVERY = 10


class HotLoad:
    """The workload."""

    name = "W5"
    title = "query p99 while segments of 1,000 rows arrive / steady"

    @property
    def goals(self) -> Mapping[str, Goal]:
        """Goals of the ratios."""
        return {"s1": Goal(1.15), "s10": Goal(1.3)}

    def run(self, bench: Bench) -> Outcome:
        """Both rates, one after the other, at one service."""
        rows, pairs, seconds = (bench.length(self.name, name) for name in ("rows", "pairs", "window_seconds"))
        arriving = sum(rate * seconds * pairs for rate in RATES)
        outcome = Outcome(notes={"rows": rows, "seconds_per_window": seconds, "pairs": pairs, "connections": 1})
        with bench.steps("W5: make rows"):
            matrix, trained = generated_rows(bench.seed).first(rows + arriving * SEGMENT_ROWS), generation(TRAIN_ROWS, bench.seed)
        with served_rows(trained) as served:
            with bench.steps("W5: store segments"):
                arrivals = _store(served.rows, matrix, rows, arriving)
            with served.running():
                asked = Asked(matrix, np.random.default_rng(bench.seed))
                asked.arrived(rows, {partition: 2 for partition in range(PARTITIONS)})
                caller = served.caller()
                _window(caller, asked, 2.0)
                asked.forget()
                for rate in RATES:
                    outcome.modes[f"s{rate}"], outcome.notes[f"s{rate}"] = _measure(bench, served, caller, asked, arrivals, rate, pairs, seconds)
                caller.close()
        outcome.notes["hits"] = asked.counts()
        asked.check()
        return outcome


def _store(made: OwnRows, matrix: NDArray[np.float32], rows: int, arriving: int) -> list[StoredSegment]:
    """Store and commit the rows that are there from the start, and store those that arrive later."""
    bounds = np.linspace(0, rows, BASE_SEGMENTS + 1).astype(int)
    base = [
        made.store(at % PARTITIONS, int(start), matrix[start:stop], measured=at % MEASURED_EVERY == 0)
        for at, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    for partition in range(PARTITIONS):
        made.commit(partition, [segment for segment in base if segment.partition == partition])
    firsts = range(rows, rows + arriving * SEGMENT_ROWS, SEGMENT_ROWS)
    return [made.store(at % PARTITIONS, first, matrix[first : first + SEGMENT_ROWS], measured=False) for at, first in enumerate(firsts)]


@dataclass(slots=True)
class Asked:
    """Which rows can be asked for, and what came of it. Rows below `known` are in the manifests of `versions`, by partition."""

    matrix: NDArray[np.float32]
    random: np.random.Generator
    known: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    questions: int = 0
    lost: int = 0
    doubled: int = 0
    missed: int = 0

    def arrived(self, known: int, versions: Mapping[int, int]) -> None:
        """Rows below `known` are searchable where a partition shows at least these versions."""
        self.versions = self.versions | dict(versions)
        self.known = known

    def choose(self) -> int:
        """A row: every second time one of the newest thousands."""
        lowest = max(0, self.known - 20 * SEGMENT_ROWS) if self.random.random() < 0.5 else 0
        return int(self.random.integers(lowest, self.known))

    def take(self, row: int, versions: Mapping[int, int], answer: bytes, *, all_lists: bool) -> None:
        """Count what an answer says of the row that was asked for, which the service was known to have at `versions`."""
        found = json.loads(answer)
        shown = {int(partition): version for partition, version in found["freshness"]["versions"].items()}
        ids = [point["id"] for point in found["result"]["points"]]
        self.questions += 1
        self.doubled += len(ids) - len(set(ids))
        if id_of(row) not in ids and all(shown[partition] >= version for partition, version in versions.items()):
            if all_lists:
                self.lost += 1
            else:
                self.missed += 1

    def forget(self) -> None:
        """Begin to count anew."""
        self.questions = self.lost = self.doubled = self.missed = 0

    def counts(self) -> dict[str, int]:
        """What was counted; `missed` are rows that lay in none of the lists that a search at the usual effort looks into."""
        return {"questions": self.questions, "lost": self.lost, "doubled": self.doubled, "missed_by_few_lists": self.missed}

    def check(self) -> None:
        """Raise CorruptError where anything was lost or found twice."""
        if self.lost or self.doubled:
            raise CorruptError(f"while segments arrived, {self.lost} hits were lost and {self.doubled} came twice", hint="run tests/query")


def _window(caller: Caller, asked: Asked, seconds: float) -> list[float]:
    """Ask for a while; seconds of each question at the usual effort."""
    took: list[float] = []
    end, at = time.perf_counter() + seconds, 0
    nlist = 65_536  # more than there are: all of them
    while time.perf_counter() < end:
        row, versions, all_lists = asked.choose(), asked.versions, at % ALL_LISTS_EVERY == 0
        body = body_of(asked.matrix[row], LIMIT, **({"nprobe": nlist} if all_lists else {}))
        begin = time.perf_counter()
        answer = caller.ask(body)
        if not all_lists:
            took.append(time.perf_counter() - begin)
        asked.take(row, versions, answer, all_lists=all_lists)
        time.sleep(asked.random.uniform(0, 2 * MEAN_PAUSE_SECONDS))
        at += 1
    return took


def _measure(
    bench: Bench, served: Served, caller: Caller, asked: Asked, arrivals: list[StoredSegment], rate: int, pairs: int, seconds: int
) -> tuple[Any, dict[str, Any]]:
    steady: list[float] = []
    loaded: list[float] = []
    late: list[float] = []
    others = Others(*served.pids)
    with bench.steps(f"W5: {rate} segments a second", 2 * pairs) as step:
        for which in abba(pairs):
            if which == "A":
                steady += _window(caller, asked, seconds)
            else:
                arriver = Arriver(served.rows, [arrivals.pop(0) for _ in range(rate * seconds)], rate, asked)
                arriver.thread.start()
                loaded += _window(caller, asked, seconds)
                arriver.thread.join()
                late.append(_catch_up(caller, asked))
            step.done()
    notes = {
        f"{name}_p{percent}_ms": 1000 * percentile(samples, percent, "seconds").value
        for name, samples in (("steady", steady), ("loaded", loaded))
        for percent in (50, 99)
    }
    notes |= {
        "questions_steady": len(steady),
        "questions_loaded": len(loaded),
        "caught_up_after_seconds": max(late),
        "others_share_of_cpu": others.share(),
    }
    return ratio(loaded, steady, 99, bench.seed), notes


class Arriver:
    """Commits stored segments at a steady rate on a thread of its own."""

    def __init__(self, made: OwnRows, segments: Sequence[StoredSegment], rate: int, asked: Asked) -> None:
        self._made, self._segments, self._rate, self._asked = made, segments, rate, asked
        self._commits = [made.prepare(segment.partition, [segment]) for segment in segments]
        self.thread = threading.Thread(target=self._run, name="arriver", daemon=True)

    def _run(self) -> None:
        begin = time.perf_counter()
        for number, (segment, commit) in enumerate(zip(self._segments, self._commits, strict=True)):
            time.sleep(max(0.0, begin + (number + 0.5) / self._rate - time.perf_counter()))
            version = self._made.publish(commit)
            self._asked.arrived(segment.first_number + segment.entry.rows, {segment.partition: version})


def _catch_up(caller: Caller, asked: Asked) -> float:
    """Wait until the service shows everything that was committed; for how long."""
    begin, body = time.perf_counter(), body_of(asked.matrix[0], 1)

    def shows_all() -> bool:
        shown = json.loads(caller.ask(body))["freshness"]["versions"]
        return all(shown[str(partition)] >= version for partition, version in asked.versions.items())

    wait_for(shows_all, "the last segments to be loaded")
    return time.perf_counter() - begin
