"""What is waited for comes first, and what nobody waits for when nothing else is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from query.load_pool import ASKED, FIRST, LAST, LoadPool
from tests.query.conftest import wait_until


class Works:
    """Work that says that it began, and ends when it is let."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def __call__(self, name: str) -> None:
        self.begun.append(name)
        assert self.gates.setdefault(name, threading.Event()).wait(10)

    def end(self, name: str) -> None:
        self.gates.setdefault(name, threading.Event()).set()


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def pool(works: Works) -> Iterator[LoadPool]:
    made = LoadPool(2)
    yield made
    made.close()
    for name in list(works.gates):
        works.end(name)


def submit(pool: LoadPool, works: Works, rank: int, *names: str) -> None:
    for name in names:
        works.gates.setdefault(name, threading.Event())
        pool.submit(rank, lambda name=name: works(name))


def test_what_a_search_waits_for_does_not_wait_for_threads_that_are_at_other_work(pool: LoadPool, works: Works) -> None:
    submit(pool, works, 1, "a", "b", "c")
    wait_until(lambda: works.begun == ["a", "b"])
    submit(pool, works, ASKED, "asked")
    wait_until(lambda: works.begun == ["a", "b", "asked"])
    works.end("a")
    wait_until(lambda: pool._others == 1)
    assert works.begun == ["a", "b", "asked"], "nothing else is begun beside it"
    works.end("asked")
    wait_until(lambda: works.begun[3:] == ["c"])


def test_what_nobody_waits_for_begins_when_nothing_else_is_under_way(pool: LoadPool, works: Works) -> None:
    submit(pool, works, 1, "a")
    submit(pool, works, LAST, "last")
    submit(pool, works, 2, "b")
    wait_until(lambda: works.begun == ["a", "b"])
    works.end("a")
    wait_until(lambda: pool._others == 1)
    assert works.begun == ["a", "b"]
    works.end("b")
    wait_until(lambda: works.begun == ["a", "b", "last"])
    submit(pool, works, FIRST, "first")
    wait_until(lambda: works.begun[3:] == ["first"])


def test_behind_first_work_nothing_is_begun_until_a_search_has_what_it_asked_for_or_a_moment_has_passed(
    pool: LoadPool, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.load_pool.FIRST_SEARCH_SECONDS", 3600.0)
    submit(pool, works, FIRST, "first")
    wait_until(lambda: works.begun == ["first"])
    submit(pool, works, 1, "behind")
    works.end("first")
    wait_until(lambda: not pool._first)
    submit(pool, works, ASKED, "asked")
    wait_until(lambda: works.begun == ["first", "asked"])
    works.end("asked")
    wait_until(lambda: works.begun[2:] == ["behind"])
    works.end("behind")
    monkeypatch.setattr("query.load_pool.FIRST_SEARCH_SECONDS", 0.05)
    submit(pool, works, FIRST, "again")
    wait_until(lambda: works.begun[3:] == ["again"])
    works.end("again")
    submit(pool, works, 1, "later")
    wait_until(lambda: works.begun[3:] == ["again", "later"])


def test_who_waits_for_first_work_waits_also_for_what_is_queued_and_for_no_other_and_not_for_ever(pool: LoadPool, works: Works) -> None:
    submit(pool, works, 1, "other")
    wait_until(lambda: works.begun == ["other"])
    submit(pool, works, FIRST, "a", "b")
    wait_until(lambda: works.begun == ["other", "a"])
    pool.await_first(0.01)
    assert works.begun == ["other", "a"], "time was over"
    waited = threading.Event()
    waiting = threading.Thread(target=lambda: (pool.await_first(10), waited.set()))
    waiting.start()
    works.end("a")
    wait_until(lambda: works.begun == ["other", "a", "b"])
    assert not waited.is_set()
    works.end("b")
    assert waited.wait(5)
    waiting.join()


def test_a_closed_pool_cancels(pool: LoadPool, works: Works) -> None:
    submit(pool, works, 1, "a", "b")
    wait_until(lambda: len(works.begun) == 2)
    waits = pool.submit(LAST, lambda: works("never"))
    pool.close()
    assert waits.cancelled() and pool.submit(FIRST, lambda: works("never")).cancelled()
    assert "never" not in works.begun


def test_a_thread_is_always_left_for_what_other_work_waits_for(works: Works) -> None:
    pool = LoadPool(1)
    submit(pool, works, ASKED, "one", "two")  # both threads are there now
    wait_until(lambda: sorted(works.begun) == ["one", "two"])
    submit(pool, works, 1, "a", "b")
    submit(pool, works, LAST, "last")
    works.end("one")
    works.end("two")
    wait_until(lambda: works.begun[2:] == ["a"])
    submit(pool, works, ASKED, "three")
    wait_until(lambda: works.begun[2:] == ["a", "three"])
    gave_way = threading.Event()
    waiting = threading.Thread(target=lambda: (pool.give_way(), gave_way.set()))
    waiting.start()
    for name in ("a", "b", "last"):
        works.end(name)
    assert not gave_way.is_set()
    works.end("three")
    wait_until(lambda: works.begun[2:] == ["a", "three", "b", "last"])
    waiting.join(10)
    assert gave_way.is_set()
    pool.close()
