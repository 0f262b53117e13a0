"""The indexer's path on the memory log and store: records in, committed segments out."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.vectors_batch import read_headers
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.examples import examples
from tests.indexer.conftest import delete, eventually, make_collection, produce, running, vector_of
from tests.indexer.stored import read_partition


def workers(engines: Engines, collection: CollectionRecord):  # type: ignore[no-untyped-def]
    index = collection.index()
    return EmbedWorker(engines, collection, index, None).run, BuildWorker(engines, collection, index).run


def committed(engines: Engines, collection: CollectionRecord, partition: int) -> int:
    return read_partition(engines, collection, partition).manifest.checkpoint.media_offset


def test_rows_of_an_arrow_record_are_committed_with_their_vectors_and_texts(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 0, ["a", "b", "c"], ["one", "two", "three"])
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 0) == 1)
    stored = read_partition(engines, collection, 0)
    assert stored.live == {"a": (0, 0), "b": (0, 1), "c": (0, 2)}
    assert stored.texts == {"a": "one", "b": "two", "c": "three"}
    wanted = vector_of("b") / np.linalg.norm(vector_of("b"))
    np.testing.assert_allclose(stored.vectors["b"], wanted, atol=1e-6)
    assert stored.is_tiled()


def test_an_update_leaves_one_live_row_and_a_delete_leaves_none(engines: Engines, collection: CollectionRecord) -> None:
    with running(*workers(engines, collection)):
        produce(engines, collection, 0, ["a", "b"], ["old", "keep"])
        eventually(lambda: committed(engines, collection, 0) == 1)
        produce(engines, collection, 0, ["a"], ["new"])
        delete(engines, collection, 0, "b")
        eventually(lambda: committed(engines, collection, 0) == 3)
    stored = read_partition(engines, collection, 0)
    assert stored.texts == {"a": "new"}
    assert stored.verdicts() == {(0, 0): "row", (0, 1): "row", (1, 0): "row", (2, 0): "delete"}


def test_of_two_versions_in_one_segment_the_older_is_superseded(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 1, ["a", "a", "z"])
    produce(engines, collection, 1, ["a"], ["last"])
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 1) == 2)
    stored = read_partition(engines, collection, 1)
    assert stored.live == {"a": (1, 0), "z": (0, 2)}
    assert stored.verdicts() == {(0, 0): "superseded", (0, 1): "superseded", (0, 2): "row", (1, 0): "row"}


def test_a_bad_record_becomes_a_dead_letter_with_its_bytes_and_the_stream_goes_on(engines: Engines, collection: CollectionRecord) -> None:
    producer = engines.log.producer()
    producer.send(collection.source_topic, partition=0, key=b"k", value=b"%PDF-1.7", headers=[("content-type", b"application/pdf")])
    producer.flush(5)
    produce(engines, collection, 0, ["after"])
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 0) == 2)
    stored = read_partition(engines, collection, 0)
    assert stored.live == {"after": (1, 0)}
    assert [(run.verdict, run.reason) for run in stored.ledger] == [("reject", "unsupported_content_type"), ("row", None)]
    letter = engines.log.read_at(collection.dead_letter_topic, 0, 0)
    assert letter is not None and letter.value == b"%PDF-1.7" and letter.key == b"k"
    headers = dict(letter.headers)
    assert headers["content-type"] == b"application/pdf"
    assert headers["__connect.errors.offset"] == b"0"
    assert headers["hw_reason"] == b"unsupported_content_type"
    producer.close()


def test_a_commit_that_only_rejects_moves_the_checkpoint_without_a_segment(engines: Engines, collection: CollectionRecord) -> None:
    producer = engines.log.producer()
    producer.send(collection.source_topic, partition=0, key=b"k", value=b"")
    producer.flush(5)
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 0) == 1)
    stored = read_partition(engines, collection, 0)
    assert stored.manifest.segments == () and stored.is_tiled()
    producer.close()


def test_every_commit_is_announced_in_the_vectors_topic(engines: Engines, collection: CollectionRecord) -> None:
    produce(engines, collection, 0, ["a"])
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 0) == 1)
        eventually(lambda: engines.log.bounds(collection.index().vectors_topic)[0].next_offset == 2)
    notice = engines.log.read_at(collection.index().vectors_topic, 0, 1)
    assert notice is not None and notice.value is None
    found = read_headers(notice)
    assert found.version == read_partition(engines, collection, 0).manifest.version  # type: ignore[union-attr]


def test_workers_that_start_again_go_on_where_the_chain_ends(engines: Engines, collection: CollectionRecord) -> None:
    for round_number in range(4):
        produce(engines, collection, 0, [f"{round_number}-{n}" for n in range(3)])
        with running(*workers(engines, collection)):
            eventually(lambda n=round_number: committed(engines, collection, 0) == n + 1)  # type: ignore[misc]
    stored = read_partition(engines, collection, 0)
    assert stored.live_rows == 12 and stored.is_tiled()
    assert stored.manifest.epochs.builder == 4


def test_a_second_embed_worker_on_the_same_partition_doubles_nothing(engines: Engines, collection: CollectionRecord) -> None:
    """A zombie's batches are dropped by the chain rule, whatever it writes."""
    produce(engines, collection, 0, ["a"])
    with running(*workers(engines, collection)):
        eventually(lambda: committed(engines, collection, 0) == 1)
        vectors_topic = collection.index().vectors_topic
        old = engines.log.read_at(vectors_topic, 0, 0)
        assert old is not None
        zombie = engines.log.producer()
        zombie.send(vectors_topic, partition=0, value=old.value, headers=old.headers)
        zombie.flush(5)
        produce(engines, collection, 0, ["b"])
        eventually(lambda: committed(engines, collection, 0) == 2)
        zombie.close()
    assert read_partition(engines, collection, 0).live == {"a": (0, 0), "b": (1, 0)}


def test_the_watchdog_writes_again_what_was_acknowledged_and_then_lost(engines: Engines) -> None:
    """A batch that vanished after its acknowledgement leaves the chain behind; the worker notices and goes back."""
    collection = make_collection(engines, "lossy", partitions=1)
    embed, build = workers(engines, collection)
    log, lost = engines.log, []
    real_producer = log.producer

    class Losing:
        """A producer that acknowledges the first batch without storing it, as a failed leader may."""

        def __init__(self) -> None:
            self.inner = real_producer()

        def send(self, topic: str, **record: object):  # type: ignore[no-untyped-def]
            if topic == collection.index().vectors_topic and not lost:
                lost.append(record)
                return self.inner.send(collection.dead_letter_topic, **record)  # type: ignore[arg-type]
            return self.inner.send(topic, **record)  # type: ignore[arg-type]

        def flush(self, timeout_seconds: float) -> None:
            self.inner.flush(timeout_seconds)

        def close(self) -> None:
            self.inner.close()

    produce(engines, collection, 0, ["a"])
    log.producer = lambda **_: Losing()  # type: ignore[method-assign,assignment,misc]
    with running(embed, build):
        eventually(lambda: committed(engines, collection, 0) == 1)
    assert lost and read_partition(engines, collection, 0).live == {"a": (0, 0)}


@settings(max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("up"), st.lists(st.integers(0, 6), min_size=1, max_size=4)),
            st.tuples(st.just("del"), st.integers(0, 6)),
            st.tuples(st.just("restart"), st.none()),
        ),
        min_size=1,
        max_size=14,
    )
)
def test_any_mix_of_updates_deletes_and_restarts_leaves_the_newest_versions(engines: Engines, steps: list) -> None:  # type: ignore[type-arg]
    from ulid import ULID

    collection = make_collection(engines, f"mix-{ULID()}", partitions=1)
    wanted: dict[str, tuple[int, int]] = {}
    end = 0
    context = running(*workers(engines, collection))
    context.__enter__()
    for kind, what in steps:
        if kind == "up":
            offset = produce(engines, collection, 0, [f"i{n}" for n in what])
            wanted.update({f"i{n}": (offset, at) for at, n in enumerate(what)})
            end = offset + 1
        elif kind == "del":
            end = delete(engines, collection, 0, f"i{what}") + 1
            wanted.pop(f"i{what}", None)
        else:
            context.__exit__(None, None, None)
            context = running(*workers(engines, collection))
            context.__enter__()
    try:
        eventually(lambda: committed(engines, collection, 0) == end)
    finally:
        context.__exit__(None, None, None)
    stored = read_partition(engines, collection, 0)
    assert stored.live == wanted and stored.is_tiled()
