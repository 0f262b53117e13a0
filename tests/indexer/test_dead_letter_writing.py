"""Dead letters as embed workers write them: one per record, counted by reason, whatever its size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.log import LogRecord, TopicSpec
from contracts.media_record import ARROW_TYPE
from indexer.build_worker import BuildWorker
from indexer.dead_letter import DeadLetter, read_dead_letter
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import arrow_rows, eventually, make_collection, produce, running
from tests.indexer.stored import StoredPartition, read_partition


def letters(engines: Engines, collection: CollectionRecord) -> list[DeadLetter]:
    topic = collection.dead_letter_topic
    records = [engines.log.read_at(topic, 0, offset) for offset in range(engines.log.bounds(topic)[0].next_offset)]
    found = [read_dead_letter(record) for record in records if record is not None]
    assert all(letter is not None for letter in found)
    return [letter for letter in found if letter is not None]


def counted(engines: Engines, collection: CollectionRecord, reason: str) -> float:
    return engines.metrics.registry.get_sample_value("headwater_dead_letters_total", {"collection": collection.name, "reason": reason}) or 0.0


def embedded(engines: Engines, collection: CollectionRecord, outcome: str) -> float:
    labels = {"collection": collection.name, "stage": "embed", "outcome": outcome}
    return engines.metrics.registry.get_sample_value("headwater_records_total", labels) or 0.0


def index_all(engines: Engines, collection: CollectionRecord, records: int) -> StoredPartition:
    with running(EmbedWorker(engines, collection, collection.index(), None).run, BuildWorker(engines, collection, collection.index()).run):
        eventually(lambda: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == records)
    return read_partition(engines, collection, 0)


def test_a_record_whose_batch_is_too_large_becomes_one_dead_letter_that_is_counted_once(engines: Engines) -> None:
    small = replace(engines, settings=engines.settings.model_copy(update={"max_record_bytes": 60_000}))
    collection = make_collection(small, "oversized", partitions=1)
    produce(small, collection, 0, ["before"])
    zeros = arrow_rows([f"i{n}" for n in range(900)])  # small on the way in; ids, times and nulls make its batch too large
    producer = small.log.producer()
    producer.send(collection.source_topic, partition=0, value=zeros, headers=[("content-type", ARROW_TYPE.encode())]).result(5)
    producer.close()
    produce(small, collection, 0, ["after"])
    wide = replace(small, settings=small.settings.model_copy(update={"max_record_bytes": 40_000}))
    stored = index_all(wide, collection, 3)
    assert set(stored.live) == {"before", "after"}
    (letter,) = letters(wide, collection)
    assert letter.reasons == ("too_large",) and letter.place == (0, 1) and letter.original is not None and letter.original.value == zeros
    assert counted(wide, collection, "too_large") == 1
    rejected = sum(verdict == "reject" for verdict in stored.verdicts().values())
    assert embedded(wide, collection, "upsert") == 2 and embedded(wide, collection, "reject") == rejected > 0


@pytest.mark.parametrize("bad", [[1], [0, 2]])
def test_the_bad_rows_of_a_record_share_one_dead_letter_that_names_them(engines: Engines, collection: CollectionRecord, bad: list[int]) -> None:
    import numpy as np
    import pyarrow as pa

    vectors = np.ones((3, 8), np.float32)
    vectors[bad] = 0
    table = pa.table({"id": ["a", "b", "c"], "vec": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    producer = engines.log.producer()
    headers = [("content-type", ARROW_TYPE.encode())]
    producer.send(collection.source_topic, partition=0, value=bytes(sink.getvalue()), headers=headers).result(5)
    producer.close()
    assert len(index_all(engines, collection, 1).live) == 3 - len(bad)
    (letter,) = letters(engines, collection)
    assert [number for number in range(3) if number in letter.items] == bad and letter.reasons == ("zero_norm",)
    assert counted(engines, collection, "zero_norm") == 1 and embedded(engines, collection, "reject") == len(bad)


def test_a_record_that_does_not_fit_into_the_dead_letter_topic_leaves_its_bytes_out_and_the_stream_goes_on(engines: Engines) -> None:
    collection = make_collection(engines, "left-out", partitions=1)
    engines.log.delete_topic(collection.dead_letter_topic)
    engines.log.create_topic(TopicSpec(collection.dead_letter_topic, 1, retention_ms=-1, max_record_bytes=2_000))
    producer = engines.log.producer()
    producer.send(
        collection.source_topic, partition=0, key=b"k", value=b"%PDF" + bytes(5_000), headers=[("content-type", b"application/pdf")]
    ).result(5)
    producer.close()
    produce(engines, collection, 0, ["after"])
    assert set(index_all(engines, collection, 2).live) == {"after"}
    (letter,) = letters(engines, collection)
    assert letter.original is None and letter.size_bytes > 5_000 and letter.reasons == ("unsupported_content_type",)


def test_a_record_without_key_and_value_becomes_a_dead_letter_that_says_so(engines: Engines, collection: CollectionRecord) -> None:
    """Some clients send it, ours refuse to: it comes into the memory log from below."""
    cluster = engines.log._cluster  # type: ignore[attr-defined]
    append_unchecked(cluster, LogRecord(collection.source_topic, 0, 0, 1_700_000_000_000, None, None))
    index_all(engines, collection, 1)
    (letter,) = letters(engines, collection)
    assert letter.reasons == ("missing_id",) and letter.original is not None and (letter.original.key, letter.original.value) == (None, None)


def append_unchecked(cluster: object, record: LogRecord) -> None:
    topic = cluster.topic(record.topic)  # type: ignore[attr-defined]
    topic.partitions[record.partition].records.append(record)
