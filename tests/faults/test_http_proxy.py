"""The proxy before the store: what a client and the store each see, for every fault of `tests.faults.store_faults`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from backends.s3_store import S3Store
from backends.store_rules import prove_conditions
from contracts.errors import SettingsError, UnavailableError
from contracts.store import PutOutcome
from tests.faults.http_proxy import HttpProxy, Rule
from tests.faults.store_faults import (
    Flip,
    HideNewest,
    IgnoreConditions,
    Refuse,
    Remember,
    Shorten,
    StoreThen,
    StoreThenSilence,
    Truncate,
    anything,
    is_get,
    is_listing,
    is_put,
)
from tests.faults.tcp_proxy import HOST
from tests.indexer.conftest import eventually


class SmallStore(ThreadingHTTPServer):
    """As much of S3 as our own client asks for, in memory; conditions hold, signatures are kept for the tests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.hosts: set[str] = set()
        super().__init__((HOST, 0), _Handler)
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallStore

    def log_message(self, *arguments: object) -> None:
        """Nothing is logged."""

    @property
    def key(self) -> str:
        return self.path.partition("?")[0].lstrip("/").partition("/")[2]

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hosts.add(self.headers["Host"])
        with self.server.lock:
            found = self.server.objects.get(self.key)
            wanted = self.headers.get("If-Match")
            is_refused = self.headers.get("If-None-Match") == "*" and found is not None
            if wanted is not None:
                is_refused = found is None or wanted.strip('"') != hashlib.md5(found).hexdigest()
            if not is_refused:
                self.server.objects[self.key] = body
        if is_refused:
            self.answer(412)
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.end_headers()

    def do_HEAD(self) -> None:
        found = self.server.objects.get(self.key)
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", "0" if found is None else str(len(found)))
        if found is not None:
            self.send_header("ETag", f'"{hashlib.md5(found).hexdigest()}"')
            self.send_header("Last-Modified", "Thu, 26 Nov 2026 00:00:00 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        if not self.key:
            row = "<Contents><Key>{}</Key><Size>1</Size><ETag>e</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            rows = "".join(row.format(key) for key in sorted(self.server.objects))
            self.answer(200, f"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())
            return
        found = self.server.objects.get(self.key)
        self.answer(*((404, b"<Code>NoSuchKey</Code>") if found is None else (200, found)))

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.objects.pop(self.key, None)
        self.answer(204)


@pytest.fixture
def stored() -> Iterator[SmallStore]:
    server = SmallStore()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(stored: SmallStore, caplog: pytest.LogCaptureFixture) -> Iterator[HttpProxy]:
    made = HttpProxy((HOST, stored.port))
    yield made
    made.close()
    assert "asyncio" not in {record.name for record in caplog.records}, "it does not end quietly"


@pytest.fixture
def store(proxy: HttpProxy) -> Iterator[S3Store]:
    opened = S3Store(proxy.address, "bucket", "access", "secret")
    yield opened
    opened.close()


def test_without_rules_a_store_is_what_it_is_and_sees_the_address_that_was_signed(proxy: HttpProxy, store: S3Store, stored: SmallStore) -> None:
    assert store.put_if_absent("a/1", b"body") is PutOutcome.CREATED
    assert store.put_if_absent("a/1", b"other") is PutOutcome.EXISTS
    found, info = store.get("a/1"), store.head("a/1")
    assert found is not None and found.data == b"body" and info is not None and info.size_bytes == 4
    assert [entry.key for entry in store.list("a/")] == ["a/1"]
    store.delete("a/1")
    assert store.get("a/1") is None
    prove_conditions(store, "probe/")
    assert stored.hosts == {proxy.address}


@pytest.mark.parametrize("status", [503, 500, None])
def test_an_answer_that_is_lost_is_unknown_and_the_object_is_stored(proxy: HttpProxy, store: S3Store, stored: SmallStore, status: int | None) -> None:
    told: list[str] = []
    lose = StoreThen(status, lambda request: told.append(request.key))
    proxy.rules = [Rule(is_put("manifest/"), lose, most=1)]
    assert store.put_if_absent("c/manifest/1.json", b"{}") is PutOutcome.UNKNOWN
    assert stored.objects["c/manifest/1.json"] == b"{}"
    assert (lose.statuses, told, proxy.rules[0].done) == ([200], ["c/manifest/1.json"], 1)
    assert store.put_if_absent("c/manifest/2.json", b"{}") is PutOutcome.CREATED  # the rule is used up


def test_an_answer_that_never_comes_is_unknown(proxy: HttpProxy, store: S3Store, stored: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.s3_answers.PUT_TIMEOUT_SECONDS", 0.2)
    proxy.rules = [Rule(is_put("m"), StoreThenSilence(0.6))]
    assert store.put_if_absent("m/1", b"{}") is PutOutcome.UNKNOWN
    eventually(lambda: stored.objects.get("m/1") == b"{}")  # unknown: it may land after the client has given up


def test_a_refused_request_never_reaches_the_store(proxy: HttpProxy, store: S3Store, stored: SmallStore) -> None:
    proxy.rules = [Rule(is_put(""), Refuse(409))]
    assert store.put_if_absent("a", b"") is PutOutcome.CONFLICT
    proxy.rules = [Rule(is_put(""), Refuse(503))]
    assert store.put_if_absent("a", b"") is PutOutcome.UNKNOWN
    assert stored.objects == {}
    stored.objects["a"] = b"x"
    proxy.rules = [Rule(is_get(""), Refuse(429), most=2)]
    found = store.get("a")
    assert found is not None and proxy.rules[0].done == 2


def test_a_share_of_the_requests_is_a_share_of_them(proxy: HttpProxy, store: S3Store) -> None:
    rule = Rule(is_put(""), Refuse(503), share=0.3)
    proxy.rules = [rule]
    outcomes = [store.put_if_absent(f"k/{number}", b"") for number in range(200)]
    assert outcomes.count(PutOutcome.UNKNOWN) == rule.done and 30 < rule.done < 90


def test_a_truncated_a_shortened_and_a_flipped_body_are_read_again(proxy: HttpProxy, store: S3Store) -> None:
    body = bytes(1000)
    store.put_if_absent("seg", body)
    proxy.rules = [Rule(is_get("seg"), Truncate(), most=1)]
    found = store.get("seg")
    assert found is not None and found.data == body and proxy.rules[0].done == 1
    for action in (Shorten(), Flip()):
        proxy.rules = [Rule(is_get("seg"), action, most=1)]
        spoilt = urllib3.request("GET", f"http://{proxy.address}/bucket/seg").data
        assert spoilt != body and proxy.rules[0].done == 1
        assert len(spoilt) < 1000 or sum(byte.bit_count() for byte in spoilt) == 1
        proxy.rules[0].done = 0
        found = store.get("seg")
        assert found is not None and found.data == body and proxy.rules[0].done == 1


def test_a_listing_lags_behind_and_catches_up(proxy: HttpProxy, store: S3Store) -> None:
    now = [0.0]
    remembered = Remember(clock=lambda: now[0])
    hide = HideNewest(remembered, 3.0)
    store.put_if_absent("p/old", b"")
    proxy.rules = [Rule(is_listing, hide), Rule(is_put("p/"), remembered)]
    store.put_if_absent("p/new", b"")
    assert [info.key for info in store.list("p/")] == ["p/old"] and hide.hidden == 1
    now[0] = 3.5
    assert [info.key for info in store.list("p/")] == ["p/new", "p/old"]


@pytest.mark.parametrize("looks_first", [False, True])
def test_a_store_that_ignores_conditions_is_refused_by_the_probe(proxy: HttpProxy, store: S3Store, looks_first: bool) -> None:
    action = IgnoreConditions("access", "secret", looks_first)
    proxy.rules = [Rule(is_put(""), action)]
    assert store.put_if_absent("k", b"1") is PutOutcome.CREATED
    assert store.put_if_absent("k", b"2") is (PutOutcome.EXISTS if looks_first else PutOutcome.CREATED)
    with pytest.raises(SettingsError, match="condition"):
        prove_conditions(store, "probe/")


def test_a_reset_while_many_ask_is_outlived(proxy: HttpProxy, store: S3Store) -> None:
    store.put_if_absent("k", b"body")
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(store.get, "k") for _ in range(60)]
        for _ in range(5):
            proxy.reset()
            time.sleep(0.01)
        assert all(found is not None and found.data == b"body" for found in (future.result() for future in futures))


def test_a_store_that_is_gone_is_told_as_a_reset(proxy: HttpProxy, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.s3_store.RETRY_BUDGET_SECONDS", 0.3)
    proxy.upstream = (HOST, 1)
    proxy.reset()
    with pytest.raises(UnavailableError):
        store.get("k")
    proxy.rules = [Rule(anything, Refuse(500))]
    with pytest.raises(UnavailableError, match="500"):
        store.get("k")


def test_an_answer_is_lost_of_what_was_stored_alone(proxy: HttpProxy, store: S3Store) -> None:
    store.put_if_absent("m/1", b"{}")
    told: list[str] = []
    proxy.rules = [Rule(is_put("m/"), StoreThen(None, lambda request: told.append(request.key), only_stored=True))]
    assert store.put_if_absent("m/1", b"other") is PutOutcome.EXISTS and told == []
    assert store.put_if_absent("m/2", b"{}") is PutOutcome.UNKNOWN and told == ["m/2"]
