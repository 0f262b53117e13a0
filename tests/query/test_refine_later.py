"""A node that starts answers as soon as lists and rows are there: with the very same hits as when all refine codes are (docs/adr/0014)."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.memory_store import MemoryStore
from contracts.errors import CorruptError, UnavailableError
from query.collection_view import CollectionSnapshot, CollectionView
from query.filters import parse_filter
from query.found import RowRef
from query.load_pool import LoadPool
from query.partial_file import PartialFile
from query.parts import CodedColumn
from query.search import Effort, VectorSearch, search, search_many
from tests.query.conftest import caught_up, ids_of, wait_until
from tests.query.test_coded import vectors
from tests.query.writer import Writer, engines_for_test, own_field, writer
from vectors.tiers import Allowed, Closest, Tiers

DIMENSION, ROWS, CHUNK_BYTES = 64, 2500, 8192
FIELD_PART = ".field.own"
Start = Callable[[], CollectionView]


class Watched(MemoryStore):
    """Counts what is read of field parts in ranges; may be away, spoil bytes, or hold requests back."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.away = self.spoils = False
        self.gate = threading.Event()
        self.gate.set()

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        if not key.endswith(FIELD_PART):
            return super().blocks(key, block_bytes, start, length)
        self.asked.append((start, length or 0))
        assert self.gate.wait(10)
        if self.away:
            raise UnavailableError("the store is away")
        found = super().blocks(key, block_bytes, start, length)
        return found if found is None or not self.spoils else (bytes(len(block)) for block in found)

    @property
    def asked_bytes(self) -> int:
        return sum(length for _, length in self.asked)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of which even a test's segment has many."""
    for module in ("contracts.footer_file", "query.partial_file", "query.segments"):
        monkeypatch.setattr(f"{module}.CHUNK_BYTES", CHUNK_BYTES)


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nothing is read but what somebody waits for, until this is called."""
    real = PartialFile.fill
    monkeypatch.setattr(PartialFile, "fill", lambda *_: None)
    return lambda: monkeypatch.setattr(PartialFile, "fill", real)


@pytest.fixture
def made(tmp_path: Path) -> Writer:
    """Two coded segments, a few deleted rows, and a tail."""
    engines = engines_for_test(cache_dir=tmp_path)
    object.__setattr__(engines, "store", Watched())
    made = writer(engines, fields=[own_field(dimension=DIMENSION)], attributes={"size": "integer"})
    made.train(vectors(800, 9, DIMENSION), nlist=16)
    for seed in (1, 2):
        found = vectors(ROWS, seed, DIMENSION)
        made.send([made.upsert(f"s{seed}-{at}", found[at], made.next_offset + at, attributes={"size": at}) for at in range(ROWS)])
        made.commit()
    made.remove("s1-17")
    made.put("tail", vectors(1, 5, DIMENSION)[0], attributes={"size": 3})
    return made


@pytest.fixture
def start(made: Writer) -> Iterator[Start]:
    views: list[CollectionView] = []

    def start() -> CollectionView:
        views.append(CollectionView(made.engines, made.record))
        views[-1].start()
        wait_until(lambda: caught_up(views[-1], made))
        return views[-1]

    yield start
    for view in views:
        view.stop()


def store_of(made: Writer) -> Watched:
    store = made.engines.store
    assert isinstance(store, Watched)
    return store


def wanted(made: Writer) -> list[VectorSearch]:
    """Searches of all kinds: by few and many lists, exact, and with filters that few and many rows pass."""
    field, queries = made.index.fields[0], vectors(6, 3, DIMENSION)
    few = parse_filter({"must": [{"key": "size", "range": {"lt": 20}}]}, made.record.attributes)
    many = parse_filter({"must": [{"key": "size", "range": {"lt": 2000}}]}, made.record.attributes)
    found = [VectorSearch(field, query, 10) for query in queries]
    found += [VectorSearch(field, queries[0], limit, effort=Effort(nprobe=16)) for limit in (1, 3, 7, 33)]
    found += [VectorSearch(field, queries[1], 10, chosen=chosen) for chosen in (few, many)]
    return [*found, VectorSearch(field, queries[2], 10, effort=Effort(exact=True))]


def told(snapshot: CollectionSnapshot, found: list[RowRef]) -> list[tuple[str, float | None]]:
    return [(ref.part.id(ref.row), ref.score) for ref in found]


def answers(view: CollectionView, made: Writer) -> list[list[tuple[str, float | None]]]:
    snapshot = view.snapshot()
    return [told(snapshot, list(search(snapshot, each)[0])) for each in wanted(made)]


def pending(view: CollectionView) -> int:
    found = view.state()["pending_bytes"]
    assert isinstance(found, int)
    return found


def absent_id(view: CollectionView) -> str:
    """The id of a row whose refine code is not here."""
    part = view.snapshot().views[0].sealed[0]
    column = part.vectors["own"]
    assert isinstance(column, CodedColumn)
    lease, index = column.coding.spans[0].lease, column.coding.index
    return next(part.id(row) for row in range(part.rows) if part.live[row] and index._absent.missing(np.array([lease.numbers.start + row])))


def test_hits_are_the_same_before_and_after_the_refine_codes_are_there(made: Writer, start: Start, holding: Callable[[], None]) -> None:
    store, view = store_of(made), start()
    sizes = [segment.parts["field.own"].size_bytes for segment in made.read.manifest.segments]
    assert view.state()["coverage"] == 1.0 and pending(view) > sum(sizes) / 2
    assert store.asked_bytes < sum(sizes) / 2, "lists and footers"
    one, before = search(view.snapshot(), wanted(made)[0])[0], pending(view)
    assert 0 < pending(view) < before or len(one) == 10
    early = answers(view, made)
    together = search_many(view.snapshot(), wanted(made)[:6])
    holding()
    view.observe()
    wait_until(lambda: not pending(view))
    assert answers(view, made) == early and len({name for names in early for name, _ in names}) > 20
    assert [[name for name, _ in told(view.snapshot(), list(found))] for found, _ in together] == [[name for name, _ in each] for each in early[:6]]
    assert sum(sizes) == store.asked_bytes, "no byte twice"
    again = start()
    assert answers(again, made) == early and sum(sizes) == store.asked_bytes, "a restart finds the files"


def test_lists_are_put_into_a_tier_some_time_after_the_last_segment_came_whatever_is_missing(
    made: Writer, start: Start, holding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.coding.LOOK_SECONDS", 3600.0)
    view = start()
    (index,) = view._indexes.all().values()
    one = wanted(made)[0]
    early = told(view.snapshot(), list(search(view.snapshot(), one)[0]))
    view._coder.turn()
    assert len(index.tiers.attached) == 2 and pending(view), "a moment after the last one: processors are needed for what searches wait for"
    monkeypatch.setattr("query.coding.LOOK_SECONDS", 0.0)
    view._coder.turn()
    assert not index.is_attached and index.tiers.small.rows >= 2 * ROWS and pending(view)
    assert told(view.snapshot(), list(search(view.snapshot(), one)[0])) == early


def test_loads_stand_still_between_two_chunks_while_a_search_waits_and_a_first_segment_does_not(
    made: Writer, start: Start, holding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stood, let = threading.Event(), threading.Event()

    def give_way(pool: LoadPool) -> None:
        stood.set()
        assert let.wait(10)

    monkeypatch.setattr(LoadPool, "give_way", give_way)
    view = CollectionView(made.engines, made.record)
    starting = threading.Thread(target=view.start)
    starting.start()
    try:
        wait_until(lambda: view.state()["coverage"] == 0.5 and stood.is_set())
        assert {name[:2] for name in ids_of(view.snapshot())} == {"s2"}, "the newest came without standing still"
        let.set()
        wait_until(lambda: view.ready and caught_up(view, made))
    finally:
        let.set()
        starting.join()
        view.stop()


def test_a_search_reads_the_chunks_of_its_candidates_and_no_others(made: Writer, start: Start, holding: Callable[[], None]) -> None:
    store, view = store_of(made), start()
    already = store.asked_bytes
    search(view.snapshot(), VectorSearch(made.index.fields[0], vectors(1, 3, DIMENSION)[0], 1, effort=Effort(nprobe=1)))
    assert 0 < store.asked_bytes - already <= 2 * 50 * CHUNK_BYTES and pending(view)
    asked = store.asked_bytes
    search(view.snapshot(), VectorSearch(made.index.fields[0], vectors(1, 3, DIMENSION)[0], 1, effort=Effort(nprobe=1)))
    assert store.asked_bytes == asked, "they are here"


def test_a_vector_is_shown_and_a_row_patched_before_its_segment_is_there(made: Writer, start: Start, holding: Callable[[], None]) -> None:
    view = start()
    made.send([made.patch("s2-1200", {"attributes": {"size": 77}})])
    wait_until(lambda: caught_up(view, made))
    found = view.snapshot().views[0].find("s2-1200")
    assert found is not None and pending(view)
    part, row = found
    assert part.name == "tail"
    vector = part.vectors["own"].vector(row)
    assert vector is not None and float(vector @ vectors(ROWS, 2, DIMENSION)[1200]) > 0.99
    shown = view.snapshot().views[0].sealed[0].vectors["own"].vector(700)
    assert shown is not None and float(shown @ vectors(ROWS, 1, DIMENSION)[700]) > 0.99


def test_wrong_bytes_are_refused_and_told_and_right_ones_are_served_again(
    made: Writer, start: Start, holding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.partial_file.DAMAGED_SECONDS", 0.0)
    store, view = store_of(made), start()
    store.spoils = True
    with pytest.raises(CorruptError, match="chunk"):
        answers(view, made)
    holding()
    view.observe()
    wait_until(lambda: "chunk" in str(view.state()["errors"]))
    assert pending(view) and view.state()["coverage"] == 1.0
    store.spoils = False
    assert len(answers(view, made)) == 13
    wait_until(lambda: view.observe() or not pending(view))
    assert view.state()["errors"] == {}


def test_where_the_store_goes_away_what_is_there_is_served_and_the_rest_is_an_error_until_it_comes_back(
    made: Writer, start: Start, holding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.partial_file.RETRY_SECONDS", 0.0)
    store, view = store_of(made), start()
    known = wanted(made)[0]
    first = told(view.snapshot(), list(search(view.snapshot(), known)[0]))
    store.away = True
    assert told(view.snapshot(), list(search(view.snapshot(), known)[0])) == first
    with pytest.raises(UnavailableError, match="away"):
        answers(view, made)
    made.send([made.patch(absent_id(view), {"attributes": {"size": 78}})])
    made.put("later", vectors(1, 6, DIMENSION)[0])
    holding()
    view.observe()
    wait_until(lambda: "away" in str(view.state()["errors"]) and "vectors topic" in str(view.state()["errors"]))
    assert "later" not in ids_of(view.snapshot())
    store.away = False
    wait_until(lambda: view.observe() or not pending(view))
    wait_until(lambda: caught_up(view, made))
    assert view.state()["errors"] == {} and "later" in ids_of(view.snapshot())
    assert len(answers(view, made)) == 13


def test_a_part_that_arrives_while_a_search_waits_for_it_answers_it(made: Writer, start: Start, holding: Callable[[], None]) -> None:
    store, view = store_of(made), start()
    store.gate.clear()
    found: list[list[tuple[str, float | None]]] = []
    asking = threading.Thread(target=lambda: found.append(answers(view, made)[0]))
    before = len(store.asked)
    holding()
    view.observe()
    wait_until(lambda: len(store.asked) > before)
    asking.start()
    view.snapshot()  # nobody else waits for the store
    store.gate.set()
    asking.join(10)
    wait_until(lambda: not pending(view))
    assert found == [answers(view, made)[0]]


def test_a_pinned_snapshot_outlives_its_segments_and_what_nobody_needs_leaves_no_file(
    made: Writer, start: Start, holding: Callable[[], None], tmp_path: Path
) -> None:
    view = start()
    pinned = view.snapshot()
    assert len(list(tmp_path.rglob("*.part"))) == 2
    assert made.compact()
    wait_until(lambda: view.snapshot().views[0].loaded.version == made.read.manifest.version)
    assert not pending(view), "what comes to a node that serves all comes whole"
    assert [name for name, _ in told(pinned, list(search(pinned, wanted(made)[0])[0]))] == [name for name, _ in answers(view, made)[0]]
    del pinned
    view._last = None
    view._coder.rebuild("own", next(iter(view._indexes.all().values())), even_if_not_due=True)
    wait_until(lambda: gc.collect() >= 0 and not list(tmp_path.rglob("*.part")))


def test_flat_parts_and_segments_in_which_rows_have_no_vector_come_whole(tmp_path: Path, holding: Callable[[], None]) -> None:
    engines = engines_for_test(cache_dir=tmp_path)
    object.__setattr__(engines, "store", Watched())
    made = writer(engines, fields=[own_field(dimension=DIMENSION)])
    found = vectors(600, 1, DIMENSION)
    made.send([made.upsert(f"flat{at}", found[at], offset=at) for at in range(600)])
    made.commit()
    made.train(found, nlist=8)
    some = [made.upsert(f"some{at}", found[at], offset=600 + at) for at in range(600)]
    made.send([item if at % 3 else replace(item, vectors={}) for at, item in enumerate(some)])
    made.commit()
    view = CollectionView(engines, made.record)
    view.start()
    try:
        wait_until(lambda: caught_up(view, made))
        assert not pending(view)
        store_of(made).away = True
        got = search(view.snapshot(), VectorSearch(made.index.fields[0], found[1], 2))[0]
        assert {name for name, _ in told(view.snapshot(), list(got))} == {"flat1", "some1"}
    finally:
        view.stop()


def test_a_share_of_the_rows_is_searched_with_that_share_of_candidates_and_all_of_them_with_all(
    made: Writer, start: Start, holding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = Tiers.closest

    def closest(tiers: Tiers, queries: np.ndarray, limit: int, candidates: int, nprobe: int, allowed: Allowed) -> Closest:
        asked.append(candidates)
        return real(tiers, queries, limit, candidates, nprobe, allowed)

    monkeypatch.setattr(Tiers, "closest", closest)
    view = start()
    whole = view.snapshot().views[0]
    newest = list(whole.loaded.segments)[-1]
    segments = {newest: whole.loaded.segments[newest]}
    loaded = replace(whole.loaded, segments=segments)
    half = replace(view.snapshot(), views={0: replace(whole, loaded=loaded, sealed=whole.sealed[-1:])}, _numbers={})
    each = VectorSearch(made.index.fields[0], vectors(1, 3, DIMENSION)[0], 10)
    assert half.coverage == 0.5 and {name[:3] for name, _ in told(half, list(search(half, each)[0]))} <= {"s2-", "tai"}
    search(half, each._replace(limit=80))
    search(view.snapshot(), each)
    assert asked == [50, 400, 100]
    early = told(half, list(search(half, each)[0]))
    holding()
    view.observe()
    wait_until(lambda: not pending(view))
    assert [name for name, _ in told(half, list(search(half, each)[0]))][:3] == [name for name, _ in early][:3]
    search(half, each)
    assert asked[-1] == 100, "nothing has to be read for them any more"
