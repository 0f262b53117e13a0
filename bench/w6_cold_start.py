"""W6, cold start: a query node with an empty cache until every row is served, divided by parallel GET and sha256 of the same bytes.

Both sides are fresh processes that have imported everything and opened nothing; they take turns A B B A. docs/benchmarks.md says how to read it.

Takes: `Bench`, the prepared index. Gives: a ratio, and milliseconds until the first answer with a segment of every partition. Owns: the order.
Never: counts the start of an interpreter; the notes tell how long that takes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import urllib3

from bench.frame import Bench, Goal, Outcome
from bench.intervals import abba, mean, percentile, ratio
from bench.places import stack_values
from bench.prepared import LIMIT, Prepared, PreparedIndex
from bench.processes import BenchProcess, free_port, memory_mib, module_command
from contracts.errors import UnavailableError
from headwater.client import Freshness

LIMIT_SECONDS = 120.0
FIRST_PAUSE_SECONDS, PAUSE_SECONDS = 0.005, 0.02
"""Between two questions: shorter ones would take the processors that they wait for."""


@dataclass(slots=True)
class Found:
    """Seconds of each measurement: `local` until every byte is on disk, `pending` of each answer before that which is from all rows.

    `pending_recalls` are the shares of true neighbours in those answers, `local_recalls` those of the same queries afterwards.
    """

    started: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    local: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    pending_recalls: list[float] = field(default_factory=list)
    local_recalls: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    raw_whole: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class ColdStart:
    """The workload.

    Parameters
    ----------
    prepared : PreparedIndex
        The index that is loaded.
    """

    name = "W6"
    title = "cold start of a query node / parallel GET and sha256"
    goals = {"cold": Goal(1.15), "first_answer_ms": Goal(150.0)}

    def __init__(self, prepared: PreparedIndex) -> None:
        self._prepared = prepared

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Nothing is measured without the local stack."""
        if stack_values() is None:
            return Outcome(notes={"not measured": "no local stack (make stack)"})
        made, found = self._prepared.open(bench), Found()
        pairs = bench.length(self.name, "pairs")
        with bench.steps("W6: cold node and parallel GET", 2 * pairs) as step:
            for number, turn in enumerate(abba(pairs)):
                measure_cold(made, number, found) if turn == "A" else measure_raw(made, number, found)
                step.done()
        with bench.steps("W6: memory"):
            found.notes["memory"] = weigh(made)
        modes = {
            "cold": ratio(found.whole, found.raw, 50, bench.seed),
            "first_answer_ms": percentile([1000 * seconds for seconds in found.first], 50, "milliseconds", bench.seed),
            "cold_seconds": percentile(found.whole, 50, "seconds", bench.seed),
            "get_seconds": percentile(found.raw, 50, "seconds", bench.seed),
            "get_whole_seconds": percentile(found.raw_whole, 50, "seconds", bench.seed),
            "all_local_seconds": percentile(found.local, 50, "seconds", bench.seed),
        }
        for percent in (50, 99) if found.pending else ():
            modes[f"pending_p{percent}"] = percentile(found.pending, percent, "seconds", bench.seed)
        modes["pending_recall"] = mean(found.pending_recalls, "recall@10", bench.seed)
        modes["local_recall"] = mean(found.local_recalls, "recall@10", bench.seed)
        return Outcome(modes, _notes(made, pairs) | found.notes | {"interpreter_seconds": [round(seconds, 2) for seconds in found.started]})


def _notes(made: Prepared, pairs: int) -> dict[str, Any]:
    newest = [manifest.segments[-1].rows for manifest in made.manifests()]
    threads = made.place.settings.load_threads
    pages = "the store's files are in the page cache, the node's cache folder is empty"
    return {"rows": made.rows, "pairs": pairs, "load_threads": threads, "rows_of_the_newest_segments": newest, "page_cache": pages}


def _values(made: Prepared, number: int) -> dict[str, str]:
    return dict(made.place.values) | {"cache_dir": str(made.place.folder / f"cold-{number}"), "query_port": str(free_port())}


def measure_cold(made: Prepared, number: int, found: Found) -> None:
    """One cold start: a fresh process, an empty cache folder."""
    values, spawned = _values(made, number), time.perf_counter()
    with BenchProcess(f"cold-{number}", module_command("bench.cold_node"), values, made.place.folder, talks=True) as node:
        node.read_line()
        found.started.append(time.perf_counter() - spawned)
        asker = Asker(int(values["query_port"]), made)
        begin = time.perf_counter()
        node.ask("go")
        _wait(node, asker, lambda told: len(told.freshness.versions) == made.record.partitions, begin, FIRST_PAUSE_SECONDS)
        found.first.append(time.perf_counter() - begin)
        answers = [_wait(node, asker, lambda told: told.freshness.coverage == 1.0, begin, PAUSE_SECONDS)]
        found.whole.append(time.perf_counter() - begin)
        answers += _ask_on(asker, found)
        found.local.append(time.perf_counter() - begin)
        found.pending_recalls += [told.recall(made) for told in answers]
        found.local_recalls += [asker.ask(told.number).recall(made) for told in answers]
        asker.close()
        found.notes["node_memory_mib"] = memory_mib(node.pid)
        found.notes["cached_bytes"] = sum(path.stat().st_size for path in Path(values["cache_dir"]).rglob("*") if path.is_file())
    shutil.rmtree(values["cache_dir"])  # else the page cache would fill with the files of all turns


@dataclass(frozen=True, slots=True)
class Told:
    """What was answered to query `number`: from what, and the ids."""

    number: int
    freshness: Freshness = Freshness()
    ids: tuple[str, ...] = ()

    def recall(self, made: Prepared) -> float:
        """Share of the true neighbours."""
        return float(np.isin(made.truth[self.number].astype(str), self.ids).mean())


class Asker:
    """Asks at once, again and again: the Python client would wait a second where the service says that it is loading."""

    def __init__(self, port: int, made: Prepared) -> None:
        self._pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1, retries=False, timeout=10.0)
        self._name = made.record.name
        self._path = f"/collections/{quote(self._name, safe='')}/points/query"
        self._bodies = [json.dumps({"query": query.tolist(), "limit": LIMIT}).encode() for query in made.queries]

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self._bodies)

    def ask(self, number: int) -> Told:
        """What the service answers to a query; nothing where it does not yet."""
        try:
            answer = self._pool.request("POST", self._path, body=self._bodies[number], headers={"content-type": "application/json"})
        except urllib3.exceptions.HTTPError:  # nobody listens
            return Told(number)
        if answer.status != 200:
            return Told(number)
        body = answer.json()
        return Told(number, Freshness.of(body["freshness"]), tuple(point["id"] for point in body["result"]["points"]))

    def pending_bytes(self) -> int:
        """Bytes that the node still reads from the store."""
        return int(self._pool.request("GET", "/readyz").json()["collections"][self._name]["pending_bytes"])

    def close(self) -> None:
        """Let go of the connection."""
        self._pool.close()


def _wait(node: BenchProcess, asker: Asker, is_enough: Callable[[Told], bool], begin: float, pause_seconds: float) -> Told:
    """Ask the first query until an answer comes from enough of the index."""
    while not is_enough(told := asker.ask(0)):
        node.check()
        if time.perf_counter() - begin > LIMIT_SECONDS:
            raise UnavailableError(f"a node did not serve everything in {LIMIT_SECONDS:g} s", hint=f"look at {node.log_path}")
        time.sleep(pause_seconds)
    return told


def _ask_on(asker: Asker, found: Found) -> list[Told]:
    """Ask other queries until every byte is on disk; all of them must be answered from all rows."""
    answers: list[Told] = []
    while asker.pending_bytes():
        begin = time.perf_counter()
        told = asker.ask(1 + len(answers) % (asker.queries - 1))
        found.pending.append(time.perf_counter() - begin)
        if told.freshness.coverage != 1.0:
            raise UnavailableError("a node that had answered from all rows did not do so again", hint="look at its log")
        answers.append(told)
        time.sleep(PAUSE_SECONDS)
    return answers


def measure_raw(made: Prepared, number: int, found: Found) -> None:
    """The same bytes by parallel GET, in a fresh process."""
    command = module_command("bench.raw_get", made.record.name)
    with BenchProcess(f"raw-{number}", command, made.place.values, made.place.folder, talks=True) as raw:
        raw.read_line()
        answer = json.loads(raw.ask("go"))
    found.raw.append(answer["seconds"])
    found.raw_whole.append(answer["whole_seconds"])
    found.notes |= {"bytes": answer["bytes"], "objects": answer["objects"]}


def weigh(made: Prepared) -> dict[str, Any]:
    """What a node counts for the index, and its memory before and after."""
    command = module_command("bench.cold_node", "memory", made.record.name)
    with BenchProcess("weigh", command, _values(made, -1), made.place.folder, talks=True) as process:
        answer: dict[str, Any] = json.loads(process.read_line())
    return answer
