"""A node that starts answers from what it has and says how much that is; what does not fit is told and never silently left out."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends.memory_store import MemoryStore
from contracts.errors import UnavailableError
from contracts.store import StoredObject
from query import collection_view
from query.collection_view import CollectionView
from tests.query.conftest import caught_up, ids_of, wait_until
from tests.query.served import serve
from tests.query.writer import Writer, engines_for_test, own_field, writer

DIMENSION = 64
ROWS = 50


class Gated(MemoryStore):
    """A store whose reads of segments wait at a gate; `let` opens it for some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(10**6)
        self.asked: list[str] = []

    def close_gate(self) -> None:
        self.gate = threading.Semaphore(0)

    def let(self, reads: int) -> None:
        self.gate.release(reads)

    def get(self, key: str) -> StoredObject | None:
        if "/b0" in key and not key.endswith("deletes"):
            self.asked.append(key)
            assert self.gate.acquire(timeout=10)
        return super().get(key)


@pytest.fixture
def gated(tmp_path: Path) -> Writer:
    engines = engines_for_test(cache_dir=tmp_path, load_threads=1)
    object.__setattr__(engines, "store", Gated())
    return filled(writer(engines, fields=[own_field(dimension=DIMENSION)]))


def filled(made: Writer) -> Writer:
    for segment in range(3):
        vectors = np.random.default_rng(segment).standard_normal((ROWS, DIMENSION)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made.send([made.upsert(f"s{segment}-{at}", vectors[at], offset=made.next_offset + at) for at in range(ROWS)])
        made.commit()
    made.put("tail", vectors[0])
    return made


@pytest.fixture
def opened() -> object:
    views: list[CollectionView] = []

    def start(made: Writer) -> CollectionView:
        views.append(CollectionView(made.engines, made.record))
        views[-1].start()
        return views[-1]

    yield start
    for view in views:
        view.stop()


Start = Callable[[Writer], CollectionView]


def test_the_newest_segment_answers_first_and_coverage_says_what_is_missing(gated: Writer, opened: Start) -> None:
    store = gated.engines.store
    assert isinstance(store, Gated)
    store.close_gate()
    view = opened(gated)
    store.let(2)  # both parts of one segment
    wait_until(lambda: view.state()["coverage"] == pytest.approx(1 / 3))
    snapshot = view.snapshot()
    assert ids_of(snapshot) == sorted(f"s2-{at}" for at in range(ROWS))
    assert view.freshness(snapshot)["coverage"] == pytest.approx(1 / 3)
    assert not view.ready and snapshot.expected == {0: 3 * ROWS}
    store.let(4)
    wait_until(lambda: view.ready and caught_up(view, gated))
    assert len(ids_of(view.snapshot())) == 3 * ROWS + 1 and view.state()["coverage"] == 1.0
    assert len(ids_of(snapshot)) == ROWS


def test_segments_are_loaded_while_identities_are_checked_and_nothing_is_served_before(
    gated: Writer, opened: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, checking, checked = gated.engines.store, threading.Event(), threading.Event()
    assert isinstance(store, Gated)

    def check(*_: object) -> None:
        checking.set()
        assert checked.wait(10)

    monkeypatch.setattr("query.collection_view.check_identity", check)
    view = CollectionView(gated.engines, gated.record)
    starting = threading.Thread(target=view.start)
    starting.start()
    try:
        assert checking.wait(5)
        wait_until(lambda: len(store.asked) >= 2)
        with pytest.raises(UnavailableError, match="being loaded"):
            view.snapshot()
        assert view.state()["coverage"] == 0
        checked.set()
        wait_until(lambda: view.ready and caught_up(view, gated))
    finally:
        checked.set()
        starting.join()
        view.stop()


def test_where_identities_do_not_match_what_was_loaded_goes_and_nothing_more_is_loaded_until_they_do(
    gated: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, wrong = gated.engines.store, collection_view.check_identity, [True]
    assert isinstance(store, Gated)

    def check(*about: object) -> None:
        if wrong[0]:
            wait_until(lambda: len(store.asked) == 6 or not wrong[0])
            raise UnavailableError("another cluster", code="identity_mismatch")
        real(*about)  # type: ignore[arg-type]

    monkeypatch.setattr("query.collection_view.check_identity", check)
    view = CollectionView(gated.engines, gated.record)
    try:
        view.start()
        with pytest.raises(UnavailableError, match="another cluster"):
            view.snapshot()
        gc.collect()
        wait_until(lambda: view._node.memory.used_bytes == 0)
        view.start()
        assert len(store.asked) == 6 and not view.ready
        wrong[0] = False
        view.start()
        wait_until(lambda: view.ready and caught_up(view, gated))
        assert len(ids_of(view.snapshot())) == 3 * ROWS + 1 and len(store.asked) == 6, "the files were there"
    finally:
        view.stop()


def test_a_segment_is_downloaded_once_for_all_starts(gated: Writer, opened: Start) -> None:
    store = gated.engines.store
    assert isinstance(store, Gated)
    for _ in range(2):
        view = opened(gated)
        wait_until(lambda view=view: view.ready)
    assert len(store.asked) == len(set(store.asked)) == 6


def test_several_partitions_get_their_newest_segment_before_any_gets_its_second(tmp_path: Path, opened: Start) -> None:
    engines = engines_for_test(cache_dir=tmp_path, load_threads=1)
    object.__setattr__(engines, "store", Gated())
    made = filled(writer(engines, fields=[own_field(dimension=DIMENSION)], partitions=2))
    filled(Writer(engines, made.record, partition=1))
    store = engines.store
    assert isinstance(store, Gated)
    store.close_gate()
    view = opened(made)
    wait_until(lambda: len(view._node.pool._queue) == 5)  # one is being read
    store.let(4)
    wait_until(lambda: view.state()["coverage"] == pytest.approx(1 / 3))
    assert {partition: len(pinned.sealed) for partition, pinned in view.snapshot().views.items()} == {0: 1, 1: 1}
    store.let(8)
    wait_until(lambda: view.ready)


def test_what_does_not_fit_into_memory_is_told_everywhere_and_the_tail_stays_fresh(tmp_path: Path) -> None:
    one = ROWS * (64 + 4 * DIMENSION)
    engines = engines_for_test(cache_dir=tmp_path, memory_bytes=2 * one + 4096)
    made = filled(writer(engines, fields=[own_field(dimension=DIMENSION)]))
    view = CollectionView(engines, made.record)
    view.start()
    try:
        wait_until(lambda: view.state()["coverage"] and view.snapshot().expected == {0: 3 * ROWS + 1})
        assert view.state()["coverage"] == pytest.approx(2 / 3) and not view.ready
        assert "needs 16000 bytes of memory" in str(view.state()["errors"])
        assert ids_of(view.snapshot()) == sorted([f"s{segment}-{at}" for segment in (1, 2) for at in range(ROWS)] + ["tail"])
    finally:
        view.stop()


def test_a_node_that_runs_keeps_its_whole_answers_where_a_new_segment_does_not_fit(tmp_path: Path) -> None:
    one = ROWS * (64 + 4 * DIMENSION)
    engines = engines_for_test(cache_dir=tmp_path, memory_bytes=3 * one + 64)
    made = filled(writer(engines, fields=[own_field(dimension=DIMENSION)]))
    view = CollectionView(engines, made.record)
    view.start()
    try:
        wait_until(lambda: view.ready and caught_up(view, made))
        made.commit()
        wait_until(lambda: "memory" in str(view.state()["errors"]))
        assert len(ids_of(view.snapshot())) == 3 * ROWS + 1
        assert view.state()["coverage"] == 1.0
        made.compact()  # fewer segments, but both must be there for a moment: it stays as it is
        assert len(ids_of(view.snapshot())) == 3 * ROWS + 1
    finally:
        view.stop()


def test_a_tail_that_outgrows_memory_is_not_read_on_until_a_manifest_cuts_it(tmp_path: Path) -> None:
    engines = engines_for_test(cache_dir=tmp_path, memory_bytes=100_000)
    made = writer(engines, fields=[own_field(dimension=DIMENSION)])
    view = CollectionView(engines, made.record)
    view.start()
    try:
        wait_until(lambda: view.ready)
        memory = view._node.memory
        memory.set_growing("another", 200_000)
        time_to_notice = 0.3
        threading.Event().wait(time_to_notice)
        made.put("late", np.ones(DIMENSION, np.float32) / 8)
        threading.Event().wait(time_to_notice)
        assert view.snapshot().expected == {0: 0}
        memory.set_growing("another", 0)
        wait_until(lambda: caught_up(view, made))
    finally:
        view.stop()


def test_readyz_says_loading_with_numbers_until_all_is_there(gated: Writer) -> None:
    store = gated.engines.store
    assert isinstance(store, Gated)
    for served in serve(gated):
        answer = served.client.get("/readyz")
        assert answer.status_code == 200 and answer.json()["collections"]["things"] == {
            "ready": True,
            "coverage": 1.0,
            "pending_bytes": 0,
            "errors": {},
        }
        again = CollectionView(gated.engines, gated.record)
        assert again.state() == {"ready": False, "coverage": 0.0, "pending_bytes": 0, "errors": {}}
