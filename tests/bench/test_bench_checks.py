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
from bench import checked_stream
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


@pytest.fixture(scope="module")
def stream() -> Iterator[Stream]:
    settings = load_settings(log_url="memory://", store_url="memory://", seal_rows=ROWS, embed_watchdog_seconds=0.05)
    engines = Engines(settings, MemoryLog(), MemoryStore())
    with DecodePool(settings) as pool:
        made = Stream(engines, generation(600, 1), pool, 1)
        yield made
        made.close()
    engines.log.close()


@pytest.fixture
def manifests(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> list[Manifest]:
    """What each run has committed, read before its collection is deleted."""
    kept: list[Manifest] = []
    delete = checked_stream.delete_collection

    def read_and_delete(engines: Engines, name: str) -> CollectionRecord:
        record = delete(engines, name)  # its objects stay until they are collected
        keys = CollectionKeys(record.name, record.incarnation).index(record.index().name)
        read = ManifestChain(engines.store, keys.partition(0)).head()
        assert read is not None
        kept.append(read.manifest)
        return record

    monkeypatch.setattr(checked_stream, "delete_collection", read_and_delete)
    return kept


def test_the_stream_passes_every_check_that_is_turned_off(stream: Stream, manifests: list[Manifest]) -> None:
    calls: Counter[str] = Counter()
    with switched({switch.place: counting(switch.place, lambda place: calls.update([place])) for switch in SWITCHES}):
        stream.run(VECTORS, ROWS, is_checked=True)
    assert {switch.place for switch in SWITCHES} == set(calls)
    assert manifests[0].rows == ROWS


def test_both_ways_store_the_same_rows_and_only_one_can_be_proven(stream: Stream, manifests: list[Manifest]) -> None:
    for is_checked in (True, False):
        answer = stream.run(VECTORS, ROWS, is_checked=is_checked)
        assert 0 < answer["embed_cpu_seconds"] < answer["cpu_seconds"]
    on, off = manifests
    assert on.rows == off.rows == ROWS and on.checkpoint.media_offset == off.checkpoint.media_offset == ROWS
    sizes = [[entry.size_bytes for entry in manifest.segments[0].parts.values()] for manifest in manifests]
    assert len(sizes[0]) == len(sizes[1]) == 2
    assert all(set(entry.sha256) != {"0"} for entry in on.segments[0].parts.values())
    assert all(set(entry.sha256) == {"0"} for entry in off.segments[0].parts.values())
    assert on.ledger[0].object.size_bytes > 0 == off.ledger[0].object.size_bytes


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
    assert [len(list(outgoing(kind, count, 1))) for kind, count in ((PICTURES, 5), (VECTORS, 7), (BLOCKS, 2 * BLOCK_ROWS))] == [5, 7, 2]
    assert set(KINDS.values()) == {PICTURES, VECTORS, BLOCKS} and {goal.limit for goal in CostOfChecks().goals.values()} == {1.03}


def test_the_cpu_of_a_child_counts_while_it_runs() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert busy.pid in child_pids()
        begin, own = spent_seconds(), time.process_time()
        wait_for(lambda: (cpu_seconds(busy.pid) or 0.0) > 0.3, "a busy child")
        assert spent_seconds() - begin > time.process_time() - own + 0.1
    finally:
        busy.kill()
        busy.wait()
    assert busy.pid not in child_pids()
