"""W1, pictures Kafka -> searchable: pictures a second of the whole pipeline, divided by those of a bare decode and embed loop in memory.

Both have the same encoder, runtime and pictures; the loop's encoder has the threads with which it is fastest, the worker's its default. The topic
is filled first; the clock starts when the first pictures are searchable and stops when all are. Without the local stack the same is measured on the
embedded site (`embedded_...`), and where torch finds a GPU with the settings that GPUs want (`..._gpu`). docs/benchmarks.md says how to read it.

Takes: `Bench`. Gives: a ratio by encoder. Owns: the lengths and the order A B B A.
Never: measures the loading of models, or producing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from bench.checkpoints import VIT_B32, write_random
from bench.feeds import PictureFeed
from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import abba, percentile, ratio
from bench.machine import gpu_name
from bench.places import Place, open_place, stack_values
from bench.processes import BenchProcess, machine_cpu_seconds, module_command
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import UnavailableError
from contracts.log import TopicSpec
from contracts.settings import load_settings
from headwater.client import HeadwaterClient
from headwater.wiring import encoder_fields, open_engines
from ingest.records import plain_record

PARTITIONS = 4
LIMIT_SECONDS = 300.0


FIRST_PICTURES = 64
"""Pictures that are searchable before the clock starts."""
ENCODERS = {"lite": "lite", "vit_b32": VIT_B32}


class PicturesToSearchable:
    """The workload."""

    name = "W1"
    title = "pictures Kafka -> searchable / bare decode and embed loop"
    goals = {"lite": Goal(0.85, smaller_is_better=False), "vit_b32": Goal(0.95, smaller_is_better=False)}

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`."""
        lengths, gpu, site = bench.lengths(self.name), gpu_name(), "embedded" if stack_values() is None else "kafka"
        values = gpu_values() if gpu else {}
        outcome = Outcome(notes={"lengths": lengths, "first_pictures": FIRST_PICTURES, "partitions": PARTITIONS, "order": "A B B A"})
        outcome.notes |= {"site": site, "gpu": gpu, "settings": values}
        for name, encoder in ENCODERS.items():
            mode = f"{'embedded_' if site == 'embedded' else ''}{name}{'_gpu' if gpu else ''}"
            with open_place(site) as place:
                place.values = dict(place.values) | values | {"model_dir": str(place.folder)}
                place.settings = load_settings(**place.values)
                if encoder == VIT_B32:
                    write_random(encoder, place.folder, bench.seed)
                pictures = lengths["gpu_pictures" if gpu else f"{name}_pictures"]
                measures, notes = _measure(bench, lengths["pairs"], pictures, place, mode, encoder)
            outcome.modes |= measures
            outcome.notes[mode] = notes
        return outcome


def gpu_values() -> dict[str, str]:
    """What docs/encoders.md advises for a GPU, and a decoding process for each core but two."""
    return {"embed_batch_items": "256", "embed_batch_seconds": "0.05", "decode_children": str(max(2, (os.cpu_count() or 2) - 2))}


def _measure(bench: Bench, pairs: int, pictures: int, place: Place, mode: str, encoder: str) -> tuple[dict[str, Measure], dict[str, Any]]:
    ours: list[float] = []
    bare: list[float] = []
    threads = 0
    with ExitStack() as stack:
        engines = stack.enter_context(open_engines(place.settings))
        with bench.steps(f"W1 {mode}: start"):
            stack.enter_context(place.running())
            loop = stack.enter_context(BenchProcess("bare_loop", module_command("bench.bare_loop", encoder), place.values, place.folder, talks=True))
            loop.read_line()
            warming = max(2 * FIRST_PICTURES, 4 * place.settings.embed_batch_items)
            _pipeline(engines, place, encoder, warming, FIRST_PICTURES)  # loads the worker's model
            place.settle()
        idle = _idle_share()
        with bench.steps(f"W1 {mode}: pipeline and bare loop", 2 * pairs) as step:
            for turn in abba(pairs):
                if turn == "A":
                    ours.append(_pipeline(engines, place, encoder, pictures, FIRST_PICTURES))
                else:
                    answer = json.loads(loop.ask(str(pictures)))
                    bare.append(answer["pictures"] / answer["seconds"])
                    threads = answer["encoder_threads"]
                step.done()
        notes = {
            "pipeline_per_second": [round(rate, 1) for rate in ours],
            "bare_per_second": [round(rate, 1) for rate in bare],
            "bare_encoder_threads": threads,
            "cpu_share_of_idle_roles_beside_the_bare_loop": round(idle, 3),
        }
    measures = {mode: ratio(ours, bare, 50, bench.seed)}
    measures |= {f"{mode}_pipeline": percentile(ours, 50, "per second", bench.seed), f"{mode}_bare": percentile(bare, 50, "per second", bench.seed)}
    return measures, notes


def _idle_share(seconds: float = 3.0) -> float:
    """CPU of the resting machine, as a share of one core: what the roles take from the bare loop, which runs beside them."""
    before = machine_cpu_seconds()
    time.sleep(seconds)
    return (machine_cpu_seconds() - before) / seconds


@contextmanager
def _filled_topic(engines: Engines, pictures: int) -> Iterator[str]:
    """A topic that holds this many pictures."""
    name, feed = f"bench-w1-{uuid4().hex[:12]}", PictureFeed(1)
    engines.log.create_topic(TopicSpec(name, PARTITIONS, retention_ms=-1))
    try:
        producer = engines.log.producer(linger_seconds=0.02)
        for number, data in enumerate(feed.next_bytes(pictures)):
            record = plain_record(f"picture-{number}", data, "image/jpeg")
            producer.send(name, partition=number % PARTITIONS, key=record.key, value=record.value, headers=record.headers)
        producer.flush(60.0)
        producer.close()
        yield name
    finally:
        engines.log.delete_topic(name)


def _pipeline(engines: Engines, place: Place, encoder: str, pictures: int, first_pictures: int) -> float:
    """Pictures a second between the moment when the first ones are searchable and the moment when all are."""
    name = f"bench-w1-{uuid4().hex[:9]}"
    with _filled_topic(engines, pictures) as topic, HeadwaterClient(place.url, timeout_seconds=30.0) as client:
        request = CollectionRequest(name, encoder_fields(encoder, ("image",), place.settings), PARTITIONS, source_topic=topic, start="earliest")
        record = create_collection(engines, request)
        try:
            return _rate(client, record, place, pictures, first_pictures)
        finally:
            delete_collection(engines, name)


def _rate(client: HeadwaterClient, record: CollectionRecord, place: Place, pictures: int, first_pictures: int) -> float:
    began_at, began_with = 0.0, 0
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        for process in place.processes:
            process.check()
        found = sum(client.freshness_or_nothing(record.name).offsets.values())
        now = time.perf_counter()
        if found >= pictures:
            if not began_with:
                raise UnavailableError("all pictures were searchable at the first look", hint="send more of them")
            return (found - began_with) / (now - began_at)
        if not began_with and found >= first_pictures:
            began_at, began_with = now, found
        time.sleep(0.02)
    raise UnavailableError(f"{pictures} pictures were not searchable after {LIMIT_SECONDS:g} s", hint="look at the logs of the roles")
