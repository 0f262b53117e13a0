"""The request bill: tokens, counters, classes and prices."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from rich.progress import Progress

from bench.bill import outcome_of
from bench.frame import Bench
from bench.store_requests import DELETE, GET, LIST, PUT, RequestCounter, bearer_token, parse_requests, usd_per_day
from contracts.errors import UnavailableError

METRICS = """# HELP minio_bucket_requests_total Total number of S3 requests on a bucket
minio_bucket_requests_total{api="getobject",bucket="mine",server="127.0.0.1:9000"} 225
minio_bucket_requests_total{api="headobject",bucket="mine",server="127.0.0.1:9000"} 5
minio_bucket_requests_total{api="listobjectsv2",bucket="mine",server="127.0.0.1:9000"} 1.32e+02
minio_bucket_requests_total{api="putobject",bucket="mine",server="127.0.0.1:9000"} 25
minio_bucket_requests_total{api="putobject",bucket="other",server="127.0.0.1:9000"} 9999
minio_bucket_requests_total{api="getbucketlocation",bucket="mine",server="127.0.0.1:9000"} 2
minio_bucket_replication_proxied_get_requests_total{bucket="mine",server="127.0.0.1:9000"} 3
"""


def test_requests_of_one_bucket_are_counted_by_class() -> None:
    assert parse_requests(METRICS, "mine") == {PUT: 25, GET: 230, LIST: 132, DELETE: 0, "getbucketlocation": 2}
    assert parse_requests(METRICS, "third") == {PUT: 0, GET: 0, LIST: 0, DELETE: 0}


def test_the_token_is_signed_by_the_store_s_secret() -> None:
    head, claims, signature = bearer_token("access", "secret", 1000.0).split(".")

    def decoded(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    assert json.loads(decoded(head)) == {"alg": "HS512", "typ": "JWT"}
    assert json.loads(decoded(claims)) == {"exp": 4600, "sub": "access", "iss": "prometheus"}
    assert decoded(signature) == hmac.new(b"secret", f"{head}.{claims}".encode(), hashlib.sha512).digest()


def test_a_day_costs_what_the_list_prices_say() -> None:
    assert usd_per_day({PUT: 10_000, LIST: 2_000, GET: 100_000, DELETE: 5_000, "unknown": 7}) == pytest.approx(0.05 + 0.01 + 0.04)


def test_requests_become_those_per_1000_records_and_a_day() -> None:
    slices = [{PUT: 20.0, GET: 40.0, LIST: 0.0, DELETE: 0.0, "seconds": 20.0}, {PUT: 40.0, GET: 40.0, LIST: 0.0, DELETE: 0.0, "seconds": 20.0}]
    with Progress(disable=True) as progress:
        outcome = outcome_of(Bench(False, 0, progress), slices, {"sent": 40_000, "seconds": 50.0}, {"rows": 1})
    assert outcome.modes["put_per_day"].value == pytest.approx(1.5 * 86_400) and outcome.modes["put_per_1000"].value == pytest.approx(1.5 / 0.8)
    assert outcome.modes["usd_per_day"].value == pytest.approx(1.5 * 86.4 * 0.005 + 2 * 86.4 * 0.0004)
    assert not {"list_per_day", "delete_per_day"} & set(outcome.modes), "a class without requests is not drawn"
    assert outcome.notes["requests"] == {PUT: 60, GET: 80, LIST: 0, DELETE: 0} and outcome.notes["sent_per_second"] == 800
    assert outcome.modes["put_per_day"].low <= outcome.modes["put_per_day"].value <= outcome.modes["put_per_day"].high


def test_a_store_without_counters_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        status, data = 403, b""

    counter = RequestCounter("127.0.0.1:1", "mine", "a", "b")
    monkeypatch.setattr(counter._pool, "request", lambda *_, **__: Answer())
    with pytest.raises(UnavailableError, match="403"):
        counter.read()
