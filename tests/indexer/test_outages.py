"""A broker that does not answer for a moment: workers begin again, nothing read is lost, nothing counts as in flight for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from backends.memory_log import MemoryLog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import CorruptError, UnavailableError
from indexer import build_worker, role
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from indexer.publish import Publisher
from indexer.role import run_collections
from indexer.slices import DecodedSlice, FetchedSlice
from tests.indexer.conftest import eventually, make_collection, produce, running
from tests.indexer.stored import read_partition


class Flaky:
    """A worker whose first lives end before its loop; later ones work until they are stopped."""

    def __init__(self, lives: list[str], name: str, errors: Sequence[BaseException]) -> None:
        self._lives, self._name, self._errors = lives, name, errors

    def run(self, stop: threading.Event) -> None:
        life = self._lives.count(self._name)
        self._lives.append(self._name)
        if life < len(self._errors):
            raise self._errors[life]
        stop.wait(20)


def test_a_worker_that_finds_no_broker_at_its_start_begins_again_and_the_others_go_on(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role, "RESTART_SECONDS", 0.01)
    for name in ("away", "fine"):
        make_collection(engines, name)
    away = [UnavailableError("describing topic x: NodeNotReadyError")] * 2
    lives: list[str] = []
    with running(lambda stop: run_collections(engines, None, stop, lambda c: Flaky(lives, c.name, away if c.name == "away" else ()), stage="embed")):
        eventually(lambda: lives.count("away") == 3)
    assert lives.count("fine") == 1


def test_what_trying_again_cannot_mend_ends_the_role(engines: Engines) -> None:
    make_collection(engines, "broken")
    stop = threading.Event()
    with pytest.raises(CorruptError, match="damaged"):
        run_collections(engines, None, stop, lambda c: Flaky([], c.name, [CorruptError("damaged")]), stage="embed")


class _NoProducers(MemoryLog):
    """Opens no more producers while `is_away`."""

    is_away = False

    def producer(self, *, linger_seconds: float = 0.0) -> Any:
        if self.is_away:
            raise UnavailableError("opening a producer: no broker")
        return super().producer(linger_seconds=linger_seconds)


def test_records_that_arrive_while_a_builder_finds_no_new_producer_are_built(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_worker, "RETRY_SECONDS", 0.01)
    log = _NoProducers(engines.settings.log_url.removeprefix("memory://"))
    collection = make_collection(engines, "feed", partitions=1)
    worker = BuildWorker(replace(engines, log=log), collection, collection.index())
    with running(EmbedWorker(engines, collection, collection.index(), None).run, worker.run):
        produce(engines, collection, 0, ["a"])
        eventually(lambda: set(read_partition(engines, collection, 0).live) == {"a"})
        log.is_away = True
        worker._renew_producer.set()  # as after a notice that was not stored
        end = engines.log.bounds(collection.index().vectors_topic)[0].next_offset
        produce(engines, collection, 0, ["b"])
        eventually(lambda: engines.log.bounds(collection.index().vectors_topic)[0].next_offset > end)
        time.sleep(0.3)  # some turns of the worker: none of them may take the record and then fail
        log.is_away = False
        eventually(lambda: set(read_partition(engines, collection, 0).live) == {"a", "b"})


def test_a_batch_that_could_not_be_sent_is_not_in_flight(engines: Engines, collection: CollectionRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(engines, collection, collection.index(), lambda error: None)
    empty = DecodedSlice(FetchedSlice(0, 0, 0, 1, []), [], [])

    def refuse(*arguments: object, **options: object) -> None:
        raise UnavailableError("describing topic: no broker")

    with monkeypatch.context() as patched:
        patched.setattr(publisher.producer, "send", refuse)
        for _ in range(3):
            with pytest.raises(UnavailableError):
                publisher.publish(empty)
    assert publisher._in_flight_bytes == 0
    publisher.publish(empty)
    publisher.close()
