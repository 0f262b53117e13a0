"""W12: the checks that it turns off are those that its stream passes, and only while it says so."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from backends.catalog.manifests import ManifestChain
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from bench.checked_stream import BLOCK_ROWS, BLOCKS, PICTURES, VECTORS, Stream, outgoing, spent_seconds
from bench.checks import SWITCHES, counting, found, switched
from bench.own_rows import wait_for
from bench.processes import child_pids, cpu_seconds
from bench.trained import field_record, generation
from bench.w12_checks import KINDS, CostOfChecks
from contracts.chain import BatchSpan, Chain
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError
from contracts.log import LogRecord
from contracts.manifest import Manifest, ObjectEntry
from contracts.object_keys import CollectionKeys
from contracts.settings import load_settings
from contracts.vectors_batch import batch_headers, batch_schema, build_batch, encode_batch
from embedding.decode_pool import DecodePool
from indexer import partition_builder

ROWS = 120
ALL_OFF = {switch.place: switch.stand_in for switch in SWITCHES}


class Site:
    """A stream of own vectors in this process, in portions of `ROWS`."""

    def __init__(self, engines: Engines, record: CollectionRecord, stream: Stream) -> None:
        self.engines, self.record, self.stream = engines, record, stream
        self.sent = 0

    def portion(self, *, is_checked: bool) -> float:
        self.stream.begin(is_checked=is_checked)
        producer = self.engines.log.producer()
        for made in outgoing(VECTORS, self.sent, ROWS, 1):
            producer.send(self.record.source_topic, partition=0, key=made.key, value=made.value, headers=made.headers)
        self.sent += ROWS
        return self.stream.end(self.sent, self.sent)

    def manifest(self) -> Manifest:
        keys = CollectionKeys(self.record.name, self.record.incarnation).index(self.record.index().name)
        read = ManifestChain(self.engines.store, keys.partition(0)).head()
        assert read is not None
        return read.manifest


@pytest.fixture
def site() -> Iterator[Site]:
    settings = load_settings(log_url="memory://", store_url="memory://", seal_rows=ROWS, embed_watchdog_seconds=0.05)
    engines = Engines(settings, MemoryLog(), MemoryStore())
    record = create_collection(engines, CollectionRequest("c", [field_record()], partitions=1))
    with DecodePool(settings) as pool, Stream(engines, record, generation(300, 1), pool) as stream:
        yield Site(engines, record, stream)
    engines.log.close()


def test_the_stream_passes_every_check_that_is_turned_off(site: Site) -> None:
    site.portion(is_checked=True)
    calls: Counter[str] = Counter()
    with switched({switch.place: counting(switch.place, lambda place: calls.update([place])) for switch in SWITCHES}):
        site.portion(is_checked=True)
    assert {switch.place for switch in SWITCHES} == set(calls)
    assert site.manifest().rows == 2 * ROWS


def test_both_ways_store_the_same_rows_and_only_one_can_be_proven(site: Site) -> None:
    for is_checked in (True, False, False, True):
        assert site.portion(is_checked=is_checked) > 0
    manifest = site.manifest()
    assert [segment.rows for segment in manifest.segments] == [ROWS] * 4 and manifest.checkpoint.media_offset == 4 * ROWS
    hashes = [{entry.sha256 for entry in segment.parts.values()} for segment in manifest.segments]
    assert [found == {"0" * 64} for found in hashes] == [False, True, True, False]
    assert [len(segment.parts) for segment in manifest.segments] == [2] * 4
    assert [entry.object.size_bytes > 0 for entry in manifest.ledger] == [True, False, False, True]


def test_everything_is_as_it_was_afterwards() -> None:
    before = {switch.place: found(switch.place)[2] for switch in SWITCHES}
    with pytest.raises(KeyError), switched(ALL_OFF):
        assert all(found(place)[2] is stand_in for place, stand_in in ALL_OFF.items())
        raise KeyError
    assert {switch.place: found(switch.place)[2] for switch in SWITCHES} == before
    chain = Chain("i", "t", 5)
    assert chain.accept(BatchSpan("i", "t", 6, 9)) is None and ObjectEntry.of("c/x", b"1").sha256 != "0" * 64


def test_a_damaged_batch_is_refused_unless_its_check_is_off() -> None:
    engines = Engines(load_settings(log_url="memory://", store_url="memory://"), MemoryLog(), MemoryStore())
    schema = batch_schema(create_collection(engines, CollectionRequest("c", [field_record()], partitions=1)).index(), {})
    engines.log.close()
    value = encode_batch(build_batch([], schema))
    span = BatchSpan("i", "t", 0, 1)
    record = LogRecord("v", 0, 0, 0, None, value, batch_headers(span, b"other bytes"))
    with pytest.raises(CorruptError, match="sha256"):
        partition_builder.decode_batch(record, schema)
    with switched(ALL_OFF):
        assert partition_builder.decode_batch(record, schema).num_rows == 0


def test_a_stream_s_records_hold_all_items() -> None:
    assert [len(list(outgoing(kind, 3, count, 1))) for kind, count in ((PICTURES, 5), (VECTORS, 7), (BLOCKS, 2 * BLOCK_ROWS))] == [5, 7, 2]
    assert [record.key for record in outgoing(PICTURES, 3, 2, 1)] == [b"picture-3", b"picture-4"]
    assert set(KINDS.values()) == {PICTURES, VECTORS, BLOCKS} and {goal.limit for goal in CostOfChecks().goals.values()} == {1.03}


def test_the_cpu_of_a_child_counts_while_it_runs() -> None:
    begin, own = spent_seconds(), time.process_time()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert busy.pid in child_pids()
        wait_for(lambda: (cpu_seconds(busy.pid) or 0.0) > 0.3, "a busy child")
        assert spent_seconds() - begin > time.process_time() - own + 0.1
    finally:
        busy.kill()
        busy.wait()
    assert busy.pid not in child_pids()
