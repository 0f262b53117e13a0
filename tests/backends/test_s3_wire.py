"""What the S3 store really sends, and what it makes of every answer: a scripted server on a plain socket.

These guard the use of minio-py's private request builder: an upgrade that changes it fails here, loudly.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from backends.payloads import PayloadReader
from backends.s3_store import MAX_ATTEMPTS, S3Store
from contracts.errors import RecordError, SettingsError, UnavailableError
from contracts.media_item import MediaItem, MediaPart, RecordLimits
from contracts.metrics import Metrics
from contracts.payload_ref import PayloadRef
from contracts.store import BucketObject, PutOutcome

EMPTY_LISTING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def answer(status: int, body: bytes = b"", content_type: str = "application/xml", announced: int | None = None, extra: str = "") -> bytes:
    length = len(body) if announced is None else announced
    head = f'HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nETag: "tag"\r\nConnection: close\r\n{extra}\r\n'
    return head.encode() + body


def error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """Answers each request with the next line of its script; b"" closes the connection without an answer."""

    port: int
    script: list[bytes] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def open_store(self, metrics: Metrics | None = None) -> S3Store:
        self.script.insert(0, answer(200, EMPTY_LISTING))  # the store asks for its bucket when it is opened
        store = S3Store(f"127.0.0.1:{self.port}", "bucket", "key", "secret-canary", metrics=metrics)
        self.requests.clear()
        return store


def read_request(connection: socket.socket) -> Request | None:
    reader = connection.makefile("rb")
    first = reader.readline().decode().split(" ")
    if len(first) < 3:
        return None
    headers = {}
    while (line := reader.readline().decode().strip()) != "":
        name, value = line.split(":", 1)
        headers[name.lower()] = value.strip()
    return Request(first[0], first[1], headers, reader.read(int(headers.get("content-length", "0"))))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    scripted = ScriptedServer(listener.getsockname()[1])

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = read_request(connection)
                if request is not None:
                    scripted.requests.append(request)
                    connection.sendall(scripted.script.pop(0) if scripted.script else error(500, "ScriptIsOver"))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def stop() -> None:
        if listener.fileno() >= 0:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(timeout=5)

    scripted.stop = stop
    yield scripted
    stop()


def test_the_condition_is_on_the_wire_and_signed(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script += [answer(200), answer(200), answer(200)]
    assert store.put_if_absent("a/key.json", b"body") is PutOutcome.CREATED
    assert store.compare_and_swap("a/key.json", b"body2", None) is PutOutcome.CREATED
    assert store.compare_and_swap("a/key.json", b"body3", "abc") is PutOutcome.CREATED
    store.close()
    assert [(request.method, request.path, request.body) for request in server.requests] == [
        ("PUT", "/bucket/a/key.json", b"body"),
        ("PUT", "/bucket/a/key.json", b"body2"),
        ("PUT", "/bucket/a/key.json", b"body3"),
    ]
    assert [request.headers.get("if-none-match") for request in server.requests] == ["*", "*", None]
    assert [request.headers.get("if-match") for request in server.requests] == [None, None, '"abc"']
    assert "if-none-match" in server.requests[0].headers["authorization"].split("SignedHeaders=")[1].split(",")[0]
    assert not any(name.startswith("x-amz-meta") for request in server.requests for name in request.headers)


PUT_ANSWERS = [
    (answer(200), PutOutcome.CREATED),
    (error(412, "PreconditionFailed"), PutOutcome.EXISTS),
    (answer(412), PutOutcome.EXISTS),
    (error(409, "ConditionalRequestConflict"), PutOutcome.CONFLICT),
    (answer(409), PutOutcome.CONFLICT),
    (answer(409, b"busy", "text/plain"), PutOutcome.CONFLICT),
    (error(503, "SlowDown"), PutOutcome.UNKNOWN),
    (error(499, "ClientDisconnected"), PutOutcome.UNKNOWN),
    (answer(503), PutOutcome.UNKNOWN),
    (answer(500, b"<broken", "application/xml"), PutOutcome.UNKNOWN),
    (answer(504, b"<html>", "text/html"), PutOutcome.UNKNOWN),
    (b"", PutOutcome.UNKNOWN),  # the connection closes: stored or not, nobody knows
    (b"HTTP/1.1 200 OK\r\nContent-Le", PutOutcome.UNKNOWN),
    (b"garbage\r\n\r\n", PutOutcome.UNKNOWN),
]


@pytest.mark.parametrize(("reply", "outcome"), PUT_ANSWERS)
def test_every_answer_to_a_put_has_its_outcome_after_exactly_one_request(server: ScriptedServer, reply: bytes, outcome: PutOutcome) -> None:
    store = server.open_store()
    server.script += [reply, answer(200), answer(200)]  # a repeated put would be told that it created the object
    assert store.put_if_absent("manifest/1.json", b"{}") is outcome
    store.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize("reply", [error(404, "NoSuchKey"), answer(404), error(412, "PreconditionFailed")])
def test_a_swap_whose_object_is_missing_has_failed_its_condition(server: ScriptedServer, reply: bytes) -> None:
    store = server.open_store()
    server.script.append(reply)
    assert store.compare_and_swap("boundary", b"1", "tag") is PutOutcome.EXISTS
    store.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        error(403, "AccessDenied"),
        error(403, "SignatureDoesNotMatch"),
        error(404, "NoSuchBucket"),
        error(400, "InvalidArgument"),
        error(501, "NotImplemented"),
        answer(307, extra="Location: http://127.0.0.1:1/elsewhere\r\n"),
    ],
)
def test_a_definite_refusal_of_a_put_is_an_error_with_a_hint_after_one_request(server: ScriptedServer, reply: bytes) -> None:
    store = server.open_store()
    server.script += [reply, answer(200)]
    with pytest.raises(SettingsError) as refused:
        store.put_if_absent("k", b"v")
    store.close()
    assert refused.value.hint
    assert "canary" not in str(refused.value)
    assert len(server.requests) == 1


def test_reads_are_repeated_over_errors_resets_and_short_bodies_and_counted(server: ScriptedServer) -> None:
    metrics = Metrics()
    store = server.open_store(metrics)
    server.script += [error(503, "SlowDown"), b"", answer(200, b"short", announced=100), answer(200, b"whole body")]
    found = store.get("k")
    store.close()
    assert found is not None
    assert (found.data, found.etag) == (b"whole body", "tag")
    assert len(server.requests) == 4
    assert metrics.registry.get_sample_value("headwater_store_requests_total", {"op": "get", "outcome": "retried"}) == 3.0


def test_blocks_go_on_behind_the_last_byte_that_came_where_a_transfer_breaks_off(server: ScriptedServer) -> None:
    store = server.open_store()
    cut, rest = answer(200, b"01234", announced=10), answer(206, b"56789")
    server.script += [error(503, "SlowDown"), cut, error(503, "SlowDown"), answer(200, b"0123456789"), rest]
    blocks = store.blocks("k", 3)
    assert blocks is not None
    assert list(blocks) == [b"012", b"34", b"567", b"89"]
    store.close()
    assert [request.headers.get("range") for request in server.requests] == [None, None, "bytes=5-", "bytes=5-", "bytes=5-"]


def test_a_transfer_that_breaks_off_again_and_again_is_unavailable(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script += [answer(200, b"0", announced=100), *[answer(206, b"", announced=99)] * 20]
    blocks = store.blocks("k", 10)
    assert blocks is not None
    with pytest.raises(UnavailableError, match="8 attempts"):
        list(blocks)
    store.close()


@pytest.mark.parametrize("call", [lambda store: store.get("k"), lambda store: store.get_range("k", 0, 1), lambda store: store.delete("k")])
def test_a_missing_bucket_is_not_taken_for_a_missing_object(server: ScriptedServer, call: Callable[[S3Store], object]) -> None:
    store = server.open_store()
    server.script.append(error(404, "NoSuchBucket"))
    with pytest.raises(SettingsError) as refused:
        call(store)
    store.close()
    assert "bucket" in refused.value.hint


def test_a_range_from_a_store_that_sends_everything_is_still_the_range(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script.append(answer(200, b"0123456789"))
    assert store.get_range("k", 3, 4) == b"3456"
    store.close()
    assert server.requests[0].headers["range"] == "bytes=3-6"


def tagged(body: bytes, of: bytes) -> bytes:
    """A 200 with `body` under the entity tag of other bytes."""
    tag = hashlib.md5(of, usedforsecurity=False).hexdigest()
    return answer(200, body).replace(b'ETag: "tag"', f'ETag: "{tag}"'.encode())


def test_bytes_that_were_spoilt_on_their_way_are_read_again_and_what_is_stored_is_believed(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script += [tagged(b"spoilt", b"stored"), tagged(b"s\x00ored", b"stored"), tagged(b"stored", b"stored")]
    found = store.get("k")
    assert found is not None and found.data == b"stored" and len(server.requests) == 3
    server.script += [tagged(b"under a key", b"other tag")] * 3 + [tagged(b"under a key", b"a third")]
    for _ in range(2):  # tags of encrypted objects are no MD5: the same bytes three times show it, and nothing is read twice from then on
        found = store.get("k")
        assert found is not None and found.data == b"under a key"
    assert len(server.requests) == 7
    store.close()


def test_bytes_that_come_otherwise_each_time_are_not_believed(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script += [tagged(b"%d" % number, b"stored") for number in range(MAX_ATTEMPTS)]
    with pytest.raises(UnavailableError, match="other bytes each time"):
        store.get("k")
    store.close()


def test_a_listing_that_is_cut_short_under_a_length_that_fits_is_asked_for_again(server: ScriptedServer) -> None:
    store = server.open_store()
    listing = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
    server.script += [answer(200, listing[:50]), answer(200, listing)]
    assert list(store.list("p/")) == []
    store.close()
    assert len(server.requests) == 2


def test_a_listing_whose_second_page_fails_goes_on_behind_the_last_key(server: ScriptedServer) -> None:
    def page(keys: list[str], more: bool) -> bytes:
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>" for key in keys
        )
        tail = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>" if more else "<IsTruncated>false</IsTruncated>"
        return answer(200, f"<ListBucketResult><Name>bucket</Name>{rows}{tail}</ListBucketResult>".encode())

    store = server.open_store()
    server.script += [page(["p/a", "p/b"], more=True), error(503, "SlowDown"), b"", page(["p/c"], more=False)]
    assert [info.key for info in store.list("p/")] == ["p/a", "p/b", "p/c"]
    store.close()
    assert "start-after=p%2Fb" in server.requests[-1].path


def test_no_request_is_sent_for_a_key_that_leaves_the_bucket(server: ScriptedServer) -> None:
    store = server.open_store()
    for key in ("../x", "a//b", "a\x00b", "%2e%2e/x"):
        with pytest.raises(SettingsError):
            store.put_if_absent(key, b"")
    store.close()
    assert server.requests == []


def test_a_web_server_that_is_no_store_is_refused_at_opening(server: ScriptedServer) -> None:
    server.script.append(answer(200, b"<html>hello</html>", "text/html"))
    with pytest.raises(SettingsError):
        S3Store(f"127.0.0.1:{server.port}", "bucket", "key", "secret")


@pytest.mark.slow
def test_a_store_that_is_not_there_is_unavailable_within_twelve_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UnavailableError) as unavailable:
        S3Store(f"127.0.0.1:{port}", "bucket", "key", "secret")
    assert time.monotonic() - began < 12
    assert "make stack" in unavailable.value.hint


def test_a_put_that_never_reached_the_store_is_unavailable_not_unknown(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.s3_store.RETRY_BUDGET_SECONDS", 0.5)
    store = server.open_store()
    server.stop()
    with pytest.raises(UnavailableError):
        store.put_if_absent("k", b"v")
    store.close()
    assert server.requests == []


def test_a_listing_that_is_none_however_often_it_is_asked_for_is_refused(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.s3_store.MAX_ATTEMPTS", 3)
    store = server.open_store()
    server.script += [answer(200, b"<html>")] * 3
    with pytest.raises(SettingsError):
        list(store.list(""))
    store.close()


def test_an_object_of_another_bucket_is_asked_for_by_its_encoded_name_its_version_and_no_more_than_the_cap(server: ScriptedServer) -> None:
    store = server.open_store()
    server.script += [answer(206, b"12345", "image/png; q=1", extra="Content-Range: bytes 0-4/900\r\n"), answer(200, b"all of it")]
    found = store.get_from_bucket("drop", "my cats/ä +?#.jpg", "v 1", 5)
    assert found == BucketObject(b"12345", 900, "tag", "image/png; q=1")
    assert store.get_from_bucket("drop", "b", None, 3) == BucketObject(b"all", 9, "tag", "application/xml")
    store.close()
    assert [request.path for request in server.requests] == ["/drop/my%20cats/%C3%A4%20%2B%3F%23.jpg?versionId=v%201", "/drop/b"]
    assert [request.headers["range"] for request in server.requests] == ["bytes=0-4", "bytes=0-2"]


def test_a_deleted_version_in_a_bucket_of_another_region_is_gone_for_this_store(server: ScriptedServer) -> None:
    store = server.open_store()
    item = MediaItem(0, 0, "drop/a", 0, 0, is_delete=True, parts=[MediaPart("", ref=PayloadRef("a", bucket="drop"))])
    reader = PayloadReader(store, RecordLimits())
    server.script.append(error(301, "PermanentRedirect"))
    assert reader.is_gone(item)
    server.script.append(answer(206, b"x"))
    assert not reader.is_gone(item)
    store.close()


def test_what_is_gone_is_none_and_what_is_not_answered_or_not_allowed_is_tried_again_later(server: ScriptedServer) -> None:
    store = server.open_store()
    for status, code in (
        (404, "NoSuchKey"),
        (404, "NoSuchBucket"),
        (404, "NoSuchVersion"),
        (400, "XMinioInvalidObjectName"),
        (405, "MethodNotAllowed"),
    ):
        server.script.append(error(status, code))
        assert store.get_from_bucket("drop", "gone", None, 10) is None
    server.script.append(error(416, "InvalidRange"))
    assert store.get_from_bucket("drop", "empty", None, 10) == BucketObject(b"", 0, "", "")
    server.script += [error(503, "SlowDown"), b"", answer(200, b"there")]
    found = store.get_from_bucket("drop", "late", None, 10)
    assert found is not None and found.data == b"there"
    for status, code in ((301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")):  # what AWS says of a bucket of another region
        server.script.append(error(status, code))
        with pytest.raises(RecordError, match="bucket drop lies in another region") as caught:
            store.get_from_bucket("drop", "a", None, 10)
        assert caught.value.reason == "payload_missing"
    server.script.append(error(403, "AccessDenied"))
    with pytest.raises(UnavailableError, match="bucket drop may not be read"):
        store.get_from_bucket("drop", "secret", None, 10)
    server.script.append(error(403, "SignatureDoesNotMatch"))
    with pytest.raises(SettingsError, match="SignatureDoesNotMatch"):
        store.get_from_bucket("drop", "secret", None, 10)
    store.close()
