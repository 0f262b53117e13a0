"""Expiry: from `event_time + retention` on an item is gone from every answer, by one reading of the clock."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from contracts.clock import ManualClock
from contracts.engines import Engines
from embedding.decode_pool import DecodePool
from query.parts import NEVER_US
from query.pipeline import Pipeline
from tests.query.served import ATTRIBUTES, Served, serve
from tests.query.writer import engines_for_test, unit, writer

RETENTION_SECONDS = 3600


class CountingClock(ManualClock):
    """A manual clock that goes on by itself at each reading of the wall clock, once told to."""

    step_seconds = 0.0

    def now_seconds(self) -> float:
        self._now += self.step_seconds
        return self._now


@pytest.fixture
def clock() -> CountingClock:
    return CountingClock()


@pytest.fixture
def served(clock: CountingClock) -> Iterator[Served]:
    made = engines_for_test()
    engines = Engines(made.settings, made.log, made.store, clock=clock)
    yield from serve(writer(engines, attributes=ATTRIBUTES, retention_seconds=RETENTION_SECONDS))


def seen(served: Served) -> list[str]:
    """Ids that are there, which every kind of answer must agree on."""
    ids = sorted(served.ids({"limit": 50}, "scroll"))
    assert sorted(served.ids({"query": [1.0, 0, 0, 0], "limit": 50})) == ids == sorted(served.ids({"limit": 50}))
    assert served.post("count", {})["result"]["count"] == len(ids)
    batch = served.post("query/batch", {"searches": [{"query": [1.0, 0, 0, 0], "limit": 50}]})
    assert sorted(point["id"] for point in batch["result"][0]["points"]) == ids
    by_colour = {"must": [{"key": "colour", "match": {"value": "red"}}]}
    assert sorted(served.ids({"filter": by_colour, "limit": 50}, "scroll")) == ids
    for item_id in ("sealed", "tail", "newer", "patched"):
        for action in ("", "/lineage"):
            assert (served.client.get(f"/collections/things/points/{item_id}{action}").status_code == 200) == (item_id in ids)
        if item_id not in ids:
            assert served.client.get(f"/collections/things/points/{item_id}/media").json()["status"]["error"]["code"] == "point_not_found"
            assert served.post("query", {"query": item_id}, 404)["status"]["error"]["code"] == "point_not_found"
    return ids


def test_an_item_is_gone_from_the_moment_that_its_time_is_over_in_segments_and_tail_alike(served: Served, clock: CountingClock) -> None:
    now_us, made, red = int(clock.now_seconds() * 1e6), served.made, {"colour": "red"}
    made.put("sealed", event_time_us=now_us - 10_000_000, attributes=red)
    made.put("patched", event_time_us=now_us - 5_000_000)
    made.commit()
    made.put("tail", event_time_us=now_us - 10_000_000, attributes=red)
    made.put("newer", event_time_us=now_us - 9_999_999, attributes=red)
    made.send([made.patch("patched", red, produced_at_us=now_us)])
    served.settle()
    assert seen(served) == ["newer", "patched", "sealed", "tail"]
    clock.advance(RETENTION_SECONDS - 10 - 1)
    assert seen(served) == ["newer", "patched", "sealed", "tail"]
    clock.advance(1)  # event_time + retention == now
    assert seen(served) == ["newer", "patched"]
    clock.advance(1)
    assert seen(served) == ["patched"]
    clock.advance(4)  # a patch does not make an item younger
    assert seen(served) == []


def test_one_reading_of_the_clock_holds_for_the_whole_query(served: Served, clock: CountingClock) -> None:
    made = served.made
    for n in range(3):
        made.put(f"s{n}")
        made.commit()
        made.put(f"t{n}")
    served.settle()
    clock.advance(RETENTION_SECONDS - 1)
    snapshot = served.view.snapshot()
    before = snapshot.expired_before_us
    clock.step_seconds = 2.0  # a second reading inside the query would find some of the rows expired
    try:
        with DecodePool(made.engines.settings) as decoding:
            answer = Pipeline(made.engines, decoding).query(snapshot, _everything())
    finally:
        clock.step_seconds = 0.0
    assert len(answer.result["points"]) == 6 and snapshot.expired_before_us == before
    clock.advance(2)
    assert served.ids({}, "scroll") == []


def _everything():  # type: ignore[no-untyped-def]
    from query.http_models import QueryRequest

    return QueryRequest(query=[1.0, 0, 0, 0], limit=50)


def test_rows_without_an_event_time_never_expire_and_one_row_is_judged_like_all(served: Served, clock: CountingClock) -> None:
    for n in range(5):
        served.made.put(f"n{n}", unit(1, n, 0, 0), event_time_us=None if n == 2 else n)
    served.made.remove("n4")
    served.settle()
    assert served.ids({}, "scroll") == ["n2"]
    (part,) = [part for _, part in served.view.snapshot().parts if part.rows]
    for before in (None, 0, 1, 3, NEVER_US - 1):
        assert [part.is_eligible(row, before) for row in range(part.rows)] == part.eligible(before).tolist()
    assert np.count_nonzero(part.eligible(NEVER_US - 1)) == 1
