"""Filters over HTTP: segments and tail alike, in search, scroll and count, as qdrant-client writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from query import filter_index
from tests.query.served import Served, serve
from tests.query.writer import Writer, engines_for_test, unit, writer

ATTRIBUTES = {"colour": "keyword", "size": "integer", "tags": "keyword[]", "when": "datetime", "place": "geo", "about": "text"}


@pytest.fixture(scope="module", params=[0, 4096], ids=["indexed", "scanned"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """One node for all: no test here writes. Its index has room for every attribute, whichever tests came before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filter_index, "INDEX_FROM_ROWS", request.param)
        patch.setattr(filter_index, "MAX_BYTES_PER_ROW", 1 << 20)
        made = writer(engines_for_test(max_limit=50), attributes=ATTRIBUTES)
        _fill(made)
        for served in serve(made):
            served.settle()
            yield served


def _fill(made: Writer) -> None:
    """Four rows in a segment and two in the tail; `gone` is in the segment and deleted by the tail."""
    rome, oslo = {"lat": 41.9, "lon": 12.5}, {"lat": 59.9, "lon": 10.75}
    made.put(
        "a", unit(1, 0, 0, 0), text="A red bicycle", attributes={"colour": "red", "size": 1, "tags": ["x", "y"], "place": rome, "deep": {"n": [1, 2]}}
    )
    made.put("b", unit(1, 1, 0, 0), attributes={"colour": "blue", "size": 2, "tags": [], "when": "2026-11-01T00:00:00Z", "about": "Cats, dogs"})
    made.put("c", unit(0, 1, 0, 0), attributes={"colour": "green", "when": "2026-11-02T00:00:00Z", "place": oslo, "note": "x"})
    made.put("gone", unit(1, 0, 0, 0), attributes={"colour": "red", "size": 1})
    made.commit()
    made.put("d", unit(0, 0, 1, 0), attributes={"colour": "red", "size": 9, "tags": "x", "about": "one cat", "deep": {"n": [2, 3]}})
    made.put("e", unit(0, 0, 0, 1), attributes={"size": -5})
    made.remove("gone")


def where(key: str, **test: Any) -> dict[str, Any]:
    return {"key": key, **test}


RED, BIG = where("colour", match={"value": "red"}), where("size", range={"gt": 1})
CASES: list[tuple[dict[str, Any], str]] = [
    ({"must": [RED]}, "ad"),
    ({"must": RED, "must_not": BIG}, "a"),
    ({"should": [RED, BIG]}, "abd"),
    ({"must_not": [RED]}, "bce"),
    ({"must": [{"should": [{"must": [RED, BIG]}, where("size", match={"value": -5})]}]}, "de"),
    ({"min_should": {"conditions": [RED, BIG, where("tags", match={"value": "x"})], "min_count": 2}}, "ad"),
    ({"must": [where("colour", match={"any": ["blue", "green", "none"]})]}, "bc"),
    ({"must": [where("colour", match={"except": ["red"]})]}, "bc"),
    ({"must": [where("size", range={"gte": -5, "lt": 2})]}, "ae"),
    ({"must": [where("when", range={"gt": "2026-11-01T00:00:00Z", "lte": "2026-11-02T01:00:00+01:00"})]}, "c"),
    ({"must": [where("about", match={"text": "cat"})]}, "d"),
    ({"must": [where("about", match={"text_any": "cat DOGS"})]}, "bd"),
    ({"must": [where("text", match={"text": "bicycle red"})]}, "a"),
    ({"must": [where("event_time", range={"gte": "2020-01-01T00:00:00Z"})]}, "abcde"),
    ({"must": [where("place", geo_radius={"center": {"lat": 41.8, "lon": 12.4}, "radius": 20_000})]}, "a"),
    ({"must": [where("place", geo_bounding_box={"top_left": {"lat": 60, "lon": 10}, "bottom_right": {"lat": 50, "lon": 11}})]}, "c"),
    ({"must": [where("tags", values_count={"gte": 1})]}, "ad"),
    ({"must": [{"is_empty": {"key": "tags"}}]}, "bce"),
    ({"must": [where("colour", is_empty=False)]}, "abcd"),
    ({"must": [{"is_null": {"key": "tags"}}]}, "ce"),
    ({"must": [{"has_id": ["a", "e", "gone", "nobody"]}]}, "ae"),
    ({"must": [where("deep.n", match={"value": 1})]}, "a"),
    ({"must": [where("deep.n[]", range={"gte": 2.5})]}, "d"),
    ({"must": [where("note", match={"value": "x"})]}, "c"),
    ({"must": [], "should": None}, "abcde"),
]


@pytest.mark.parametrize(("raw", "wanted"), CASES)
def test_a_filter_holds_in_search_scroll_and_count(served: Served, raw: dict[str, Any], wanted: str) -> None:
    assert served.ids({"filter": raw}, "scroll") == list(wanted)
    assert sorted(served.ids({"query": [1.0, 0, 0, 0], "filter": raw})) == list(wanted)
    assert served.post("count", {"filter": raw})["result"]["count"] == len(wanted)
    assert served.post("query", {"query": [1.0, 0, 0, 0], "filter": raw})["usage"] == {"searched_rows": len(wanted)} or not wanted


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"must": [where("size", match={"value": "one"})]}, "filter.must[0].match: attribute 'size' (integer): not a whole number of 64 bits"),
        ({"should": [where("colour", range={"gt": 1})]}, "filter.should[0].range: attribute 'colour' (keyword): it has no order"),
        ({"must": [{"has_id": ["x"] * 10_001}]}, "the filter has more than 10000 values in its lists"),
    ],
)
def test_a_wrong_filter_is_refused_on_every_route_with_its_place(served: Served, raw: dict[str, Any], said: str) -> None:
    for path, body in (("scroll", {}), ("count", {}), ("query", {"query": [1.0, 0, 0, 0]}), ("query/batch", None)):
        answer = served.post(path, {"searches": [{"filter": raw}]} if body is None else body | {"filter": raw}, 400)
        assert answer["status"]["error"]["code"] == "invalid_filter" and answer["status"]["error"]["message"] == said
        assert answer["status"]["error"]["hint"]


def test_an_index_is_counted_among_the_bytes_in_memory(served: Served) -> None:
    served.ids({"filter": {"must": [RED]}}, "scroll")
    served.view.observe()
    text = served.client.get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("headwater_index_bytes") and 'tier="filters"' in line]
    assert (float(line.split()[-1]) > 0) == (filter_index.INDEX_FROM_ROWS == 0)
