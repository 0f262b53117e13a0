"""The workloads of building and loading: what is filled, added and counted."""

from __future__ import annotations

import faiss
import numpy as np

from backends.catalog.admin import CollectionRequest, create_collection
from backends.memory_log import MemoryLog
from backends.memory_store import MemoryStore
from bench.bare_add import add_once
from bench.feeds import VECTOR_FIELD
from bench.generated_rows import rows_of
from bench.prepared import LIMIT, PreparedIndex, nearest
from bench.trained import field_record, generation
from bench.vector_batches import fill
from bench.w2_build import BuildSegments
from bench.w6_cold_start import ColdStart
from bench.w13_storage import FLAT_ROWS, Storage, built
from contracts.engines import Engines
from contracts.settings import load_settings
from indexer.partition_builder import PartitionBuilder
from indexer.partition_source import PartitionSource
from indexer.ulids import UlidSource
from vectors.quantizer import Quantizer


def test_a_filled_topic_is_built_into_a_segment_of_all_its_rows() -> None:
    engines = Engines(load_settings(), MemoryLog(), MemoryStore())
    record = create_collection(engines, CollectionRequest("c", [field_record()], partitions=1))
    matrix, producer = rows_of(700, 1), engines.log.producer()
    fill(producer, record, matrix, 2100)
    builder = PartitionBuilder(PartitionSource(engines, record, record.index(), 0), "w", UlidSource())
    reader = engines.log.reader(record.index().vectors_topic, {0: builder.start()})
    for batch in reader.poll(1.0):
        builder.feed(batch)
    read = builder.commit()
    assert read is not None and read.manifest.rows == 2100 and read.manifest.checkpoint.media_offset == 3
    builder.live.load(read.manifest)
    base = builder.live.bases(["item-00000000", "item-00000701", "item-00002099", "item-00002100"], record, record.index())
    same = [None if row is None else np.array_equal(row.vector(VECTOR_FIELD), matrix[at]) for row, at in zip(base, (0, 1, 699, 0), strict=True)]
    assert same == [True, True, True, None]
    engines.log.close()


def test_the_bare_side_adds_all_rows_to_codes_and_refine_store() -> None:
    quantizer, rows = Quantizer.open(generation(300, 1)), rows_of(500, 1).astype(np.float32)
    answer = add_once(quantizer, rows)
    assert answer["rows"] == 500 and answer["seconds"] > 0 and answer["cpu_seconds"] > 0
    assert generation(300, 1) is generation(300, 1)
    assert isinstance(quantizer.new_refine_index(), faiss.IndexScalarQuantizer) and quantizer.codec.name == "ivf_pq64x8+sq8"


def test_the_goals_of_building_are_those_that_were_set() -> None:
    goals = BuildSegments().goals
    assert (goals["cpu"].limit, goals["wall"].limit) == (0.9, 0.75) and not any(goal.smaller_is_better for goal in goals.values())
    assert {mode: goal.limit for mode, goal in ColdStart(PreparedIndex()).goals.items()} == {"cold": 1.15, "first_answer_ms": 150.0}
    assert {mode: goal.limit for mode, goal in Storage(PreparedIndex()).goals.items()} == {"1000": 1.1, "65536": 1.1, "1000000": 1.1}


def test_every_stored_byte_is_counted_once_and_vectors_as_they_are_stored() -> None:
    flat = built(FLAT_ROWS, 65_536, 1)
    assert flat.vectors == FLAT_ROWS * 512 * 2 and flat.forgotten == 0 and "generation" not in flat.needed
    coded = built(700, 600, 1)
    assert coded.vectors == 700 * (64 + 512) and coded.needed["generation"] > 256 * 512 * 4
    assert coded.needed["field.embedding"] > coded.vectors and coded.needed["rows"] > coded.rows > 700 * (8 + 4 + 16)
    assert coded.ratio == sum(coded.needed.values()) / (coded.vectors + coded.rows)


def test_the_truth_is_that_of_the_stored_vectors() -> None:
    matrix = rows_of(900, 1)
    queries = matrix[[5, 700]].astype(np.float32)
    found = nearest(matrix, queries)
    scores = queries @ matrix.astype(np.float32).T
    assert found.shape == (2, LIMIT) and found[:, 0].tolist() == [5, 700]
    assert np.allclose(np.take_along_axis(scores, found, axis=1), np.sort(scores, axis=1)[:, : -LIMIT - 1 : -1])
