"""Requests of one bucket by the store's own counters (MinIO's Prometheus metrics), and what they would cost at a list price.

Takes: a store's address and keys. Gives: requests by class. Owns: which request is of which class, and the prices.
Never: counts a request by what we think that we sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping

import urllib3

from contracts.errors import UnavailableError

PUT, GET, LIST, DELETE = "put", "get", "list", "delete"
CLASSES: Mapping[str, str] = {
    "putobject": PUT,
    "copyobject": PUT,
    "newmultipartupload": PUT,
    "putobjectpart": PUT,
    "completemultipartupload": PUT,
    "getobject": GET,
    "headobject": GET,
    "headbucket": GET,
    "listobjectsv1": LIST,
    "listobjectsv2": LIST,
    "deleteobject": DELETE,
    "deletemultipleobjects": DELETE,
}
"""By MinIO's name of the API; S3 counts them alike."""
USD_PER_1000: Mapping[str, float] = {PUT: 0.005, GET: 0.0004, LIST: 0.005, DELETE: 0.0}
"""List prices of S3 Standard in us-east-1 (https://aws.amazon.com/s3/pricing/, Requests & data retrievals, as of 2026)."""
TIMEOUT_SECONDS = 10.0
TOKEN_SECONDS = 3600
FRESH_SECONDS = 10.0
"""For so long MinIO gives the same answer again: counts that are read sooner after each other are equal."""
_LINE = re.compile(r'minio_bucket_requests_total\{api="([^"]+)",bucket="([^"]+)"[^}]*\} ([0-9.e+]+)')


def bearer_token(access_key: str, secret_key: str, now_seconds: float) -> str:
    """What MinIO wants of a scraper: a JSON Web Token (RFC 7519, HS512) of its own keys, as `mc admin prometheus generate` makes it."""
    claims = {"exp": int(now_seconds) + TOKEN_SECONDS, "sub": access_key, "iss": "prometheus"}
    signed = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "HS512", "typ": "JWT"}, claims))
    return (signed + b"." + _base64(hmac.new(secret_key.encode(), signed, hashlib.sha512).digest())).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def parse_requests(text: str, bucket: str) -> dict[str, int]:
    """Requests of a bucket by class, out of the text of MinIO's bucket metrics; an API that is in no class stands for itself."""
    found = dict.fromkeys((PUT, GET, LIST, DELETE), 0)
    for api, name, count in _LINE.findall(text):
        if name == bucket:
            kind = CLASSES.get(api, api)
            found[kind] = found.get(kind, 0) + int(float(count))
    return found


class RequestCounter:
    """Reads the counters of one bucket.

    Parameters
    ----------
    host : str
        ``host:port`` of the store.
    bucket : str
        Whose requests.
    access_key, secret_key : str
        The store's own.
    """

    def __init__(self, host: str, bucket: str, access_key: str, secret_key: str) -> None:
        self._url, self._bucket = f"http://{host}/minio/v2/metrics/bucket", bucket
        self._keys = access_key, secret_key
        self._pool = urllib3.PoolManager(retries=False, timeout=TIMEOUT_SECONDS)

    def read(self) -> dict[str, int]:
        """Requests so far, by class.

        Raises
        ------
        UnavailableError
            The store has no such counters, or does not let us read them.
        """
        token = bearer_token(*self._keys, time.time())
        answer = self._pool.request("GET", self._url, headers={"Authorization": f"Bearer {token}"})
        if answer.status != 200:
            raise UnavailableError(f"the store's counters answered {answer.status}", hint="the bill needs MinIO's Prometheus metrics (make stack)")
        return parse_requests(answer.data.decode(), self._bucket)


def usd_per_day(per_day: Mapping[str, float]) -> float:
    """Price of a day's requests, by class."""
    return sum(count / 1000 * USD_PER_1000.get(kind, 0.0) for kind, count in per_day.items())
