"""Promises of the client about errors: whatever a service answers becomes one class of the tree; nothing hangs, nothing is guessed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from contracts.errors import CorruptError, HeadwaterError, NotFoundError, SettingsError, SnapshotError, UnavailableError
from headwater import HeadwaterClient
from headwater.client import Freshness


class Canned(BaseHTTPRequestHandler):
    """Answers every request with the server's next canned answer: what a proxy, or a service of another version, may say."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        status, body = self.server.answers.pop(0)  # type: ignore[attr-defined]
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, request))  # type: ignore[attr-defined]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:  # keep the tests' output clean
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    server.answers, server.requests = [], []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client(server: ThreadingHTTPServer) -> Iterator[HeadwaterClient]:
    with HeadwaterClient(f"http://127.0.0.1:{server.server_port}/", timeout_seconds=5) as client:
        yield client


def error(code: str) -> dict[str, Any]:
    return {"status": {"error": {"code": code, "message": "what happened", "hint": "what to do"}}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (404, error("collection_not_found"), NotFoundError, "collection_not_found"),
        (400, error("invalid_request"), SettingsError, "invalid_request"),
        (422, error("bad_filter"), SettingsError, "bad_filter"),
        (413, b"<html>too large</html>", SettingsError, "invalid_request"),
        (409, error("stale_snapshot"), SnapshotError, "stale_snapshot"),
        (500, error("corrupt"), CorruptError, "corrupt"),
        (500, {"status": "down"}, HeadwaterError, "internal"),
        (502, b"Bad Gateway", UnavailableError, "unavailable"),
        (503, error("not_ready"), UnavailableError, "not_ready"),
        (429, error("overloaded"), UnavailableError, "overloaded"),
        (200, b"<html>a captive portal</html>", UnavailableError, "unavailable"),
        (200, {"hello": "world"}, UnavailableError, "unavailable"),
    ],
)
def test_an_answer_becomes_the_error_of_what_the_caller_does_next(
    server: ThreadingHTTPServer, client: HeadwaterClient, status: int, body: Any, kind: type[HeadwaterError], code: str
) -> None:
    server.answers.append((status, body))  # type: ignore[attr-defined]
    with pytest.raises(kind) as caught:
        client.count("photos")
    assert type(caught.value) is kind
    assert caught.value.error_code == code
    if isinstance(body, dict) and isinstance(body.get("status"), dict):
        assert (caught.value.message, caught.value.hint) == ("what happened", "what to do")


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with HeadwaterClient("http://127.0.0.1:9") as client:
        with pytest.raises(UnavailableError, match="does not answer"):
            client.count("photos")
        assert not client.ready()


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="not the URL"):
        HeadwaterClient(url)


@pytest.mark.parametrize("arguments", [{}, {"text": "a", "vector": [1.0]}, {"item_id": "a", "image": b"x"}, {"vector": [1.0], "item_id": "a"}])
def test_a_search_for_nothing_or_for_two_things_is_refused_before_it_is_sent(client: HeadwaterClient, arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="exactly one|a text and/or an image"):
        client.search("photos", **arguments)


def test_a_query_is_sent_in_qdrants_shape(server: ThreadingHTTPServer, client: HeadwaterClient) -> None:
    answer = {
        "result": {"points": [{"id": "a/b", "score": 0.5}]},
        "status": "ok",
        "time": 0.01,
        "freshness": {"offsets": {"0": 7}, "versions": {"0": 2}},
    }
    server.answers += [(200, answer)] * 3  # type: ignore[attr-defined]
    found = client.search("my photos", text="a dog", image=b"\xff", using="fused", limit=5, min_offsets={0: 7}, filter={"must": []})
    client.search("photos", item_id="a/b")
    client.search("photos", vector=[1, 2])
    (path, body), (_, by_id), (_, by_vector) = server.requests  # type: ignore[attr-defined]
    assert path == "/collections/my%20photos/points/query"
    assert body == {
        "query": {"text": "a dog", "image": "/w=="},
        "using": "fused",
        "limit": 5,
        "with_payload": True,
        "filter": {"must": []},
        "consistency": {"min_offsets": {"0": 7}},
    }
    assert (by_id["query"], by_vector["query"]) == ("a/b", [1.0, 2.0])
    assert (found.hits[0].id, found.hits[0].score, found.service_seconds) == ("a/b", 0.5, 0.01)
    assert found.freshness.reached({0: 7})
    assert not found.freshness.reached({0: 8})
    assert not found.freshness.reached({1: 1})


def test_scrolling_follows_the_pages_to_the_end(server: ThreadingHTTPServer, client: HeadwaterClient) -> None:
    pages = [{"points": [{"id": "a"}, {"id": "b"}], "next_page_offset": "b"}, {"points": [{"id": "c"}], "next_page_offset": None}]
    server.answers += [(200, {"result": page}) for page in pages]  # type: ignore[attr-defined]
    assert [hit.id for hit in client.scroll("photos", page_size=2)] == ["a", "b", "c"]
    assert [body.get("offset") for _, body in server.requests] == [None, "b"]  # type: ignore[attr-defined]


def test_waiting_ends_when_the_offsets_are_reached_and_gives_up_in_time(server: ThreadingHTTPServer, client: HeadwaterClient) -> None:
    def at(offset: int) -> tuple[int, Any]:
        return 200, {"result": {"count": 0}, "freshness": {"offsets": {"0": offset, "1": 5}}}

    server.answers += [(404, error("collection_not_found")), at(3), at(9)]  # type: ignore[attr-defined]
    assert client.wait_for("photos", {0: 9, 1: 5}).offsets == {0: 9, 1: 5}
    server.answers += [at(3)] * 50  # type: ignore[attr-defined]
    with pytest.raises(UnavailableError, match="6 records of 'photos' are not searchable"):
        client.wait_for("photos", {0: 9}, timeout_seconds=0.2)


def test_offsets_are_read_by_partition_with_or_without_their_topic() -> None:
    assert Freshness.of({"offsets": {"media/3": 7, "1": 2}}).offsets == {3: 7, 1: 2}
