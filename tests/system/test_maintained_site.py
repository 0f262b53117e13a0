"""One process with all roles, maintenance going on without a pause: every answer equals a dictionary's, and at rest nothing is left over.

As `test_coded_site`, with patches, and with segments compacted, objects collected and the vectors topic truncated under the stream all the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.manifests import ManifestChain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.object_keys import CollectionKeys
from indexer.garbage import named_by
from ingest.producer import MediaProducer
from tests.query.writer import own_field
from tests.system.processes import Process, running, until
from tests.system.sites import Site, open_site
from tests.system.test_coded_site import DIMENSION, PARTITIONS, STABLE, TRAIN_ROWS, Stream, check, metric, post, searching

NOTES = 4
LEAST_ROUNDS, MOST_SECONDS = 30, 120.0


@dataclass
class PatchedStream(Stream):
    """A stream with patches; `notes` is what they left of each id."""

    notes: dict[str, int] = field(default_factory=dict)

    def put(self, ids: list[str]) -> None:
        super().put(ids)
        for item_id in ids:
            self.notes.pop(item_id, None)

    def remove(self, ids: list[str]) -> None:
        super().remove(ids)
        for item_id in ids:
            self.notes.pop(item_id, None)

    def patch(self, rows: int) -> None:
        chosen = [str(each) for each in self.random.choice(list(self.live), rows, replace=False)]
        values = {item_id: int(self.random.integers(NOTES)) for item_id in chosen}
        self._sent([self.producer.patch(item_id, {"note": value}) for item_id, value in values.items()])
        self.notes |= values

    def turn(self, number: int) -> None:
        super().turn(number)
        self.patch(20)


def check_notes(url: str, stream: PatchedStream) -> None:
    consistency = {"min_offsets": {str(partition): offset for partition, offset in stream.offsets.items()}}
    for note in range(NOTES):
        asked = {"filter": {"must": [{"key": "note", "match": {"value": note}}]}, "consistency": consistency}
        assert post(url, "count", asked)["result"]["count"] == sum(value == note for value in stream.notes.values())


def create(engines: Engines) -> CollectionRecord:
    request = CollectionRequest(
        "things",
        [own_field(dimension=DIMENSION)],
        PARTITIONS,
        partitioner="murmur2",
        archive="off",
        attributes={"shade": "integer", "note": "integer"},
    )
    return create_collection(engines, request)


def left_over(engines: Engines, record: CollectionRecord) -> list[str]:
    """Objects of the index that the newest manifests do not name."""
    out: list[str] = []
    for partition in range(PARTITIONS):
        keys = CollectionKeys(record.name, record.incarnation).index("main").partition(partition)
        read = ManifestChain(engines.store, keys).head()
        assert read is not None
        named = {*named_by(read.manifest), keys.manifest(read.manifest.version), keys.boundary}
        out += [info.key for info in engines.store.list(keys.prefix) if info.key not in named]
    return out


@pytest.mark.slow
def test_under_compaction_and_collection_every_answer_equals_a_dictionarys(tmp_path: Path) -> None:
    options = {"train_rows": TRAIN_ROWS, "seal_rows": 150, "seal_seconds": 0.3, "max_limit": 100_000, "embed_watchdog_seconds": 0.5}
    options |= {"maintain_seconds": 0.2, "gc_seconds": 1.0, "compact_fan_in": 3, "compact_dead_share": 0.1}
    with open_site("sqlite", tmp_path, **options) as site, site.engines() as engines:
        record = create(engines)
        with MediaProducer(engines.log, record, engines.settings) as producer, running(site, "up") as processes:
            stream = PatchedStream(producer)
            run_stream(processes["up"], stream)
            run_at_rest(site, record, processes["up"], stream)


def run_stream(process: Process, stream: PatchedStream) -> None:
    url, problems = process.url, []
    stream.put([f"stable{at}" for at in range(STABLE)])
    check(url, stream)
    with searching(url, problems) as searches:
        began, number = time.monotonic(), 0
        while number < LEAST_ROUNDS or sum(metric(url, "headwater_compactions_total").values()) < 20:
            process.must_run()
            assert time.monotonic() - began < MOST_SECONDS, metric(url, "headwater_compactions_total")
            stream.turn(number)
            check(url, stream)
            check_notes(url, stream)
            number += 1
    assert problems == [] and searches[0] > 10
    collected = metric(url, "headwater_collected_objects_total")
    assert sum(collected.values()) > 100 and {line.split('kind="')[1].split('"')[0] for line in collected} >= {"part", "manifest"}


def run_at_rest(site: Site, record: CollectionRecord, process: Process, stream: PatchedStream) -> None:
    until(lambda: list(metric(process.url, "headwater_tail_rows").values()) == [0], 30, "the tail is sealed", alive=[process])
    with site.engines() as engines:
        until(lambda: not left_over(engines, record), 60, "nothing is left over", alive=[process])
        bounds = engines.log.bounds(record.index().vectors_topic)
        assert all(held.next_offset - held.start_offset < 10 for held in bounds.values()), bounds
    check(process.url, stream)
    check_notes(process.url, stream)
    process.kill()
    process.start()
    process.wait_ready()
    check(process.url, stream)
    check_notes(process.url, stream)
