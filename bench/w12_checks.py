"""W12, the cost of the checks: CPU-seconds per 1,000 items of embedding and building with all checks, divided by those without any.

A process of its own (`bench.checked_stream`) works on portion after portion of a stream, A B B A; without checks its functions are replaced by ones
that believe everything (`bench.checks`). The ratio is the geometric mean of the pairs'. docs/benchmarks.md says how to read it.

Takes: `Bench`; the local stack, else a file and a folder. Gives: a ratio by kind of items. Owns: the order. Never: turns a check off elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from backends.catalog.admin import CollectionRequest, create_collection, delete_collection
from bench.checked_stream import BLOCKS, ENCODER, PICTURES, VECTORS, outgoing
from bench.checks import SWITCHES
from bench.frame import Bench, Goal, Measure, Outcome
from bench.intervals import abba, paired_ratio, percentile
from bench.places import Place, open_place, stack_values
from bench.processes import BenchProcess, machine_cpu_seconds, module_command
from bench.trained import field_record, generation
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.generation import encode_generation
from contracts.log import LogProducer
from contracts.settings import load_settings
from headwater.wiring import encoder_fields, open_engines

KINDS = {"cpu": PICTURES, "cpu_vectors": VECTORS, "cpu_blocks": BLOCKS}
UNIT = "CPU-seconds per 1,000"
TRAIN_ROWS = 65_536
WATCHDOG_SECONDS = 0.5
"""Instead of 5 s: a portion ends when the watchdog is sure of all of it, as it gets in a stream that goes on."""
GENERATION_FILE = "generation"
WARM_UP = "AB"


class CostOfChecks:
    """The workload."""

    name = "W12"
    title = "CPU-seconds per 1,000 items, all checks / none"
    goals = dict.fromkeys(KINDS, Goal(1.03))

    def run(self, bench: Bench) -> Outcome:
        """See `bench.frame.Workload.run`."""
        lengths = bench.lengths(self.name)
        place_name = "embedded" if stack_values() is None else "kafka"
        checks = {switch.place: switch.checks for switch in SWITCHES}
        outcome = Outcome(notes={"lengths": lengths, "place": place_name, "order": "A B B A", "checks": checks})
        with bench.steps("W12: train"):
            trained = encode_generation(generation(TRAIN_ROWS, bench.seed))
        for mode, kind in KINDS.items():
            with open_place(place_name) as place:
                seals = {"seal_rows": str(lengths[kind]), "seal_seconds": "3600", "embed_watchdog_seconds": str(WATCHDOG_SECONDS)}
                place.values = dict(place.values) | seals
                place.settings = load_settings(**place.values)
                (place.folder / GENERATION_FILE).write_bytes(trained)
                with open_engines(place.settings) as engines, _collection(engines, kind) as record:
                    modes, outcome.notes[mode] = _compare(bench, _Portions(engines, record, kind, lengths[kind], bench.seed), place, mode)
            outcome.modes |= modes
        return outcome


@contextmanager
def _collection(engines: Engines, kind: str) -> Iterator[CollectionRecord]:
    fields = encoder_fields(ENCODER, ("image",), engines.settings) if kind == PICTURES else [field_record()]
    record = create_collection(engines, CollectionRequest(f"bench-w12-{uuid4().hex[:9]}", fields, partitions=1))
    try:
        yield record
    finally:
        delete_collection(engines, record.name)


class _Portions:
    """Sends portions of one kind, each with new ids; `records` and `items` were sent in all."""

    def __init__(self, engines: Engines, record: CollectionRecord, kind: str, count: int, seed: int) -> None:
        self._record, self.kind, self.count, self._seed = record, kind, count, seed
        self._producer: LogProducer = engines.log.producer(linger_seconds=0.02)
        self.records = self.items = 0

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self._record.name

    def send(self) -> None:
        """The next portion, until it is stored."""
        for made in outgoing(self.kind, self.items, self.count, self._seed):
            self._producer.send(self._record.source_topic, partition=0, key=made.key, value=made.value, headers=made.headers)
            self.records += 1
        self._producer.flush(60.0)
        self.items += self.count

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def _compare(bench: Bench, portions: _Portions, place: Place, mode: str) -> tuple[dict[str, Measure], dict[str, Any]]:
    spent: dict[str, list[float]] = {"A": [], "B": []}
    order = abba(bench.length("W12", "pairs"))
    command = ["env", "OMP_NUM_THREADS=1", *module_command("bench.checked_stream", portions.collection, GENERATION_FILE)]
    with BenchProcess("checked_stream", command, place.values, place.folder, talks=True) as stream:
        stream.read_line()
        machine = machine_cpu_seconds()
        with bench.steps(f"W12: {portions.kind}, all checks and none", len(order) + len(WARM_UP)) as step:
            for number, turn in enumerate(WARM_UP + order):
                stream.ask(f"begin {'on' if turn == 'A' else 'off'}")
                portions.send()
                answer = json.loads(stream.ask(f"end {portions.records} {portions.items}"))
                if number >= len(WARM_UP):
                    spent[turn].append(1000 * answer["cpu_seconds"] / portions.count)
                step.done()
        machine = machine_cpu_seconds() - machine
        stream.finish()
    portions.close()
    modes = {
        mode: paired_ratio(spent["A"], spent["B"], bench.seed),
        f"{mode}_on": percentile(spent["A"], 50, UNIT, bench.seed),
        f"{mode}_off": percentile(spent["B"], 50, UNIT, bench.seed),
    }
    ours = (sum(spent["A"]) + sum(spent["B"])) * portions.count / 1000
    told = {name: [round(each, 5) for each in spent[turn]] for name, turn in (("on", "A"), ("off", "B"))}
    return modes, {"items": portions.count, **told, "share_of_the_machine_s_cpu": round(ours / machine, 2) if machine else 0.0}
