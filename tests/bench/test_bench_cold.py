"""Cold nodes and their bare reference, as processes, on a small embedded index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.catalog.admin import CollectionRequest, create_collection
from bench.generated_rows import rows_of
from bench.places import Place
from bench.prepared import Prepared, newest_manifests
from bench.processes import BenchProcess, free_port, memory_mib, module_command
from bench.trained import field_record
from bench.vector_batches import fill
from bench.w6_cold_start import Found, measure_cold, measure_raw, weigh
from contracts.settings import load_settings
from headwater.wiring import open_engines
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource

ROWS = 3000


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Prepared]:
    values = {"log_url": f"sqlite:///{tmp_path / 'log.sqlite'}", "store_url": f"file:///{tmp_path / 'store'}", "query_port": str(free_port())}
    settings = load_settings(**values)
    with open_engines(settings) as engines:
        record = create_collection(engines, CollectionRequest("rows", [field_record()], partitions=1))
        matrix, producer = rows_of(1000, 1), engines.log.producer()
        fill(producer, record, matrix, ROWS)
        producer.close()
        builder = PartitionBuilder(PartitionSource(engines, record, record.index(), 0), "w", UlidSource())
        reader = engines.log.reader(record.index().vectors_topic, {0: builder.start()})
        for number in range(3):
            for batch in reader.poll(1.0, max_records=1):
                builder.feed(batch)
            assert builder.commit() is not None, number
        yield Prepared(
            Place("embedded", tmp_path, values, settings), engines, record, ROWS, queries=matrix[:3].astype("float32"), truth=np.arange(3)[:, None]
        )


def test_a_cold_node_answers_from_a_part_and_then_from_all_and_the_reference_gets_the_same_bytes(made: Prepared) -> None:
    found = Found()
    measure_cold(made, 0, found)
    measure_raw(made, 1, found)
    assert 0 < found.first[0] <= found.whole[0] < 60 and found.raw[0] > 0 and found.started[0] > 0
    entries = [entry for manifest in newest_manifests(made.engines, made.record) for s in manifest.segments for entry in s.parts.values()]
    assert (found.notes["objects"], found.notes["bytes"]) == (len(entries), sum(entry.size_bytes for entry in entries)) and len(entries) == 6
    assert found.whole[0] <= found.local[0] < 60 and found.pending_recalls == found.local_recalls
    assert found.notes["node_memory_mib"]["anonymous"] > 10
    assert not (made.place.folder / "cold-0").exists() and found.raw_whole[0] > 0
    assert found.notes["cached_bytes"] == sum({entry.sha256: entry.size_bytes for entry in entries}.values())  # equal objects are kept once


@pytest.mark.slow
def test_what_a_collection_takes_is_weighed_beside_what_was_counted(made: Prepared) -> None:
    answer = weigh(made)
    assert answer["counted_mib"] >= ROWS * 512 * 4 / 2**20 and answer["after"]["anonymous"] >= answer["before"]["anonymous"] > 10


def test_a_process_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    with BenchProcess("one", module_command("this"), {}, tmp_path) as process:
        pid = process.pid
    assert memory_mib(pid) == {} and memory_mib(None)["peak"] >= memory_mib(None)["anonymous"] > 0
    assert json.loads(json.dumps(memory_mib(None))) == memory_mib(None)
