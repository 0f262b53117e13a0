"""How an S3 store answers on the wire: one request per call, refusals as errors that say what to do.

Takes: requests of minio-py's signer. Gives: answers of success, or an `AnswerError`. Owns: how long one request may take, the words of a refusal.
Never: repeats a request or follows a redirect.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

import certifi
import urllib3
from urllib3.response import BaseHTTPResponse

from contracts.errors import SettingsError, UnavailableError

CONNECT_TIMEOUT_SECONDS = 3.0
READ_TIMEOUT_SECONDS = 10.0
PUT_TIMEOUT_SECONDS = 30.0
"""The store writes and syncs the whole body before it answers."""
CREDENTIAL_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken", "AuthorizationHeaderMalformed"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class AnswerError(Exception):
    """The store answered with something other than success; raised before minio-py's own reading of it.

    That reading fails on a 409 without a body (ValueError on HEAD, no status on PUT), so it is never reached.
    """

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"HTTP {status} {code}".rstrip())
        self.status = status
        self.code = code

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later. 499: MinIO, where a client has been silent amid its body for too long."""
        return self.status in (408, 425, 429, 499) or (self.status >= 500 and self.status != 501)


class AnswerPool(urllib3.PoolManager):
    """One request on the wire per call: no retries, no redirects, bounded time."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """Send one request, once; AnswerError for every answer that is not a success."""
        seconds = PUT_TIMEOUT_SECONDS if method == "PUT" else READ_TIMEOUT_SECONDS
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=seconds)
        response = super().urlopen(method, url, redirect=False, retries=False, timeout=timeout, **kw)
        if response.status in (200, 204, 206):
            return response
        found = _CODE.search(response.data[:65536]) if method != "HEAD" else None
        raise AnswerError(response.status, found.group(1).decode() if found else "")


def refusal(where: str, answer: AnswerError) -> SettingsError:
    """Turn a definite refusal into what the operator can do about it."""
    if answer.code in CREDENTIAL_CODES:
        hint = "check HEADWATER_STORE_ACCESS_KEY, HEADWATER_STORE_SECRET_KEY and HEADWATER_STORE_REGION"
    elif answer.code == "RequestTimeTooSkewed":
        hint = "this machine's clock is off by more than the store allows: set it (headwater doctor compares it with the store's)"
    elif answer.status in (401, 403):
        hint = "allow these credentials s3:ListBucket, GetObject, PutObject (and DeleteObject, CreateBucket where needed), and check the clock"
    elif answer.code == "NoSuchBucket":
        hint = "create the bucket; it was there when the store was opened"
    elif answer.status in (301, 307, 308):
        hint = "the bucket lives elsewhere: check the host and HEADWATER_STORE_REGION"
    else:
        hint = "check HEADWATER_STORE_URL: is this an S3 store?"
    return SettingsError(f"object store {where} refuses: {answer}", hint=hint, code="store_refused")


def no_answer(where: str, cause: Exception, attempts: int) -> UnavailableError:
    """What is left to say when no attempt was answered."""
    what = str(cause) if isinstance(cause, AnswerError) else type(cause).__name__
    return UnavailableError(
        f"object store {where} does not answer ({what}, {attempts} attempts)",
        hint="is it running, and is HEADWATER_STORE_URL right? For the local one: make stack",
    )


def tls_context() -> ssl.SSLContext:
    """The system's certificate authorities; certifi's where a slim image has none."""
    paths = ssl.get_default_verify_paths()
    has_system = paths.cafile is not None or paths.capath is not None
    return ssl.create_default_context(cafile=None if has_system else certifi.where())
