"""W4, time to searchable: from just before a record is produced until ``GET /collections/{c}/points/{id}`` answers 200.

Idle and at half of the sustained rate, for pictures (decoded and embedded by `lite`) and own vectors (512-d), embedded and on Kafka + MinIO.
docs/benchmarks.md says how to read it.

Takes: `Bench`. Gives: seconds by mode; vectors also divided by the bare two hops, measured A B B A between them.
Owns: the phases and their lengths. Never: looks into the system: it produces and asks over HTTP, as a user does.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import urllib3

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from bench.feeds import FEEDS, VECTOR_FIELD_WORDS, Feed, VectorFeed
from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import abba, percentile, ratio
from bench.places import PLACES, Place, open_place, stack_values
from bench.processes import BenchProcess, machine_cpu_seconds, own_cpu_seconds, rss_bytes
from bench.two_hops import FETCH_MAX_WAIT_MS, LINGER_MS, TwoHops, open_two_hops
from contracts.collection import CollectionRecord, FieldRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from headwater.client import HeadwaterClient
from headwater.wiring import encoder_fields, open_engines, vector_field
from ingest.producer import MediaProducer

KINDS = ("vectors", "pictures")
POLL_SECONDS, POLL_SHARE = 0.002, 0.05
"""Pause between two questions: 2 ms, or a twentieth of the time waited so far. Asking every 2 ms for as long as it takes cost 0.75 of two cores
and was the larger part of the load that it measured; what a late question adds to a sample is at most that twentieth."""
SPACING_SECONDS = (0.1, 0.2)
"""Pause between two probes, drawn evenly: without jitter the probes would keep step with some poll of the system."""
LIMIT_SECONDS = 60.0
PARTITIONS = 4
ENCODER, SOURCES = "lite", ("image", "text", "fused")


PILOT_ITEMS = {"vectors": 200, "pictures": 20}
"""What is sent to estimate the burst's size."""


def time_to_found(send: Callable[[], object], is_found: Callable[[], bool], limit_seconds: float = LIMIT_SECONDS) -> float:
    """Seconds from just before `send` until `is_found` has answered True; asked every `POLL_SECONDS`, later every `POLL_SHARE` of the time waited.

    Raises
    ------
    UnavailableError
        It is not found within `limit_seconds`: the system does not work, or is a minute behind.
    """
    begin = due = time.perf_counter()
    send()
    while not is_found():
        now = time.perf_counter()
        if now - begin > limit_seconds:
            raise UnavailableError(f"a record was not searchable after {limit_seconds:g} s", hint="look at the logs of the roles")
        due = max(due + max(POLL_SECONDS, POLL_SHARE * (now - begin)), now)
        time.sleep(due - now)
    return time.perf_counter() - begin


class Finder:
    """Asks for points of one collection over one kept-alive connection."""

    def __init__(self, url: str, collection: str) -> None:
        host = urllib3.util.parse_url(url)
        self._pool = urllib3.HTTPConnectionPool(str(host.host), host.port, maxsize=1, retries=False, timeout=10.0)
        self._path = f"/collections/{quote(collection, safe='')}/points/"

    def is_found(self, item_id: str) -> bool:
        """Whether the item is live; any answer but 200 and 404 is an error."""
        answer = self._pool.request("GET", self._path + quote(item_id, safe=""))
        if answer.status not in (200, 404):
            raise UnavailableError(
                f"GET {self._path}{item_id} answered {answer.status}: {answer.data[:200]!r}", hint="look at the query service's log"
            )
        return answer.status == 200

    def close(self) -> None:
        """Let go of the connection."""
        self._pool.close()


class Prober:
    """Measures items of one kind in one collection, one after the other."""

    def __init__(self, kind: str, feed: Feed, producer: MediaProducer, finder: Finder, seed: int) -> None:
        self.kind, self.feed, self.producer, self.finder = kind, feed, producer, finder
        self._random = random.Random(seed)
        self._sent = 0

    def probe(self) -> float:
        """Wait a moment, then measure one new item, in seconds."""
        self.pause()
        item_id = f"probe-{self.kind}-{self._sent}"
        self._sent += 1
        return time_to_found(lambda: self.feed.send(self.producer, item_id), lambda: self.finder.is_found(item_id))

    def pause(self) -> None:
        """Wait between two probes."""
        time.sleep(self._random.uniform(*SPACING_SECONDS))


class TimeToSearchable:
    """The workload."""

    name = "W4"
    title = "time to searchable, produce -> GET by id answers 200"

    def __init__(self) -> None:
        self.goals = {
            f"{place}_{mode}": Goal(limit)
            for place in PLACES
            for mode, limit in (("pictures_p50", 0.3), ("vectors_p50", 0.05), ("pictures_p99_half_load", 1.5))
        }

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Without the local stack only the embedded modes are measured."""
        lengths = bench.lengths(self.name)
        outcome = Outcome(notes=_method(lengths))
        for name in PLACES:
            if name == "kafka" and stack_values() is None:
                outcome.notes["kafka"] = "not measured: no local stack (make stack)"
                continue
            with open_place(name) as place:
                modes, notes = _measure_place(bench, lengths, place)
            outcome.modes |= {f"{name}_{mode}": measure for mode, measure in modes.items()}
            outcome.notes[name] = notes
        return outcome


def _method(lengths: Mapping[str, int]) -> dict[str, Any]:
    return {
        "lengths": dict(lengths),
        "poll_seconds": POLL_SECONDS,
        "poll_share_of_time_waited": POLL_SHARE,
        "pause_between_probes_seconds": SPACING_SECONDS,
        "producer_linger_seconds": 0.0,
        "partitions": PARTITIONS,
        "two_hops": {"linger_ms": LINGER_MS, "fetch_max_wait_ms": FETCH_MAX_WAIT_MS, "acks": "all", "partitions": 1, "forwarder": "own process"},
        "settings": "defaults: embed_threads 0 (all cores; torch: half), decode_children 2, query_threads 4, embed_batch_items 32, seal_seconds 60",
        "order": "idle vectors and bare two hops A B B A; everything else one after the other",
    }


@contextmanager
def _collections(engines: Engines) -> Iterator[dict[str, CollectionRecord]]:
    """A fresh collection per kind; deleted, with its topics, at the end."""
    tag = f"{time.time_ns():x}"[-9:]
    fields: dict[str, list[FieldRecord]] = {
        "vectors": [vector_field(VECTOR_FIELD_WORDS)],
        "pictures": encoder_fields(ENCODER, SOURCES),
    }
    made: dict[str, CollectionRecord] = {}
    try:
        for kind in KINDS:
            made[kind] = create_collection(engines, CollectionRequest(f"bench-w4-{kind}-{tag}", fields[kind], PARTITIONS))
        yield made
    finally:
        for record in made.values():
            delete_collection(engines, record.name)


def _measure_place(bench: Bench, lengths: Mapping[str, int], place: Place) -> tuple[dict[str, Measure], dict[str, Any]]:
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(place.settings))
        collections = stack.enter_context(_collections(engines))
        with bench.steps(f"W4 {place.name}: start"):
            stack.enter_context(place.running())
        client = stack.enter_context(HeadwaterClient(place.url))
        probers = {}
        for kind, record in collections.items():
            finder = Finder(place.url, record.name)
            stack.callback(finder.close)
            producer = stack.enter_context(MediaProducer(engines.log, record, place.settings))
            probers[kind] = Prober(kind, FEEDS[kind](bench.seed), producer, finder, bench.seed)
        for kind in KINDS:
            _probes(bench, f"W4 {place.name}: warm up, {kind}", probers[kind], lengths["warm_up_probes"])
        with bench.steps(f"W4 {place.name}: until the roles rest"):
            place.settle()
        return _Phases(bench, lengths, place, collections, probers, client).run()


class _Phases:
    """The phases at one place, and what each cost."""

    def __init__(
        self,
        bench: Bench,
        lengths: Mapping[str, int],
        place: Place,
        collections: dict[str, CollectionRecord],
        probers: dict[str, Prober],
        client: HeadwaterClient,
    ) -> None:
        self.bench, self.lengths, self.place, self.collections, self.probers, self.client = bench, lengths, place, collections, probers, client
        self.modes: dict[str, Measure] = {}
        self.notes: dict[str, Any] = {"cpu_seconds": {}}

    def run(self) -> tuple[dict[str, Measure], dict[str, Any]]:
        """All phases; idle ones first, because loads leave something to seal behind."""
        with self._cost("vectors"):
            self._idle_vectors()
        with self._cost("pictures"):
            samples = _probes(self.bench, f"W4 {self.place.name}: idle pictures", self.probers["pictures"], self.lengths["idle_probes"])
        self._add("pictures", "", samples)
        for kind in KINDS:
            with self._cost(f"{kind}_burst"):
                rate = self._sustained_rate(kind)
            with self._cost(f"{kind}_half_load"):
                self._half_load(kind, rate / 2)
        self.notes["rss_mib"] = {process.name: round((rss_bytes(process.pid) or 0) / 2**20) for process in self.place.processes}
        return self.modes, self.notes

    def _add(self, what: str, suffix: str, samples: list[float]) -> None:
        for percent in (50, 99):
            self.modes[f"{what}_p{percent}{suffix}"] = percentile(samples, percent, "seconds", self.bench.seed)

    @contextmanager
    def _cost(self, phase: str) -> Iterator[None]:
        before, machine, own, begin = self.place.cpu(), machine_cpu_seconds(), own_cpu_seconds(), time.perf_counter()
        yield
        after = self.place.cpu()
        spent = {name: after[name] - before.get(name, 0.0) for name in after} | {"benchmark": own_cpu_seconds() - own}
        spent["others"] = max(0.0, machine_cpu_seconds() - machine - sum(spent.values()))  # what else ran on this machine meanwhile
        spent["wall"] = time.perf_counter() - begin
        self.notes["cpu_seconds"][phase] = {name: round(seconds, 1) for name, seconds in spent.items()}

    def _idle_vectors(self) -> None:
        ours: list[float] = []
        bare: list[float] = []
        prober, feed, count = self.probers["vectors"], VectorFeed(self.bench.seed + 1), self.lengths["idle_probes"]

        def bare_probe(hops: TwoHops, number: int) -> float:
            prober.pause()
            return hops.measure(f"hop-{number}".encode(), feed.value(f"probe-vectors-{number}"))

        with open_two_hops(self.place) as hops, self.bench.steps(f"W4 {self.place.name}: idle vectors, two hops", 2 * count) as step:
            for number in range(self.lengths["warm_up_probes"]):
                bare_probe(hops, -1 - number)
            for turn in abba(count):
                if turn == "A":
                    ours.append(prober.probe())
                else:
                    bare.append(bare_probe(hops, len(bare)))
                step.done()
        self._add("vectors", "", ours)
        self._add("two_hops", "", bare)
        self.modes["vectors_over_two_hops"] = ratio(ours, bare, 50, self.bench.seed)

    def _sustained_rate(self, kind: str) -> float:
        """Items a second of the running pipeline, producer included: a burst, until all of it is searchable."""
        pilot = self._burst(kind, PILOT_ITEMS[kind])
        items = max(PILOT_ITEMS[kind], int(pilot * self.lengths["burst_seconds"]))
        rate = self._burst(kind, items)
        self.notes[f"{kind}_per_second"] = round(rate, 1)
        self.notes[f"{kind}_burst_items"] = items
        return rate

    def _burst(self, kind: str, items: int) -> float:
        prober = self.probers[kind]
        begin = time.perf_counter()
        with self.bench.steps(f"W4 {self.place.name}: burst of {items} {kind}", items) as step:
            for number in range(items):
                prober.feed.send(prober.producer, f"burst-{items}-{number}")
                step.done()
            prober.producer.flush()
            self.client.wait_for(self.collections[kind].name, prober.producer.next_offsets, timeout_seconds=600.0)
        return items / (time.perf_counter() - begin)

    def _half_load(self, kind: str, rate: float) -> None:
        record = self.collections[kind]
        command = [sys.executable, "-m", "bench.load", kind, record.name, f"{rate:.3f}"]
        with BenchProcess(f"load_{kind}", command, self.place.values, self.place.folder, talks=True) as load:
            load.read_line()
            time.sleep(1.0)  # until the load has become steady
            samples = _probes(self.bench, f"W4 {self.place.name}: {kind} beside {rate:.0f}/s", self.probers[kind], self.lengths["load_probes"])
            done = json.loads(load.finish())
        self._add(kind, "_half_load", samples)
        self.notes[f"{kind}_half_load"] = {"asked_per_second": round(rate, 1), "sent_per_second": round(done["sent"] / done["seconds"], 1), **done}


def _probes(bench: Bench, text: str, prober: Prober, count: int) -> list[float]:
    samples = []
    with bench.steps(text, count) as step:
        for _ in range(count):
            samples.append(prober.probe())
            step.done()
    return samples
