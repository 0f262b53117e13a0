"""A collection view on memory log and memory store, and ways to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from contracts.engines import Engines
from query.collection_view import CollectionSnapshot, CollectionView
from tests.query.writer import Writer, engines_for_test, writer


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def ids_of(snapshot: CollectionSnapshot) -> list[str]:
    """Ids of all live rows, with repeats, sorted."""
    found: list[str] = []
    for _, part in snapshot.parts:
        for batch, start in zip(part.batches, part.starts, strict=True):
            ids = batch.column("id").to_pylist()
            found += [ids[at] for at in range(batch.num_rows) if part.live[start + at]]
    return sorted(found)


def caught_up(view: CollectionView, made: Writer) -> bool:
    if not view.ready:
        return False
    return view.snapshot().views[made.partition].expected >= made.next_offset


@pytest.fixture
def engines() -> Engines:
    return engines_for_test()


@pytest.fixture
def made(engines: Engines) -> Writer:
    return writer(engines, attributes={"colour": "keyword", "size": "integer", "tags": "keyword[]"})


@pytest.fixture
def open_view(engines: Engines) -> Iterator[Callable[[Writer], CollectionView]]:
    opened: list[CollectionView] = []

    def start(made: Writer) -> CollectionView:
        view = CollectionView(made.engines, made.record)
        opened.append(view)
        view.start()
        wait_until(lambda: view.ready)
        return view

    yield start
    for view in opened:
        view.stop()
