"""The request bill: what own vectors at 1,000 a second ask of the object store, by the store's own counters, and what that costs a day.

The roles embed, index, maintain and query run with their default settings on Kafka and MinIO, in a bucket of their own, while a producer sends one
vector a record. docs/benchmarks.md says how to read it.

Takes: `Bench`, the local stack. Gives: requests per 1,000 records and a day, by class, and their price. Owns: how long is counted.
Never: counts what the roles ask while they start.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from bench.feeds import VECTOR_FIELD_WORDS
from bench.frame import Bench, Outcome
from bench.intervals import mean
from bench.places import Place, open_place, stack_values
from bench.prepared import newest_manifests
from bench.processes import BenchProcess
from bench.store_requests import DELETE, FRESH_SECONDS, GET, LIST, PUT, USD_PER_1000, RequestCounter, usd_per_day
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from headwater.wiring import open_engines, vector_field

ROLES = ("embed", "index", "maintain", "query")
PARTITIONS = 4
DAY_SECONDS = 86_400
WARM_UP_SECONDS = 10.0
SLICE_SECONDS = max(20.0, FRESH_SECONDS)


class RequestBill:
    """The workload."""

    name = "bill"
    title = "requests to the object store at 1,000 records a second"
    goals: dict[str, Any] = {}

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`. Nothing is measured without the local stack."""
        if stack_values() is None:
            return Outcome(notes={"not measured": "no local stack (make stack)"})
        with open_place("kafka") as place, open_engines(place.settings) as engines, ExitStack() as stack:
            request = CollectionRequest(f"bench-bill-{uuid4().hex[:9]}", [vector_field(VECTOR_FIELD_WORDS)], PARTITIONS)
            record = create_collection(engines, request)
            stack.callback(delete_collection, engines, record.name)
            with bench.steps("bill: start"):
                stack.enter_context(place.running(ROLES))
            slices, load = _count(bench, place, record)
            return outcome_of(bench, slices, load, _state(engines, record))


def _count(bench: Bench, place: Place, record: CollectionRecord) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Requests of each slice of time by class, ``seconds`` among them; and what the producer did."""
    address = place.settings.store_url.removeprefix("s3://")
    host, _, bucket = address.partition("/")
    counter = RequestCounter(host, bucket, place.settings.store_access_key, place.settings.store_secret_key.get_secret_value())
    rate, seconds = bench.length("bill", "rows_per_second"), bench.length("bill", "seconds")
    command = [sys.executable, "-m", "bench.load", "vectors", record.name, str(rate)]
    slices: list[dict[str, float]] = []
    with BenchProcess("load", command, place.values, place.folder, talks=True) as load:
        load.read_line()
        time.sleep(WARM_UP_SECONDS)
        before, begin = counter.read(), time.perf_counter()
        with bench.steps("bill: count requests", max(1, round(seconds / SLICE_SECONDS))) as step:
            for _ in range(max(1, round(seconds / SLICE_SECONDS))):
                time.sleep(SLICE_SECONDS)
                now, at = counter.read(), time.perf_counter()
                slices.append({kind: float(count - before.get(kind, 0)) for kind, count in now.items()} | {"seconds": at - begin})
                before, begin = now, at
                for process in place.processes:
                    process.check()
                step.done()
        done: dict[str, float] = json.loads(load.finish())
    return slices, done


def _state(engines: Engines, record: CollectionRecord) -> dict[str, Any]:
    manifests = newest_manifests(engines, record)
    segments = [segment for manifest in manifests for segment in manifest.segments]
    return {
        "manifest_versions": [manifest.version for manifest in manifests],
        "segments": len(segments),
        "rows": sum(segment.rows for segment in segments),
        "generation": max((number for manifest in manifests for number in manifest.generation.values()), default=0),
    }


def outcome_of(bench: Bench, slices: list[dict[str, float]], load: dict[str, float], state: dict[str, Any]) -> Outcome:
    """Requests by class per 1,000 records and a day, and their price."""
    sent_per_second = load["sent"] / load["seconds"]
    kinds = [kind for kind in dict.fromkeys((PUT, GET, LIST, DELETE, *(kind for each in slices for kind in each))) if kind != "seconds"]
    days = [{kind: each.get(kind, 0.0) / each["seconds"] * DAY_SECONDS for kind in kinds} for each in slices]
    outcome = Outcome()
    for kind in kinds:
        per_day = [day[kind] for day in days]
        if not any(per_day):
            continue  # nothing to draw; the notes tell it
        thousands_a_day = sent_per_second * DAY_SECONDS / 1000
        outcome.modes[f"{kind}_per_1000"] = mean([count / thousands_a_day for count in per_day], "per 1,000 records", bench.seed)
        outcome.modes[f"{kind}_per_day"] = mean(per_day, "requests a day", bench.seed)
    outcome.modes["usd_per_day"] = mean([usd_per_day(day) for day in days], "USD a day", bench.seed)
    whole = sum(each["seconds"] for each in slices)
    outcome.notes = {
        "asked_per_second": bench.length("bill", "rows_per_second"),
        "sent_per_second": round(sent_per_second, 1),
        "counted_seconds": round(whole, 1),
        "requests": {kind: sum(each.get(kind, 0.0) for each in slices) for kind in kinds},
        "usd_per_1000_requests": dict(USD_PER_1000),
        "roles": ROLES,
        "partitions": PARTITIONS,
        "settings": "defaults",
        "at_the_end": state,
    }
    return outcome
