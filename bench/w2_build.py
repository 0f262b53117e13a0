"""W2, vectors Kafka -> committed segments: rows a second, and a CPU-second, of `headwater run index`, divided by those of bare faiss `add`.

The vectors topic is filled first. One process builds; every commit ends one measurement. For the bare side it is stopped (SIGSTOP) and goes on
afterwards, so that both sides take turns A B B A on an otherwise resting machine. docs/benchmarks.md says how to read it.

Takes: `Bench`, the local stack. Gives: two ratios. Owns: the lengths and the order. Never: measures training, start-up, or producing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from backends.catalog.generations import publish_generation
from backends.catalog.manifests import ManifestChain
from bench.frame import Bench, Goal, Measure, Outcome
from bench.generated_rows import rows_of
from bench.intervals import abba, percentile, ratio
from bench.places import Place, open_place, stack_values
from bench.processes import BenchProcess, cli, module_command, rss_bytes
from bench.trained import field_record, generation
from bench.vector_batches import BATCH_ROWS, fill
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import LogReader
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from contracts.vectors_batch import CommitNotice, read_headers
from headwater.wiring import open_engines

SPARE_SEGMENTS = 2
"""One in which the process loads what it needs, and one because a segment ends with the fetch in which it has become large enough."""
LIMIT_SECONDS = 120.0
ROWS_FILE = "rows.npy"


@dataclass(slots=True)
class _Side:
    """Rows, seconds and CPU-seconds of each measurement of one side."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def add(self, rows: int, seconds: float, cpu_seconds: float) -> None:
        self.rows.append(rows)
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)

    def per_second(self) -> list[float]:
        return [rows / spent for rows, spent in zip(self.rows, self.seconds, strict=True)]

    def per_cpu_second(self) -> list[float]:
        return [rows / spent for rows, spent in zip(self.rows, self.cpu_seconds, strict=True)]


class BuildSegments:
    """The workload."""

    name = "W2"
    title = "vectors Kafka -> committed segments / bare faiss add"
    goals = {"cpu": Goal(0.90, smaller_is_better=False), "wall": Goal(0.75, smaller_is_better=False)}

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Nothing is measured without the local stack."""
        lengths = bench.lengths(self.name)
        outcome = Outcome(notes={"lengths": lengths, "partitions": 1, "batch_rows": BATCH_ROWS, "order": "A B B A"})
        if stack_values() is None:
            outcome.notes["not measured"] = "no local stack (make stack)"
            return outcome
        with open_place("kafka") as place:
            place.values = dict(place.values) | {"seal_rows": str(lengths["segment_rows"]), "seal_seconds": "3600"}
            place.settings = load_settings(**place.values)
            with open_engines(place.settings) as engines:
                record = create_collection(engines, CollectionRequest(f"bench-w2-{uuid4().hex[:9]}", [field_record()], partitions=1))
                try:
                    modes, notes = _measure(bench, lengths, place, engines, record)
                finally:
                    delete_collection(engines, record.name)
        outcome.modes |= modes
        outcome.notes |= notes
        return outcome


def _measure(
    bench: Bench, lengths: Mapping[str, int], place: Place, engines: Engines, record: CollectionRecord
) -> tuple[dict[str, Measure], dict[str, Any]]:
    keys = CollectionKeys(record.name, record.incarnation).index(record.index().name)
    with bench.steps("W2: train"):
        trained = generation(lengths["train_rows"], bench.seed)
        publish_generation(engines.store, keys, record.index().fields[0], trained)
    with bench.steps("W2: fill the topic"), closing(engines.log.producer(linger_seconds=0.02)) as producer:
        rows = rows_of(lengths["segment_rows"], bench.seed)
        np.save(place.folder / ROWS_FILE, rows)
        fill(producer, record, rows, (lengths["pairs"] + SPARE_SEGMENTS) * len(rows))
    topic = record.index().vectors_topic
    with ExitStack() as stack:
        notices = stack.enter_context(closing(engines.log.reader(topic, {0: engines.log.bounds(topic)[0].next_offset})))
        command = module_command("bench.bare_add", record.name, ROWS_FILE)
        bare = stack.enter_context(BenchProcess("bare_add", command, place.values, place.folder, talks=True))
        threads = json.loads(bare.read_line())["threads"]
        bare.ask("warm up")
        index = stack.enter_context(BenchProcess("index", cli("run", "index"), place.values, place.folder))
        place.processes = [index]
        builder = _Builder(index, notices, ManifestChain(engines.store, keys.partition(0)))
        ours, theirs, notes = _take_turns(bench, lengths, place, bare, builder)
        notes |= {"threads": threads, "lists": len(trained.centroids), "rss_mib": round((rss_bytes(index.pid) or 0) / 2**20)}
    modes = {
        "cpu": ratio(ours.per_cpu_second(), theirs.per_cpu_second(), 50, bench.seed),
        "wall": ratio(ours.per_second(), theirs.per_second(), 50, bench.seed),
        "rows_per_second": percentile(ours.per_second(), 50, "per second", bench.seed),
        "bare_rows_per_second": percentile(theirs.per_second(), 50, "per second", bench.seed),
    }
    notes |= {"cpu_us_a_row": _microseconds(ours), "bare_cpu_us_a_row": _microseconds(theirs)}
    return modes, notes


def _microseconds(side: _Side) -> list[float]:
    return [round(1e6 / rate, 2) for rate in side.per_cpu_second()]


class _Builder:
    """The index process, which runs from one commit to the next."""

    def __init__(self, process: BenchProcess, notices: LogReader, chain: ManifestChain) -> None:
        self._process, self._notices, self._chain = process, notices, chain
        self._version = 0
        self._rows = 0

    def until_commit(self) -> None:
        """Wait until the next commit is announced."""
        deadline, before = time.monotonic() + LIMIT_SECONDS, self._version
        while self._version == before:
            self._process.check()
            if time.monotonic() > deadline:
                raise UnavailableError(f"no segment was committed in {LIMIT_SECONDS:g} s", hint=f"look at {self._process.log_path}")
            found = [read_headers(record) for record in self._notices.poll(0.05)]
            self._version = max([self._version, *(notice.version for notice in found if isinstance(notice, CommitNotice))])

    def new_rows(self) -> int:
        """Rows that were committed since the last call."""
        read = self._chain.head()
        before, self._rows = self._rows, 0 if read is None else read.manifest.rows
        return self._rows - before

    def stop(self) -> None:
        """Let it rest."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it work."""
        os.kill(self._process.pid, signal.SIGCONT)


def _take_turns(bench: Bench, lengths: Mapping[str, int], place: Place, bare: BenchProcess, builder: _Builder) -> tuple[_Side, _Side, dict[str, Any]]:
    ours, theirs = _Side(), _Side()
    servers = dict.fromkeys(place.servers, 0.0)
    with bench.steps("W2: builder and bare add", 2 * lengths["pairs"]) as step:
        builder.until_commit()
        builder.stop()
        builder.new_rows()
        try:
            for turn in abba(lengths["pairs"]):
                if turn == "A":
                    before, begin = place.cpu(), time.perf_counter()
                    builder.go_on()
                    builder.until_commit()
                    seconds, after = time.perf_counter() - begin, place.cpu()
                    builder.stop()
                    ours.add(builder.new_rows(), seconds, after["index"] - before["index"])
                    servers = {name: spent + after[name] - before[name] for name, spent in servers.items()}
                else:
                    answer = json.loads(bare.ask("go"))
                    theirs.add(answer["rows"], answer["seconds"], answer["cpu_seconds"])
                step.done()
        finally:
            builder.go_on()  # a stopped process does not hear that it should end
    return ours, theirs, {"servers_cpu_us_a_row": {name: round(1e6 * spent / sum(ours.rows), 2) for name, spent in servers.items()}}
