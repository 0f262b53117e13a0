"""A collection whose rows are coded: the switch from vectors to codes, batches, effort, and what a row shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from query.collection_view import CollectionSnapshot, CollectionView
from query.filters import parse_filter
from query.parts import CodedColumn
from query.search import Effort, Found, VectorSearch, search, search_many
from tests.query.conftest import caught_up, wait_until
from tests.query.served import serve
from tests.query.writer import Writer, engines_for_test, own_field, unit, writer
from vectors.quantizer import Quantizer

DIMENSION = 16
Open = Callable[[Writer], CollectionView]


def vectors(rows: int, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """Unit vectors around 40 centres that are the same for all seeds."""
    random, centres = np.random.default_rng(seed), np.random.default_rng(77).standard_normal((40, dimension))
    found = (centres[random.integers(0, 40, rows)] + 0.5 * random.standard_normal((rows, dimension))).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def coded() -> Writer:
    return writer(engines_for_test(), fields=[own_field(dimension=DIMENSION)], attributes={"size": "integer"})


def send(made: Writer, rows: int, seed: int, prefix: str) -> None:
    found = vectors(rows, seed)
    made.send([made.upsert(f"{prefix}{at}", found[at], offset=made.next_offset + at, attributes={"size": at}) for at in range(rows)])


def is_coded(view: CollectionView) -> bool:
    return view.ready and not view.snapshot().numbers("own").flat


def ids(found: Found) -> list[str]:
    return [ref.part.value(ref.row, "id") for ref in found[0]]


def exact(snapshot: CollectionSnapshot, query: np.ndarray, limit: int, quantizer: Quantizer | None = None) -> list[str]:
    """The closest rows of all that are shown, by the vectors that are shown, or by what a quantizer's refine codes make of them."""
    names, rows = zip(*shown(snapshot), strict=True)
    matrix = np.stack(rows)
    if quantizer is not None:
        matrix = quantizer.decode(quantizer.encode(matrix).refine)
    return [names[at] for at in np.argsort(-(matrix @ query), kind="stable")[:limit]]


def shown(snapshot: CollectionSnapshot) -> Iterator[tuple[str, np.ndarray]]:
    for _, part in snapshot.parts:
        for row in np.flatnonzero(part.live):
            vector = part.vectors["own"].vector(int(row))
            assert vector is not None
            yield part.value(int(row), "id"), vector


def test_flat_segments_and_the_tail_are_found_by_codes_once_a_generation_is_there(coded: Writer, open_view: Open) -> None:
    view = open_view(coded)
    send(coded, 300, 1, "a")
    coded.commit()
    send(coded, 40, 2, "b")
    wait_until(lambda: caught_up(view, coded) and view.snapshot().views[0].loaded.version == 2)
    before = view.snapshot()
    assert len(before.numbers("own").flat) == 2
    coded.train(vectors(400, 9), nlist=8)
    wait_until(lambda: is_coded(view))
    after, field = view.snapshot(), coded.index.fields[0]
    assert isinstance(after.views[0].sealed[0].vectors["own"], CodedColumn)
    for query in vectors(20, 3):
        everything = VectorSearch(field, query, 40, effort=Effort(nprobe=8))
        assert ids(search(after, everything)) == exact(after, query, 40, coded.quantizers["own"])
        assert ids(search(before, everything)) == exact(before, query, 40)  # a pinned snapshot still compares vectors
    send(coded, 25, 4, "c")
    coded.commit()
    wait_until(lambda: view.snapshot().views[0].loaded.version == coded.read.manifest.version)
    assert is_coded(view) and len(list(shown(view.snapshot()))) == 365


def test_a_batch_gives_the_answers_of_single_queries_also_of_mixed_ones(coded: Writer, open_view: Open) -> None:
    coded.train(vectors(400, 9), nlist=8)
    for seed in range(4):
        send(coded, 100, seed, f"s{seed}-")
        coded.commit()
    send(coded, 60, 7, "tail")
    view = open_view(coded)
    wait_until(lambda: caught_up(view, coded) and is_coded(view))
    snapshot, field = view.snapshot(), coded.index.fields[0]
    wanted = [VectorSearch(field, query, 10, effort=Effort(nprobe=3)) for query in vectors(30, 3)]
    wanted += [VectorSearch(field, query, 5, offset=at, effort=Effort(nprobe=8)) for at, query in enumerate(vectors(5, 4))]
    wanted += [VectorSearch(field, query, 7, effort=Effort(exact=True)) for query in vectors(5, 5)]
    wanted.append(VectorSearch(field, wanted[0].vector, 10, without=search(snapshot, wanted[0])[0][0], effort=Effort(nprobe=3)))
    together = search_many(snapshot, wanted)
    for alone, found in zip((search(snapshot, each) for each in wanted), together, strict=True):
        assert ids(alone) == ids(found) and alone[1] == found[1]
        np.testing.assert_allclose([ref.score for ref in alone[0]], [ref.score for ref in found[0]], rtol=1e-6)
    assert ids(together[-1])[:9] == ids(together[0])[1:]


def test_more_effort_finds_more_and_exact_finds_all(coded: Writer, open_view: Open) -> None:
    coded.train(vectors(600, 9), nlist=32)
    send(coded, 3000, 1, "a")
    coded.commit()
    view = open_view(coded)
    wait_until(lambda: is_coded(view))
    snapshot, field, queries = view.snapshot(), coded.index.fields[0], vectors(20, 3)
    truth = [exact(snapshot, query, 10) for query in queries]

    def recall(effort: Effort) -> float:
        found = search_many(snapshot, [VectorSearch(field, query, 10, effort=effort) for query in queries])
        return float(np.mean([len(set(ids(one)) & set(other)) / 10 for one, other in zip(found, truth, strict=True)]))

    assert recall(Effort(exact=True)) == 1.0
    assert recall(Effort(nprobe=1)) < recall(Effort(target_recall=0.95)) < recall(Effort(target_recall=1.0)) + 1e-9
    assert recall(Effort(target_recall=0.95)) >= 0.9


def test_the_recall_that_is_told_is_what_segments_measured_and_1_for_flat_rows(coded: Writer, open_view: Open) -> None:
    send(coded, 400, 1, "a")
    coded.commit()
    view = open_view(coded)
    wait_until(lambda: caught_up(view, coded) and view.snapshot().views[0].loaded.version == 2)
    assert view.snapshot().numbers("own").recall(0.95) == 1.0
    coded.train(vectors(600, 9), nlist=32)
    wait_until(lambda: is_coded(view))
    assert view.snapshot().numbers("own").recall(0.95) is None, "coded here, by nobody who measured"


def smooth(rows: int, seed: int, dimension: int) -> np.ndarray:
    """Unit vectors that lie on a surface of six dimensions: codes follow it closely, so that what is missed is missed by the lists."""
    turned = np.random.default_rng(5).standard_normal((6, dimension))
    found = np.tanh(np.random.default_rng(seed).standard_normal((rows, 6)) @ turned / 2).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_recall_holds_whatever_share_of_the_rows_a_filter_passes(open_view: Open) -> None:
    """Few rows are all compared; many are looked for in more lists, the fewer of them pass."""
    wide, rows, nlist = 64, 12_000, 96
    made = writer(engines_for_test(), fields=[own_field(dimension=wide)], attributes={"size": "integer"})
    made.train(smooth(4000, 9, wide), nlist=nlist)
    matrix, queries = smooth(rows, 1, wide), smooth(100, 3, wide)
    made.send([made.upsert(f"a{at}", matrix[at], offset=at, attributes={"size": at}) for at in range(rows)])
    made.commit()
    view = open_view(made)
    wait_until(lambda: is_coded(view))
    snapshot, field = view.snapshot(), made.index.fields[0]
    nprobe = snapshot.numbers("own").coded[0].nprobe(0.95)
    recalls: dict[float, float] = {}
    lists: dict[float, float] = {}
    for share in (0.002, 0.02, 0.1, 0.2, 0.4, 0.7, 1.0):
        passing = int(share * rows)
        chosen = parse_filter({"must": [{"key": "size", "range": {"lt": passing}}]}, made.record.attributes)
        found = search_many(snapshot, [VectorSearch(field, query, 10, chosen=chosen) for query in queries])
        truth = [{f"a{at}" for at in np.argsort(-each)[:10]} for each in queries @ matrix[:passing].T]
        recalls[share] = float(np.mean([len(set(ids(one)) & best) / 10 for one, best in zip(found, truth, strict=True)]))
        lists[share] = found[0][1] * nlist / rows
    assert min(recalls.values()) >= 0.93, (recalls, lists, nprobe)
    assert lists[0.002] * rows / nlist == 24, "so few are all compared"
    assert lists[1.0] == nprobe < lists[0.7] < lists[0.4] < nlist, (lists, "more of them where fewer rows pass")
    fixed = search(snapshot, VectorSearch(field, queries[0], 10, chosen=chosen, effort=Effort(nprobe=2)))
    assert fixed[1] == rows * 2 // nlist, "who names a number of lists gets that number"


def test_a_filter_that_leaves_nothing_out_looks_once_also_where_rows_were_deleted(coded: Writer, open_view: Open) -> None:
    coded.train(vectors(400, 9), nlist=32)
    send(coded, 600, 1, "a")
    coded.commit()
    for at in range(0, 600, 10):
        coded.remove(f"a{at}")
    view = open_view(coded)
    wait_until(lambda: caught_up(view, coded) and is_coded(view))
    snapshot, field, query = view.snapshot(), coded.index.fields[0], vectors(1, 3)[0]

    def lists(least: int) -> float:
        chosen = parse_filter({"must": [{"key": "size", "range": {"gte": least}}]}, coded.record.attributes)
        return search(snapshot, VectorSearch(field, query, 5, chosen=chosen))[1] * 32 / 600

    alone = search(snapshot, VectorSearch(field, query, 5))[1] * 32 / 600
    assert alone <= lists(0) < 2 * alone <= lists(200), "a tenth of the rows is gone, so a few more lists; a filter that leaves rows out looks twice"


def test_the_http_api_takes_effort_filters_and_batches_of_coded_rows() -> None:
    for served in serve(writer(engines_for_test(), fields=[own_field(dimension=DIMENSION)], attributes={"size": "integer"})):
        made = served.made
        made.train(vectors(400, 9), nlist=8)
        send(made, 200, 1, "a")
        made.commit()
        send(made, 50, 2, "t")
        served.settle()
        wait_until(lambda view=served.view: is_coded(view))
        query = vectors(1, 3)[0]
        body = {"query": query.tolist(), "params": {"exact": True}}
        points = served.post("query", body)["result"]["points"]
        assert [point["id"] for point in points] == exact(served.view.snapshot(), query, 10, made.quantizers["own"])
        assert served.post("query", body)["usage"] == {"searched_rows": 250}
        probed = served.post("query", {"query": query.tolist(), "params": {"nprobe": 1}})["usage"]["searched_rows"]
        assert 0 < probed < 250
        must = {"must": [{"key": "size", "match": {"value": 7}}]}
        assert sorted(served.ids({"query": query.tolist(), "filter": must})) == ["a7", "t7"]
        batch = {"searches": [body, {"query": query.tolist(), "filter": must}, {"limit": 1}, {"query": "a3", "limit": 2, "params": {"exact": True}}]}
        found = [[point["id"] for point in one["points"]] for one in served.post("query/batch", batch)["result"]]
        assert found[0] == [point["id"] for point in points] and sorted(found[1]) == ["a7", "t7"] and found[2] == ["a0"]
        assert "a3" not in found[3] and len(found[3]) == 2
        stored = vectors(200, 1)[5]
        vector = served.client.get("/collections/things/points/a5").json()["result"]["vector"]["own"]
        np.testing.assert_allclose(vector, stored, atol=0.02)
        for bad in ({"target_recall": 0}, {"target_recall": 1.5}, {"nprobe": 0}, {"nprobe": 1.5}, {"exact": 1}, {"breadth": 3}):
            assert served.post("query", {"query": query.tolist(), "params": bad}, 400)["status"]["error"]["code"] == "invalid_request"


def test_rows_without_a_vector_and_rows_of_other_fields_are_coded_apart(open_view: Open) -> None:
    fields = [own_field("own", "euclid", DIMENSION), own_field("other", "dot", DIMENSION)]
    made = writer(engines_for_test(), fields=fields)
    made.train(3 * vectors(400, 9), nlist=8)
    plain, scaled = vectors(100, 1), 3 * vectors(100, 2)
    for start in (0, 50):
        items = []
        for at in range(start, start + 50):
            chosen = {"own": scaled[at]} if at % 3 == 0 else {"other": plain[at]} if at % 3 == 1 else {"own": scaled[at], "other": plain[at]}
            items.append(made.upsert(f"r{at}", offset=made.next_offset + at - start, vectors=chosen))
        made.send(items)
        if not start:
            made.commit()
    view = open_view(made)
    wait_until(lambda: caught_up(view, made) and is_coded(view))
    snapshot = view.snapshot()
    for effort in (Effort(nprobe=8), Effort(exact=True)):
        found = search(snapshot, VectorSearch(fields[0], scaled[3], 100, effort=effort))
        assert sorted(ids(found)) == sorted(f"r{at}" for at in range(100) if at % 3 != 1)
        assert ids(found)[0] == "r3" and found[0][0].score == pytest.approx(0, abs=0.1)
        scores = [ref.score for ref in found[0]]
        assert scores == sorted(scores)
    assert len(search(snapshot, VectorSearch(fields[1], plain[1], 100))[0]) == sum(at % 3 != 0 for at in range(100))
    held = snapshot.views[0].find("r1")
    assert held is not None and held[0].vectors["own"].vector(held[1]) is None


def test_while_rows_are_coded_sealed_updated_and_deleted_every_answer_is_whole(coded: Writer, open_view: Open) -> None:
    view = open_view(coded)
    send(coded, 150, 0, "keep")
    wait_until(lambda: caught_up(view, coded))
    field, problems, stop = coded.index.fields[0], [], threading.Event()

    def scan() -> None:
        query = unit(*np.random.default_rng(5).standard_normal(DIMENSION))
        while not stop.is_set():
            found = ids(search(view.snapshot(), VectorSearch(field, query, 1000, effort=Effort(nprobe=8))))
            if len(found) != len(set(found)):
                problems.append("a row twice")
            if len({each for each in found if each.startswith("keep")}) != 150:
                problems.append("a row is missing")

    scanners = [threading.Thread(target=scan) for _ in range(2)]
    for scanner in scanners:
        scanner.start()
    try:
        for turn in range(12):
            send(coded, 30, turn, "keep")  # the same ids again, with other vectors
            send(coded, 20, turn, f"new{turn}-")
            coded.remove(f"new{turn}-3")
            if turn == 3:
                coded.train(vectors(400, 9), nlist=8)
            coded.writes_codes = turn % 2 == 0
            coded.commit()
            if turn % 5 == 4:
                coded.compact()
            wait_until(lambda: caught_up(view, coded))
        wait_until(lambda: view.snapshot().views[0].loaded.version == coded.read.manifest.version)
        wait_until(lambda: is_coded(view))
    finally:
        stop.set()
        for scanner in scanners:
            scanner.join()
    assert problems == []
