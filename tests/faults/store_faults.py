"""The faults of an object store, as rules of the HTTP proxy before it (reliability.md section 4, faults 4, 8-10 and 24-31).

Takes: what to pick, how often. Gives: `Rule`s for `HttpProxy.rules`. Owns: which wrong answer each fault is.
Never: keeps an answer of its own invention where the store's true one can be spoilt: sizes, tags and headers stay those of MinIO.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import urlsplit

from minio.credentials.credentials import Credentials
from minio.signer import sign_v4_s3

from tests.faults.http_proxy import Answer, Forward, Request, ResetError, with_body

CODES = {409: "ConditionalRequestConflict", 412: "PreconditionFailed", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}
APART_SECONDS = 0.02
CONDITIONS = ("if-none-match", "if-match")


def refusal(status: int, code: str | None = None) -> Answer:
    """An error as S3 words it."""
    name = code or CODES.get(status, "InternalError")
    return Answer(status, (("Content-Type", "application/xml"),), f"<Error><Code>{name}</Code><Message>planned</Message></Error>".encode())


@dataclass
class Refuse:
    """Answered with an error; the store never sees the request."""

    status: int

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        return refusal(self.status)


@dataclass
class StoreThen:
    """The store does what it was asked and its answer is lost: an error stands in its place, or the connection is reset.

    `then` is called in between, while the client still waits: it may kill the client. With `only_stored` the answer to what the store refused is
    not lost: somebody else was faster.
    """

    status: int | None
    then: Callable[[Request], None] = lambda request: None
    only_stored: bool = False
    statuses: list[int] = field(default_factory=list)
    """What the store really answered."""

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        if self.only_stored and answer.status != 200:
            return answer
        self.statuses.append(answer.status)
        self.then(request)
        if self.status is None:
            raise ResetError
        return refusal(self.status)


@dataclass
class StoreThenSilence:
    """The store does what it was asked, and its answer comes only after the client's patience."""

    seconds: float

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        await forward(request)
        await asyncio.sleep(self.seconds)
        raise ResetError


@dataclass
class Truncate:
    """The true answer with its whole Content-Length, and only a part of its body (a share of it)."""

    share: float = 0.5

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        return replace(answer, body=answer.body[: int(len(answer.body) * self.share)], announced_bytes=len(answer.body))


@dataclass
class Shorten:
    """A part of the body, announced as if that were all, another one each time: only a checksum can tell."""

    most_share: float = 0.9
    random: random.Random = field(default_factory=lambda: random.Random(26))

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        if answer.status not in (200, 206) or not answer.body:
            return answer
        return with_body(answer, answer.body[: self.random.randrange(int(len(answer.body) * self.most_share) + 1)])


@dataclass
class Flip:
    """One bit of the body is another one, in another place each time."""

    random: random.Random = field(default_factory=lambda: random.Random(27))

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        if answer.status not in (200, 206) or not answer.body:
            return answer
        at, bit = self.random.randrange(len(answer.body)), 1 << self.random.randrange(8)
        return replace(answer, body=answer.body[:at] + bytes([answer.body[at] ^ bit]) + answer.body[at + 1 :])


@dataclass
class SlowAnswer:
    """The answer comes later by this much."""

    seconds: float

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        await asyncio.sleep(self.seconds)
        return await forward(request)


@dataclass
class Remember:
    """Forwards a put and notes when its key was created, for `HideNewest`; as a rule it must stand last."""

    created: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        if answer.status == 200:
            self.created[request.key] = self.clock()
        return answer


@dataclass
class HideNewest:
    """A listing that lags: keys created less than `seconds` ago are not in it."""

    remembered: Remember
    seconds: float
    hidden: int = 0

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        answer = await forward(request)
        if answer.status != 200:
            return answer
        now = self.remembered.clock()

        def kept(found: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>([^<]*)</Key>", found.group())
            at = self.remembered.created.get(key.group(1).decode()) if key else None
            if at is None or now - at > self.seconds:
                return found.group()
            self.hidden += 1
            return b""

        return with_body(answer, re.sub(rb"<Contents>.*?</Contents>", kept, answer.body, flags=re.DOTALL))


@dataclass
class IgnoreConditions:
    """A store that takes ``If-None-Match`` and ``If-Match`` and does not look at them; with `looks_first` one that looks before it writes.

    Parameters
    ----------
    access_key, secret_key : str
        The request is signed anew: the signature covers the condition.
    looks_first : bool
        HEAD, then PUT without a condition, a network apart: right as long as nobody else writes between the two.
    """

    access_key: str
    secret_key: str
    looks_first: bool = False

    async def __call__(self, request: Request, forward: Forward) -> Answer:
        if self.looks_first:
            if (refused := await self._look(request, forward)) is not None:
                return refused
            await asyncio.sleep(APART_SECONDS)
        return await forward(self._signed(request, request.method))

    async def _look(self, request: Request, forward: Forward) -> Answer | None:
        found = await forward(self._signed(replace(request, body=b""), "HEAD"))
        wanted = request.header("if-match")
        etag = next((value for name, value in found.headers if name.lower() == "etag"), None)
        if wanted is None:
            return refusal(412) if found.status == 200 else None
        return None if found.status == 200 and etag == wanted else refusal(412)

    def _signed(self, request: Request, method: str) -> Request:
        host = request.header("host") or ""
        digest = sha256(request.body).hexdigest()
        now = datetime.now(UTC)
        kept: dict[str, str | list[str] | tuple[str]] = {"Host": host, "x-amz-content-sha256": digest, "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ")}
        credentials = Credentials(self.access_key, self.secret_key)
        url = urlsplit(f"http://{host}{request.target}")
        signed = sign_v4_s3(method=method, url=url, region="us-east-1", headers=kept, credentials=credentials, content_sha256=digest, date=now)
        headers = tuple((name, str(value)) for name, value in signed.items()) + (("Content-Length", str(len(request.body))),)
        return replace(request, method=method, headers=headers)


def is_put(part: str, conditional: bool = True) -> Callable[[Request], bool]:
    """Puts of keys that hold `part`, such as ``/manifest/``."""
    return lambda request: (
        request.method == "PUT" and part in request.key and (not conditional or any(request.header(name) is not None for name in CONDITIONS))
    )


def is_get(part: str) -> Callable[[Request], bool]:
    """Reads, whole or by range, of keys that hold `part`."""
    return lambda request: request.method == "GET" and bool(request.key) and part in request.key


def is_listing(request: Request) -> bool:
    return request.is_listing


def anything(request: Request) -> bool:
    return True
