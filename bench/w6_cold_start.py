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

import urllib3

from bench.frame import Bench, Goal, Outcome
from bench.intervals import abba, percentile, ratio
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
    """Seconds of each measurement."""

    started: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
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
        }
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
        _wait(node, asker, lambda now: len(now.versions) == made.record.partitions, begin, FIRST_PAUSE_SECONDS)
        found.first.append(time.perf_counter() - begin)
        _wait(node, asker, lambda now: now.coverage == 1.0, begin, PAUSE_SECONDS)
        found.whole.append(time.perf_counter() - begin)
        asker.close()
        found.notes["node_memory_mib"] = memory_mib(node.pid)
        found.notes["cached_bytes"] = sum(path.stat().st_size for path in Path(values["cache_dir"]).rglob("*") if path.is_file())
    shutil.rmtree(values["cache_dir"])  # else the page cache would fill with the files of all turns


class Asker:
    """Asks one search again and again, at once: the Python client would wait a second where the service says that it is loading."""

    def __init__(self, port: int, made: Prepared) -> None:
        self._pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1, retries=False, timeout=10.0)
        self._path = f"/collections/{quote(made.record.name, safe='')}/points/query"
        self._body = json.dumps({"query": made.query.tolist(), "limit": LIMIT}).encode()

    def ask(self) -> Freshness:
        """From what the service answers; from nothing where it does not yet."""
        try:
            answer = self._pool.request("POST", self._path, body=self._body, headers={"content-type": "application/json"})
        except urllib3.exceptions.HTTPError:  # nobody listens
            return Freshness()
        return Freshness.of(answer.json()["freshness"]) if answer.status == 200 else Freshness()

    def close(self) -> None:
        """Let go of the connection."""
        self._pool.close()


def _wait(node: BenchProcess, asker: Asker, is_enough: Callable[[Freshness], bool], begin: float, pause_seconds: float) -> None:
    """Search until an answer comes from enough of the index."""
    while not is_enough(asker.ask()):
        node.check()
        if time.perf_counter() - begin > LIMIT_SECONDS:
            raise UnavailableError(f"a node did not serve everything in {LIMIT_SECONDS:g} s", hint=f"look at {node.log_path}")
        time.sleep(pause_seconds)


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
