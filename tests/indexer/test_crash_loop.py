"""A record that ends the whole worker is found, rejected alone, and costs nobody else anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.catalog.admin import CollectionRequest, create_collection
from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import DataLossError, RecordError, SettingsError
from contracts.log import CommittedOffset, GroupReader
from contracts.settings import load_settings
from indexer.attempts import CAREFUL_AFTER, REJECT_AFTER, AttemptBook, Attempts, is_careful
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.partition_source import PartitionSource, chain_end
from tests.encoders import SIDE, ColourEncoder, colour_fields
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.crashing_worker import CRASHED_BY
from tests.indexer.stored import read_partition
from tests.indexer.test_picture_path import jpeg, send

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    return {"log_url": f"sqlite:///{tmp_path}/log.sqlite", "store_url": f"file:///{tmp_path}/store"}


@pytest.fixture
def embedded(places: dict[str, str]) -> Iterator[Engines]:
    settings = load_settings(**places, seal_seconds=0.2)
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


def group(engines: Engines, collection: CollectionRecord) -> GroupReader:
    return engines.log.group_reader(collection.source_topic, collection.group(collection.index().name, "embed"))


def live_once(collection: CollectionRecord, places: dict[str, str]) -> int:
    """One life of the worker; gives its exit code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}  # noqa: TID251 - for another process
    variables = {f"HEADWATER_{name.upper()}": value for name, value in places.items()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.indexer.crashing_worker", collection.name],
        cwd=ROOT,
        env=kept | variables | {"PYTHONPATH": str(ROOT), "HEADWATER_EMBED_BATCH_ITEMS": "4"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode <= 0, done.stderr.decode()[-3000:]
    return done.returncode


@pytest.mark.slow
def test_a_picture_that_kills_the_worker_is_rejected_alone_and_all_others_are_indexed(embedded: Engines, places: dict[str, str]) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    for number in range(8):
        colour = CRASHED_BY if number == 5 else (10, 30 * number, 90)
        send(embedded, collection, f"p{number}", jpeg(colour), content_type="image/jpeg")
    codes = [live_once(collection, places)]
    while codes[-1] != 0 and len(codes) < 8:
        codes.append(live_once(collection, places))
    # At least: two lives in company at the first offset, then two alone with the poison; the next rejects it. At most: the first batch is stored
    # only by the second life, just before it ends; then the poison's batch costs two lives in company of its own.
    assert set(codes[:-1]) == {-signal.SIGSEGV} and codes[-1] == 0 and 5 <= len(codes) <= 7
    index = collection.index()
    with running(BuildWorker(embedded, collection, index).run):
        eventually(lambda: read_partition(embedded, collection, 0).manifest.checkpoint.media_offset == 8)
    stored = read_partition(embedded, collection, 0)
    assert stored.live == {f"p{number}": (number, 0) for number in range(8) if number != 5}
    assert [(run.verdict, run.reason) for run in stored.ledger if run.verdict != "row"] == [("reject", "embed_crashed")]
    assert stored.is_tiled() and stored.verdicts()[(5, 0)] == "reject"
    letter = embedded.log.read_at(collection.dead_letter_topic, 0, 0)
    assert letter is not None and letter.value == jpeg(CRASHED_BY)


def test_a_machine_that_cannot_embed_at_all_blames_no_record(embedded: Engines, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it works on a record alone, the worker tries a black picture; here it dies of that, too."""
    monkeypatch.setenv("KILLED_BY_BLACK", "1")
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    send(embedded, collection, "a", jpeg((0, 0, 0)), content_type="image/jpeg")
    left_behind = CommittedOffset(0, Attempts(attempts=2).to_metadata())
    with closing(group(embedded, collection)) as reader:
        reader.commit(0, left_behind)
    for _ in range(REJECT_AFTER + 1):
        assert live_once(collection, places) == -signal.SIGKILL
    with closing(group(embedded, collection)) as reader:
        assert reader.committed(0) == left_behind


@pytest.mark.parametrize(("on_reject", "left"), [("keep", {"cat": (0, 0)}), ("remove", {})])
def test_a_record_that_ended_lives_alone_does_to_the_older_row_what_any_rejected_update_does(
    embedded: Engines, on_reject: str, left: dict[str, tuple[int, int]]
) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1, on_reject=on_reject))  # type: ignore[arg-type]
    index_one_and_walk(
        embedded, collection, ColourEncoder(), Attempts(alone=REJECT_AFTER, careful_next=2), timestamp_ms=2**62
    )  # any 64 bits may come
    stored = read_partition(embedded, collection, 0)
    assert stored.live == left and stored.is_tiled() and stored.ledger[-1].reason == "embed_crashed"


@pytest.mark.parametrize(("on_partial", "kept"), [("keep", True), ("reject", False)])
def test_a_walk_judges_a_partial_item_as_the_collection_says(embedded: Engines, on_partial: str, kept: bool) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1, on_partial=on_partial))  # type: ignore[arg-type]
    index_one_and_walk(embedded, collection, RefusingEncoder(), Attempts(attempts=CAREFUL_AFTER), caption=b"a good caption")
    assert (read_partition(embedded, collection, 0).live["cat"] == (1, 0)) == kept


class RefusingEncoder(ColourEncoder):
    """Refuses yellow pictures, as a remote encoder may."""

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (np.abs(pictures[:, SIDE // 2, SIDE // 2].astype(int) - CRASHED_BY).max(1) < 40).any():
            raise RecordError("encoder_refused", "no yellow pictures")
        return super().encode_pictures(pictures)


def index_one_and_walk(
    engines: Engines, collection: CollectionRecord, encoder: ColourEncoder, earlier: Attempts, timestamp_ms: int | None = None, caption: bytes = b""
) -> None:
    """Index a red picture as `cat`, then have a walk meet a yellow one of the same id, after what `earlier` lives left there."""
    index = collection.index()
    producer = engines.log.producer()
    for offset, colour in enumerate([(250, 10, 10), CRASHED_BY]):
        headers = [("content-type", b"image/jpeg"), *([("hw_caption", caption)] if caption else [])]
        time_ms = timestamp_ms if offset else None
        producer.send(collection.source_topic, partition=0, key=b"cat", value=jpeg(colour), headers=headers, timestamp_ms=time_ms)
        producer.flush(5)
        if offset:
            with closing(group(engines, collection)) as reader:
                reader.commit(0, CommittedOffset(offset, earlier.to_metadata()))
        with running(EmbedWorker(engines, collection, index, encoder).run, BuildWorker(engines, collection, index).run):
            eventually(lambda n=offset + 1: read_partition(engines, collection, 0).manifest.checkpoint.media_offset == n)  # type: ignore[misc]
    producer.close()


class FailingEncoder(ColourEncoder):
    """Fails at yellow pictures with an error that is none of ours, as a GPU does."""

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (np.abs(pictures[:, SIDE // 2, SIDE // 2].astype(int) - CRASHED_BY).max(1) < 40).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().encode_pictures(pictures)


def test_a_picture_at_which_the_encoder_fails_in_its_own_words_is_rejected_alone(embedded: Engines) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    for number in range(6):
        send(embedded, collection, f"p{number}", jpeg(CRASHED_BY if number == 3 else (10, 30 * number, 90)), content_type="image/jpeg")
    index, lives = collection.index(), 0
    scan = PartitionSource(embedded, collection, index, 0).chain_scan()
    while scan.advance() < 6 and lives < 9:
        lives, stop = lives + 1, threading.Event()
        with ThreadPoolExecutor(1) as life:
            ended = life.submit(EmbedWorker(embedded, collection, index, FailingEncoder()).run, stop)
            eventually(lambda: ended.done() or scan.advance() == 6)  # noqa: B023
            stop.set()
        assert isinstance(ended.exception(), RuntimeError | None)
    assert scan.advance() == 6 and 4 <= lives <= 7
    with running(BuildWorker(embedded, collection, index).run):
        eventually(lambda: read_partition(embedded, collection, 0).manifest.checkpoint.media_offset == 6)
    stored = read_partition(embedded, collection, 0)
    assert stored.live == {f"p{number}": (number, 0) for number in range(6) if number != 3} and stored.verdicts()[(3, 0)] == "reject"


class RefusedEncoder(ColourEncoder):
    """What an encoder says whose credentials were taken away."""

    def encode_pictures(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise SettingsError("the key was refused")


def test_an_error_that_is_known_not_to_be_a_records_is_not_counted(embedded: Engines) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    send(embedded, collection, "a", jpeg((10, 60, 90)), content_type="image/jpeg")
    for _ in range(3):
        with pytest.raises(SettingsError):
            EmbedWorker(embedded, collection, collection.index(), RefusedEncoder()).run(threading.Event())
    with closing(group(embedded, collection)) as reader:
        committed = reader.committed(0)
    assert committed is None or Attempts.from_metadata(committed.metadata).attempts == 0


def test_a_life_that_ends_in_order_is_not_counted(embedded: Engines) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    for number in range(2):
        send(embedded, collection, f"p{number}", jpeg((10, 60 * number, 90)), content_type="image/jpeg")
        with running(EmbedWorker(embedded, collection, collection.index(), ColourEncoder()).run):
            eventually(lambda n=number: embedded.log.bounds(collection.index().vectors_topic)[0].next_offset == n + 1)  # type: ignore[misc]
        with closing(group(embedded, collection)) as reader:
            committed = reader.committed(0)
        assert committed is not None and Attempts.from_metadata(committed.metadata).attempts == 0


def test_attempts_are_counted_per_life_and_offset_and_never_move_the_group_back(embedded: Engines) -> None:
    collection = create_collection(embedded, CollectionRequest("pictures", colour_fields(), 1))
    reader = embedded.log.group_reader(collection.source_topic, "lives")
    for life in range(3):
        book = AttemptBook()
        earlier = book.earlier(reader, 0, 7)
        assert earlier.attempts == life and is_careful(earlier, 7) == (life >= 2)
        book.begin(reader, 0, 7)
        book.begin(reader, 0, 7)  # the same life again, after an error of the log
        assert book.earlier(reader, 0, 7) == earlier
    alone = AttemptBook()
    alone.begin_alone(reader, 0, 7, 20)
    assert AttemptBook().earlier(reader, 0, 7) == Attempts(3, 1, 20)
    assert is_careful(AttemptBook().earlier(reader, 0, 12), 12) and not is_careful(AttemptBook().earlier(reader, 0, 20), 20)
    backward = AttemptBook()
    assert backward.earlier(reader, 0, 3) == Attempts(careful_next=20)
    backward.begin(reader, 0, 3)
    assert reader.committed(0).offset == 7  # type: ignore[union-attr]
    alone.forget(reader, 0, 7)
    assert AttemptBook().earlier(reader, 0, 7) == Attempts(3)
    reader.close()


@pytest.mark.parametrize("metadata", ["", "x", "[]", "3", '{"attempts": "many"}', '{"attempts": null}'])
def test_metadata_of_another_form_means_that_nothing_is_known(metadata: str) -> None:
    assert Attempts.from_metadata(CommittedOffset(1, metadata).metadata) == Attempts()


def test_a_walk_takes_no_record_that_retention_took_for_a_gap(embedded: Engines) -> None:
    """It wrote that the log holds nothing there: the partition went on, and nobody was told that a record is lost."""
    collection = make_collection(embedded, "feed", partitions=1)
    produce(embedded, collection, 0, ["first"])
    produce(embedded, collection, 0, ["second"])
    worker = EmbedWorker(embedded, collection, collection.index(), None)
    with closing(group(embedded, collection)) as reader:
        reader.poll(0.0)
        worker._walks.begin(0, 0, 2)
        embedded.log.truncate(collection.source_topic, {0: 1})
        walk = worker._walks.step(reader)
    worker._walks.close()
    worker._pool.close()
    assert walk is not None and not walk.is_done
    source = PartitionSource(embedded, collection, collection.index(), 0)
    assert chain_end(source).chain.expected == 0
    with pytest.raises(DataLossError, match="offsets 0 to 1 were removed by retention"):
        source.check_media_bounds(chain_end(source))
