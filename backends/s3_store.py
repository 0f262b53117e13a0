"""The object store on S3 and MinIO, through minio-py's request signer.

Takes: endpoint, bucket, credentials. Gives: what `contracts.store.ObjectStore` promises. Owns: the mapping from HTTP answers to outcomes.
Never: lets minio-py or urllib3 repeat a put by themselves, or sends a key that was not validated.

Why not the public ``put_object``: minio-py 7.2.20 turns ``If-None-Match`` into user metadata and overwrites the object, and its HTTP
client repeats puts, so that a commit whose answer was lost meets its own object and reads as a lost race (reliability.md 0.1, 0.2).
"""

from __future__ import annotations

import hashlib
import io
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from xml.etree import ElementTree

from minio import Minio
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.response import BaseHTTPResponse, HTTPResponse

from backends.s3_answers import CREDENTIAL_CODES, AnswerError, AnswerPool, no_answer, refusal, tls_context
from backends.store_rules import check_prefix, check_range, prove_conditions
from contracts.clock import Clock, SystemClock
from contracts.errors import RecordError, UnavailableError
from contracts.metrics import Metrics
from contracts.object_keys import validate_key
from contracts.store import BucketObject, ObjectInfo, PutOutcome, StoredObject

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_BUDGET_SECONDS = 8.0  # no attempt begins later, so an address that swallows packets costs 8 + 3 s
MAX_ATTEMPTS = 8
TAGGED_BYTES = 1 << 20
_MD5 = re.compile(r"[0-9a-f]{32}")
_NOT_A_LISTING = (ElementTree.ParseError, ValueError)
"""What minio-py raises for a listing that is no XML, or lacks an element."""


class S3Store:
    """Objects in one bucket; thread-safe, but not to be shared over a fork.

    Parameters
    ----------
    endpoint : str
        ``host:port``.
    bucket : str
        Its name; it is created when it is missing and the credentials allow it.
    access_key, secret_key : str
        Credentials; both empty for unsigned requests.
    region : str
        Region that requests are signed for.
    secure : bool
        TLS, with the certificate verified.
    metrics : Metrics, optional
        Counts the attempts that are repeated, as outcome ``retried``.
    clock : Clock, optional
        Times the pauses between attempts.

    Raises
    ------
    SettingsError
        Credentials are wrong, or the bucket is missing and may not be created.
    UnavailableError
        The store does not answer.
    """

    def __init__(
        self,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        region: str = "us-east-1",
        secure: bool = False,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._where = f"{endpoint}/{bucket}"
        self._bucket = bucket
        self._metrics = metrics
        self._clock = clock or SystemClock()
        self._has_md5_tags = True  # until an object shows that they are something else: those of encrypted ones are
        self._pool = AnswerPool(num_pools=2, maxsize=64, ssl_context=tls_context() if secure else None)
        self._client = Minio(endpoint, access_key or None, secret_key or None, secure=secure, region=region, http_client=self._pool)
        self._ensure_bucket()

    # ---- writing ------------------------------------------------------------------------------------------------

    def put_if_absent(self, key: str, data: bytes) -> PutOutcome:
        """Create `key`; exactly one of many concurrent callers gets CREATED."""
        return self._put(key, data, {"If-None-Match": "*"})

    def compare_and_swap(self, key: str, data: bytes, etag: str | None) -> PutOutcome:
        """Replace `key` if its entity tag is `etag` (None: if it does not exist); EXISTS where the condition failed."""
        return self._put(key, data, {"If-None-Match": "*"} if etag is None else {"If-Match": f'"{etag}"'})

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> PutOutcome:
        """Send one put. It is repeated only where nothing can have been sent: there was no connection."""
        validate_key(key)

        def attempt() -> PutOutcome:
            try:
                response = self._client._execute("PUT", self._bucket, key, body=data, headers=dict(condition), no_body_trace=True)
            except AnswerError as answer:
                return self._outcome(answer, "If-Match" in condition)
            except (NewConnectionError, ConnectTimeoutError):
                raise
            except (HTTPError, OSError) as error:
                logger.warning("put ended without an answer", extra={"object_key": key, "cause": type(error).__name__})
                return PutOutcome.UNKNOWN
            # A stored object has a tag: an answer cut off within its headers reads as a 200 without one.
            return PutOutcome.CREATED if _etag(response) else PutOutcome.UNKNOWN

        return self._repeat("put", attempt)

    def _outcome(self, answer: AnswerError, is_swap: bool) -> PutOutcome:
        """Read a refusal as AWS documents conditional writes (S3 user guide, conditional-writes)."""
        if answer.status == 412:
            return PutOutcome.EXISTS
        if answer.status == 404 and is_swap and answer.code in ("NoSuchKey", ""):
            return PutOutcome.EXISTS  # If-Match on an object that does not exist
        if answer.status == 409:
            return PutOutcome.CONFLICT
        if answer.is_passing:
            return PutOutcome.UNKNOWN  # a proxy may say 503 although the store behind it has stored the object
        raise refusal(self._where, answer) from answer

    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""
        self._read_or_none("DELETE", validate_key(key), {})

    # ---- reading ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> StoredObject | None:
        """The whole object, or None; a body shorter than announced, or a small one that its entity tag contradicts, is fetched again."""
        same, before = 0, b""
        for _ in range(MAX_ATTEMPTS):
            response = self._read_or_none("GET", validate_key(key), {})
            if response is None:
                return None
            found = StoredObject(response.data, _etag(response))
            if not self._has_md5_tags or _fits_tag(found):
                return found
            same = same + 1 if found.data == before else 0
            if same == 2:  # spoilt on its way it would hardly come the same three times: tags are no MD5 here
                self._has_md5_tags = False
                return found
            logger.warning("bytes and entity tag of an object differ, it is read again", extra={"object_key": key})
            before = found.data
        raise UnavailableError(f"object {key} came with other bytes each time", hint="something between here and the object store spoils them")

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        """Up to `length` bytes from `start`; shorter only at the object's end; None when there is no object."""
        check_range(start, length)
        if length == 0:  # a Range header cannot say nothing
            return None if self.head(key) is None else b""
        try:
            response = self._read_or_none("GET", validate_key(key), {"Range": f"bytes={start}-{start + length - 1}"})
        except AnswerError:
            return b""  # 416: the range begins at or behind the object's end
        if response is None:
            return None
        return response.data if response.status == 206 else response.data[start : start + length]

    def blocks(self, key: str, block_bytes: int, start: int = 0, length: int | None = None) -> Iterator[bytes] | None:
        """The object's bytes from `start` on in order, at most `block_bytes` at a time, of one answer; None when there is no object."""
        check_range(start, length or 0)
        if length == 0:  # a Range header cannot say nothing
            return None if self.head(key) is None else iter(())
        stop = None if length is None else start + length
        reading = self._blocks(validate_key(key), block_bytes, start, stop)
        return None if next(reading, None) is None else reading

    def _blocks(self, key: str, block_bytes: int, at: int, stop: int | None) -> Iterator[bytes]:
        """First nothing, once the object is there, then its blocks; where a transfer breaks off, the rest is asked for."""
        broken = 0
        while at != stop and (response := self._repeat("get", lambda start=at: self._open_body(key, start, stop))) is not None:  # type: ignore[misc]
            if not broken:
                yield b""
            try:
                for block in response.stream(block_bytes, decode_content=False):
                    at += len(block)
                    yield block
                return
            except (HTTPError, OSError) as error:
                broken += 1
                if broken == MAX_ATTEMPTS:
                    raise no_answer(self._where, error, broken) from error
                self._clock.wait(threading.Event(), 0.005 * 2**broken)
            finally:
                response.close()  # of a body that was read to its end, the connection is back in the pool already

    def _open_body(self, key: str, start: int, stop: int | None) -> BaseHTTPResponse | None:
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        try:
            found = self._found("GET", key, headers, preload_content=False)
        except AnswerError as answer:
            if answer.status == 416:  # the range begins at or behind the object's end: there is an object, and nothing of it
                return HTTPResponse(io.BytesIO(), status=416, preload_content=False)
            raise
        if found is not None and headers and found.status != 206:
            found.close()
            raise HTTPError("the whole object came instead of its rest")
        return found

    def get_from_bucket(self, bucket: str, name: str, version_id: str | None, most_bytes: int) -> BucketObject | None:
        """Up to `most_bytes` of an object of another bucket, or None; both names come from a stranger and were checked."""

        def attempt() -> BucketObject | None:
            version: dict[str, Any] | None = None if version_id is None else {"versionId": version_id}
            try:
                found = self._client._execute("GET", bucket, name, headers={"Range": f"bytes=0-{most_bytes - 1}"}, query_params=version)
            except AnswerError as answer:
                if answer.status == 416:
                    return BucketObject(b"", 0, "", "")  # no byte to begin with
                if answer.status == 301 or answer.code == "AuthorizationHeaderMalformed":  # our own bucket answers, so it is not our region
                    what = f"bucket {bucket} lies in another region, or behind another endpoint, than the store of HEADWATER_STORE_URL"
                    raise RecordError("payload_missing", what) from None
                if answer.is_passing or answer.code in CREDENTIAL_CODES:
                    raise
                if answer.status in (401, 403):
                    hint = "allow these credentials s3:GetObject and s3:ListBucket there"
                    raise UnavailableError(f"object store: bucket {bucket} may not be read: {answer}", hint=hint) from answer
                return None
            total = found.headers.get("content-range", "").rpartition("/")[2]
            size_bytes = int(total) if total.isdecimal() else len(found.data)
            return BucketObject(found.data[:most_bytes], size_bytes, _etag(found), found.headers.get("content-type", ""))

        return self._repeat("get_from_bucket", attempt)

    def head(self, key: str) -> ObjectInfo | None:
        """The object's size and tag, or None."""
        response = self._read_or_none("HEAD", validate_key(key), {})
        if response is None:
            return None
        modified = parsedate_to_datetime(response.headers["last-modified"]).timestamp()
        return ObjectInfo(key, int(response.headers["content-length"]), _etag(response), modified)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys begin with `prefix` and sort after `start_after`, in key order.

        Pages are fetched as they are needed; a page that fails is asked for again behind the last key that was given.
        """
        check_prefix(prefix)
        check_prefix(start_after)
        return self._list(prefix, start_after)

    def _list(self, prefix: str, last: str) -> Iterator[ObjectInfo]:
        while True:
            after = last

            def open_listing(after: str = after) -> tuple[Iterator[Any], Any]:
                objects = self._client.list_objects(self._bucket, prefix=prefix, recursive=True, start_after=after or None)
                return objects, next(objects, None)

            objects, entry = self._repeat("list", open_listing)
            try:
                while entry is not None:
                    last = str(entry.object_name)
                    yield ObjectInfo(last, int(entry.size), str(entry.etag).strip('"'), entry.last_modified.timestamp())
                    entry = next(objects, None)
            except (AnswerError, HTTPError, OSError, *_NOT_A_LISTING):
                continue  # a later page failed: begin again behind `last`, within the limits of `_repeat`
            return

    def _read_or_none(self, method: str, key: str, headers: dict[str, str]) -> BaseHTTPResponse | None:
        def attempt() -> BaseHTTPResponse | None:
            response = self._found(method, key, headers)
            if response is None:
                return None
            announced = response.headers.get("content-length")
            if method == "GET" and announced is not None and int(announced) != len(response.data):
                raise HTTPError(f"{len(response.data)} of {announced} bytes came")  # is repeated
            return response

        return self._repeat(method.lower(), attempt)

    def _found(self, method: str, key: str, headers: dict[str, str], **how: Any) -> BaseHTTPResponse | None:
        """One request; None where there is no such object."""
        try:
            response: BaseHTTPResponse = self._client._execute(method, self._bucket, key, headers=dict(headers), **how)
        except AnswerError as answer:
            if answer.status == 404 and answer.code in ("NoSuchKey", ""):
                return None
            raise
        return response

    # ---- opening, repeating, closing ----------------------------------------------------------------------------

    def _ensure_bucket(self) -> None:
        """Ask for one key of the bucket (unlike HEAD, the answer tells why it is refused); create a missing bucket."""

        def attempt() -> None:
            try:
                response = self._client._execute("GET", self._bucket, query_params={"list-type": "2", "max-keys": "1"})
                if b"ListBucketResult" not in response.data[:4096]:
                    raise AnswerError(response.status, "NotS3")
            except AnswerError as answer:
                if answer.code != "NoSuchBucket":
                    raise
                try:
                    self._client.make_bucket(self._bucket)
                    logger.info("created the bucket", extra={"store": self._where})
                except AnswerError as refused:
                    if refused.code != "BucketAlreadyOwnedByYou":  # another process was faster
                        raise

        self._repeat("open", attempt)

    def _repeat(self, op: str, attempt: Callable[[], T]) -> T:
        """Repeat a request that may be repeated: bounded in number and time, the pauses doubled and jittered.

        Raises
        ------
        UnavailableError
            No attempt was answered.
        SettingsError
            The store refuses.
        """
        began = self._clock.monotonic_seconds()
        for number in range(1, MAX_ATTEMPTS + 1):
            try:
                return attempt()
            except AnswerError as answer:
                if answer.status == 416:
                    raise
                if not answer.is_passing:
                    raise refusal(self._where, answer) from answer
                cause: Exception = answer
            except _NOT_A_LISTING as error:  # also what is left of a listing that was cut short on its way
                cause = error
            except (HTTPError, OSError) as error:
                cause = error
            pause = random.uniform(0.5, 1.0) * min(2.0, 0.1 * 2**number)
            if number == MAX_ATTEMPTS or self._clock.monotonic_seconds() - began + pause > RETRY_BUDGET_SECONDS:
                break
            if self._metrics is not None:
                self._metrics.store_requests.labels(op=op, outcome="retried").inc()
            self._clock.wait(threading.Event(), pause)
        if isinstance(cause, _NOT_A_LISTING):
            raise refusal(self._where, AnswerError(200, "NotS3")) from cause
        raise no_answer(self._where, cause, number) from cause

    def probe(self, prefix: str) -> None:
        """Prove that conditions are honoured (`backends.store_rules.prove_conditions`)."""
        prove_conditions(self, prefix)

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()


def _fits_tag(found: StoredObject) -> bool:
    """Whether nothing speaks against the bytes: most stores tag an object with their MD5. Large ones have digests in a manifest."""
    if len(found.data) > TAGGED_BYTES or not _MD5.fullmatch(found.etag):
        return True
    return hashlib.md5(found.data, usedforsecurity=False).hexdigest() == found.etag


def _etag(response: BaseHTTPResponse) -> str:
    return str(response.headers.get("etag", "")).strip('"')
