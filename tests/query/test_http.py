"""The HTTP service over memory log and store: shapes, errors, limits, freshness."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from query import freshness
from tests.query.conftest import wait_until
from tests.query.served import ATTRIBUTES, Served, fill, serve
from tests.query.writer import Writer, engines_for_test, own_field, unit, writer


@pytest.fixture
def served() -> Iterator[Served]:
    engines = engines_for_test(max_body_bytes=20_000, max_limit=50)
    yield from serve(writer(engines, attributes=ATTRIBUTES, partitions=2))


@pytest.fixture(scope="module")
def refusing() -> Iterator[Served]:
    """One node for all requests that are refused: they change nothing."""
    for served in serve(writer(engines_for_test(max_body_bytes=20_000, max_limit=50), attributes=ATTRIBUTES, partitions=2)):
        fill(served)
        yield served


def test_a_vector_finds_the_closest_points_of_segments_and_tail_together(served: Served) -> None:
    fill(served)
    answer = served.post("query", {"query": [2.0, 0, 0, 0], "limit": 3, "with_payload": True, "with_lineage": True})
    points = answer["result"]["points"]
    assert [point["id"] for point in points] == ["east", "northeast", "north"]
    assert points[0]["score"] == pytest.approx(1.0) and points[0]["payload"]["text"] == "the east"
    assert points[0]["payload"] | {"colour": "red", "size": 1, "tags": ["a", "b"], "note": "x"} == points[0]["payload"]
    lineage = points[1]["lineage"]
    assert (lineage["topic"], lineage["partition"], lineage["offset"], lineage["segment"]) == (served.made.record.source_topic, 0, 2, None)
    assert answer["status"] == "ok" and answer["usage"] == {"searched_rows": 4}
    topic = served.made.record.source_topic
    assert answer["freshness"] == {"versions": {"0": 2, "1": 1}, "offsets": {f"{topic}/0": 4, f"{topic}/1": 0}, "staleness_ms": 0.0, "coverage": 1.0}


def test_an_id_searches_like_that_point_without_it(served: Served) -> None:
    fill(served)
    assert served.ids({"query": "east", "limit": 2}) == ["northeast", "north"]
    assert served.ids({"query": {"nearest": "northeast"}, "limit": 1}) == ["east"]
    served.made.put("7", unit(0, 0, 1, 0.1))
    served.settle()
    assert served.ids({"query": 7, "limit": 1}) == ["up"]


def test_offset_limit_and_threshold_cut_the_same_list(served: Served) -> None:
    fill(served)
    whole = served.ids({"query": [1.0, 0, 0, 0], "limit": 4})
    assert served.ids({"query": [1.0, 0, 0, 0], "limit": 2, "offset": 1}) == whole[1:3]
    assert served.ids({"query": [1.0, 0, 0, 0], "score_threshold": 0.5}) == whole[:2]


def test_equality_filters_hold_on_declared_and_extra_attributes(served: Served) -> None:
    fill(served)

    def matching(**wanted: Any) -> list[str]:
        must = [{"key": key, "match": {"value": value}} for key, value in wanted.items()]
        found = served.ids({"filter": {"must": must}}, "scroll")
        assert served.post("count", {"filter": {"must": must}})["result"]["count"] == len(found)
        assert sorted(served.ids({"query": [1.0, 0, 0, 0], "filter": {"must": must}})) == sorted(found)
        return found

    assert matching(colour="red") == ["east", "north"]
    assert matching(colour="red", size=1) == ["east"]
    assert matching(tags="b") == ["east", "northeast"]
    assert matching(when="2026-11-01T01:00:00+01:00") == ["up"]
    assert matching(note="x") == ["east", "north"]
    assert matching(deep=True) == ["northeast"] and matching(deep=1) == ["up"]
    assert matching(absent="x") == []


@pytest.mark.parametrize(
    "bad",
    [
        {"shuld": []},
        {"must": [{"key": "colour", "range": {"gte": 1}}]},
        {"must": [{"key": "size", "match": {"prefix": "1"}}]},
        {"must": [{"key": "when", "range": {"gte": "yesterday"}}]},
        {"must": [{"key": "size", "match": {"value": 1}}] * 257},
        {"must": [{"key": "size", "match": {"value": "one"}}]},
        {"must": [{"key": "size", "match": {"value": None}}]},
        {"must": "size"},
        [],
    ],
)
def test_a_filter_of_another_form_is_refused_and_never_ignored(refusing: Served, bad: Any) -> None:
    error = refusing.post("scroll", {"filter": bad}, 400)["status"]["error"]
    assert error["code"] == "invalid_filter" and error["message"] and error["hint"]


def test_scroll_pages_hold_every_live_row_exactly_once_and_count_agrees(served: Served) -> None:
    made, other = served.made, Writer(served.made.engines, served.made.record, partition=1)
    for number in range(30):
        made.put(f"a{number}")
        other.put(f"b{number}")
        if number == 10:
            made.commit()
    made.send([made.upsert(f"row{item}", item=item) for item in range(5)])
    made.remove("a3")
    made.put("a4")
    served.settle()
    wait_until(lambda: served.view.snapshot().views[1].expected == other.next_offset)
    seen: list[str] = []
    offset: str | None = None
    for _ in range(100):
        page = served.post("scroll", {"limit": 7, "offset": offset})["result"]
        seen += [point["id"] for point in page["points"]]
        offset = page["next_page_offset"]
        if offset is None:
            break
    wanted = {f"a{n}" for n in range(30) if n != 3} | {f"b{n}" for n in range(30)} | {f"row{n}" for n in range(5)}
    assert len(seen) == len(set(seen)) and set(seen) == wanted
    assert served.post("count", {"exact": True})["result"] == {"count": len(wanted)}


def test_a_scan_over_several_pages_reads_the_snapshot_of_its_first(served: Served) -> None:
    for number in range(6):
        served.made.put(f"a{number}")
    served.settle()
    first = served.post("scroll", {"limit": 3})["result"]
    served.made.put("a0")  # moves to the end of the media log: without a pin the scan would meet it again
    served.made.remove("a5")
    served.settle()
    second = served.post("scroll", {"limit": 50, "offset": first["next_page_offset"]})
    assert [point["id"] for point in first["points"] + second["result"]["points"]] == [f"a{n}" for n in range(6)]
    assert second["freshness"]["offsets"] != served.post("count", {})["freshness"]["offsets"]
    elsewhere = served.post("scroll", {"limit": 50, "offset": "0123456789abcdef:0/0/0"})["result"]["points"]
    assert [point["id"] for point in elsewhere] == ["a1", "a2", "a3", "a4", "a0"]  # a pin of another node: the newest snapshot


@pytest.mark.parametrize(
    "hostile",
    ["t/0/5/0", "a/media", "x/lineage", "<img src=x onerror=alert(1)>", "ä\u2028\"'\\", "a b?c#d%2F&e=f", "..%2f..", "\U0001f600" * 20, "a\nb/c\r\n"],
)
def test_hostile_ids_come_back_as_they_are(served: Served, hostile: str) -> None:
    served.made.put(hostile, text="words")
    served.made.put("other", unit(0, 1, 0, 0))
    served.settle()
    path = f"/collections/things/points/{quote(hostile, safe='')}"
    found = served.client.get(path).json()
    assert found["result"]["id"] == hostile and found["result"]["vector"] == {"own": [1.0, 0.0, 0.0, 0.0]}
    assert served.client.get(path + "/lineage").json()["result"]["offset"] == 0
    assert served.ids({"query": hostile}) == ["other"]
    assert served.ids({}, "scroll") == [hostile, "other"]


def test_an_id_with_plain_slashes_works_too(served: Served) -> None:
    served.made.put("topic/0/5/0")
    served.settle()
    assert served.client.get("/collections/things/points/topic/0/5/0").json()["result"]["id"] == "topic/0/5/0"
    assert served.client.get("/collections/things/points/topic/0/5/0/lineage").json()["result"]["item"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("query", {"query": [1.0, 0, 0]}, 400, "invalid_vector"),
        ("query", {"query": [0.0, 0, 0, 0]}, 400, "invalid_vector"),
        ("query", {"query": [1e39, 0, 0, 0]}, 400, "invalid_vector"),
        ("query", {"query": {"text": "dog"}}, 400, "vectors_only"),
        ("query", {"query": {"image": "?"}}, 400, "invalid_query"),
        ("query", {"query": {"colour": "red"}}, 400, "invalid_query"),
        ("query", {"query": True}, 400, "invalid_query"),
        ("query", {"query": "nobody"}, 404, "point_not_found"),
        ("query", {"query": [1, 0, 0, 0], "using": "nothing"}, 404, "field_not_found"),
        ("query", {"query": [1, 0, 0, 0], "limit": 51}, 400, "limit_too_large"),
        ("query", {"query": [1, 0, 0, 0], "limit": 0}, 400, "invalid_request"),
        ("query", {"query": [1, 0, 0, 0], "limit": "3"}, 400, "invalid_request"),
        ("query", {"query": [1, 0, 0, 0], "prefetch": []}, 400, "invalid_request"),
        ("scroll", {"offset": "nowhere"}, 400, "invalid_offset"),
        ("count", {"consistency": {"min_offsets": {"other/0": 1}}}, 400, "invalid_offsets"),
        ("count", {"consistency": {"min_offsets": {"9": 1}}}, 400, "invalid_offsets"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why_with_a_stable_code(refusing: Served, path: str, body: Any, status: int, code: str) -> None:
    answer = refusing.post(path, body, status)
    assert answer["status"]["error"]["code"] == code
    assert answer["status"]["error"]["message"] and answer["status"]["error"]["hint"] and answer["result"] is None


def test_errors_of_routes_and_names_have_the_same_shape(refusing: Served) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "route_not_found"),
        ("DELETE", "/livez", 405, "method_not_allowed"),
        ("GET", "/collections/unknown", 404, "collection_not_found"),
        ("POST", "/collections/unknown/points/count", 404, "collection_not_found"),
        ("POST", "/collections/unknown/points/query", 404, "collection_not_found"),
        ("POST", f"/collections/{'x' * 201}/points/query", 400, "invalid_request"),
        ("POST", "/collections/unknown/points/query/batch", 404, "collection_not_found"),
        ("PUT", "/collections/unknown/points/query", 405, "method_not_allowed"),
        ("GET", "/collections/things/points/nobody", 404, "point_not_found"),
        ("GET", "/collections/things/points/%FF", 400, "invalid_id"),
        ("GET", "/collections/things/points/x/thumbnail?size=big", 400, "invalid_request"),
    ):
        answer = refusing.client.request(method, path)
        assert (answer.status_code, answer.json()["status"]["error"]["code"]) == (status, code), path


@pytest.mark.parametrize("text", ["{", '{"limit": NaN}', '{"a": 1, "a": 2}', "[" * 300 + "]" * 300, '"x"', "\xff"])
def test_a_body_that_is_no_sound_json_object_is_refused(refusing: Served, text: str) -> None:
    answer = refusing.client.post("/collections/things/points/query", content=text.encode("latin-1"))
    assert answer.status_code == 400
    assert answer.json()["status"]["error"]["code"] in ("invalid_json", "invalid_request")


def test_a_body_beyond_the_limit_is_refused_by_its_length_and_while_it_streams(refusing: Served) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    for content in (b" " * 20_001, stream()):
        answer = refusing.client.post("/collections/things/points/query", content=content)
        assert answer.status_code == 413
        assert answer.json()["status"]["error"]["code"] == "body_too_large"


def test_min_offsets_waits_for_what_was_just_produced(served: Served) -> None:
    def late() -> None:
        time.sleep(0.1)
        served.made.put("awaited")

    thread = threading.Thread(target=late)
    thread.start()
    for key in (f"{served.made.record.source_topic}/0", "0"):
        answer = served.post("count", {"consistency": {"min_offsets": {key: 1}}})
        assert answer["result"]["count"] == 1
    thread.join()


def test_what_cannot_be_reached_in_time_is_503_with_its_code(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness.fresh_snapshot, "__defaults__", (0.05,))
    answer = served.client.post("/collections/things/points/count", json={"consistency": {"min_offsets": {"0": 99}}})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json()["status"]["error"]["code"] == "not_fresh_enough"
    served.made.engines.log.producer().send(served.made.record.source_topic, partition=0, key=b"k", value=b"v").result()
    served.view.observe()
    time.sleep(0.02)
    assert served.post("count", {"consistency": {"max_staleness_ms": 1}}, 503)["status"]["error"]["code"] == "not_fresh_enough"
    assert served.post("count", {"consistency": {"max_staleness_ms": 60_000}})["freshness"]["staleness_ms"] > 1


def test_a_batch_of_queries_sees_one_snapshot(served: Served) -> None:
    fill(served)
    answer = served.post("query/batch", {"searches": [{"query": "east", "limit": 1}, {"limit": 2}]})
    assert [[point["id"] for point in found["points"]] for found in answer["result"]] == [["northeast"], ["east", "north"]]
    alone = {"searches": [{"limit": 1, "consistency": {"min_offsets": {"0": 1}}}]}
    assert served.post("query/batch", alone, 400)["status"]["error"]["code"] == "invalid_request"


def test_media_and_thumbnails_come_from_the_log_and_only_if_they_are_what_was_indexed(served: Served) -> None:
    import hashlib
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (640, 320), "teal").save(sink, "JPEG")
    data, made = sink.getvalue(), served.made
    producer = made.engines.log.producer()
    for key in (b"good", b"bad"):
        producer.send(made.record.source_topic, partition=0, key=key, value=data, headers=[("content-type", b"image/jpeg")]).result()
    made.put("good", media_type="image/jpeg", media_sha256=hashlib.sha256(data).digest())
    made.put("bad", media_type="image/jpeg", media_sha256=hashlib.sha256(b"other").digest())
    served.settle()
    media = served.client.get("/collections/things/points/good/media")
    assert media.content == data and media.headers["content-type"] == "image/jpeg"
    assert "sandbox" in media.headers["content-security-policy"] and media.headers["x-content-type-options"] == "nosniff"
    for _ in range(2):
        small = served.client.get("/collections/things/points/good/thumbnail?size=100")
        assert Image.open(io.BytesIO(small.content)).size == (100, 50)
    assert served.client.get("/collections/things/points/bad/media").json()["status"]["error"]["code"] == "media_not_found"
    assert served.client.get("/collections/things/points/good/thumbnail?size=0").status_code == 400


def test_expired_rows_are_filtered_everywhere() -> None:
    for served in serve(writer(engines_for_test(), attributes=ATTRIBUTES, retention_seconds=3600)):
        now_us = int(served.made.engines.clock.now_seconds() * 1e6)
        served.made.put("old", event_time_us=now_us - 3601 * 1_000_000)
        served.made.commit()
        served.made.put("older", event_time_us=now_us - 7200 * 1_000_000)
        served.made.put("young", event_time_us=now_us - 60 * 1_000_000)
        served.settle()
        assert served.ids({}, "scroll") == served.ids({"query": [1.0, 0, 0, 0]}) == ["young"]
        assert served.post("count", {})["result"]["count"] == 1
        assert served.client.get("/collections/things/points/old").status_code == 404


def test_euclid_and_missing_vectors_follow_qdrants_convention() -> None:
    fields = [own_field("place", "euclid"), own_field("other", "dot", 2, "float16")]
    for served in serve(writer(engines_for_test(), fields=fields)):
        made = served.made
        made.put("near", vectors={"place": np.array([1, 1, 0, 0], np.float32), "other": np.array([2, 0], np.float16)})
        made.put("far", vectors={"place": np.array([4, 5, 0, 0], np.float32)})
        made.commit()
        made.put("tail", vectors={"other": np.array([3, 0], np.float16)})
        served.settle()
        points = served.post("query", {"query": [1.0, 1, 0, 0], "using": "place"})["result"]["points"]
        assert [(point["id"], point["score"]) for point in points] == [("near", 0.0), ("far", 5.0)]
        assert served.ids({"query": [1.0, 0], "using": "other"}) == ["tail", "near"]
        assert served.ids({"query": [1.0, 1, 0, 0], "using": "place", "score_threshold": 1}) == ["near"]
        assert served.post("query", {"query": "tail", "using": "place"}, 400)["status"]["error"]["code"] == "no_vector"
        shown = served.post("scroll", {"with_vector": True, "with_payload": False})["result"]["points"]
        assert [sorted(point["vector"]) for point in shown] == [["other", "place"], ["place"], ["other"]] and "payload" not in shown[0]
