"""What an S3 store answers beside success: errors, refusals with what to do about them, entity tags.

Takes: statuses, error codes, headers. Gives: `AnswerError`, `SettingsError` with a hint. Owns: which answers pass by themselves.
Never: sends a request.
"""

from __future__ import annotations

import hashlib
import re
from xml.etree import ElementTree

from urllib3.response import BaseHTTPResponse

from contracts.errors import SettingsError
from contracts.store import StoredObject

TAGGED_BYTES = 1 << 20
"""Larger objects are not compared with their entity tag: manifests hold digests of them."""
_MD5 = re.compile(r"[0-9a-f]{32}")
NOT_A_LISTING = (ElementTree.ParseError, ValueError)
"""What minio-py raises for a listing that is no XML, or lacks an element."""
CREDENTIAL_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken", "AuthorizationHeaderMalformed"})


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
        """Whether the same request may succeed later."""
        return self.status in (408, 425, 429) or (self.status >= 500 and self.status != 501)


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


def fits_tag(found: StoredObject) -> bool:
    """Whether nothing speaks against the bytes: most stores tag an object with their MD5. Large ones have digests in a manifest."""
    if len(found.data) > TAGGED_BYTES or not _MD5.fullmatch(found.etag):
        return True
    return hashlib.md5(found.data, usedforsecurity=False).hexdigest() == found.etag


def etag_of(response: BaseHTTPResponse) -> str:
    """An answer's entity tag, without its quotes."""
    return str(response.headers.get("etag", "")).strip('"')
