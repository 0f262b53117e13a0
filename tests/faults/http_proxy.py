"""A proxy before an object store that understands HTTP: each request is forwarded, refused, or answered wrongly, as its rules say.

Takes: the store's address, and a list of `Rule`s that may be replaced at any time. Gives: a port on loopback, and counts of what went through.
Owns: reading and writing of HTTP/1.1 messages. Never: changes a request that it forwards (the signature covers the Host header and others), unless
a rule signs it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from tests.faults.tcp_proxy import Proxy, abort

BODILESS = (204, 304)


@dataclass(frozen=True)
class Request:
    """One request, whole."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def key(self) -> str:
        """The object's key: the path behind the bucket; empty for requests about the bucket."""
        return unquote(urlsplit(self.target).path).lstrip("/").partition("/")[2]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query, keep_blank_values=True).items()}

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and not self.key

    def header(self, name: str) -> str | None:
        return header_of(self.headers, name)


@dataclass(frozen=True)
class Answer:
    """One answer, whole; `announced_bytes` is its Content-Length, which may be a lie."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    announced_bytes: int | None = None


def header_of(headers: Sequence[tuple[str, str]], name: str) -> str | None:
    return next((value for found, value in headers if found.lower() == name.lower()), None)


class ResetError(Exception):
    """A rule wants the connection reset instead of an answer."""


Forward = Callable[[Request], "asyncio.Future[Answer]"]


class Action(Protocol):
    """What a rule does with a request: `forward` asks the store. Raising `ResetError` resets the client's connection."""

    async def __call__(self, request: Request, forward: Forward) -> Answer: ...


@dataclass
class Rule:
    """`action` for the requests that `matches` picks: none of the first `skip`, then a share of them, and `most` of them at most."""

    matches: Callable[[Request], bool]
    action: Action
    share: float = 1.0
    most: int | None = None
    skip: int = 0
    done: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(43))

    def takes(self, request: Request) -> bool:
        if (self.most is not None and self.done >= self.most) or not self.matches(request):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.random.random() >= self.share:
            return False
        self.done += 1
        return True


class HttpProxy(Proxy):
    """Forwards requests to a store; the first rule that takes one decides what becomes of it.

    Parameters
    ----------
    upstream, port
        As in `Proxy`.
    """

    def __init__(self, upstream: tuple[str, int], port: int = 0) -> None:
        self.rules: list[Rule] = []
        self.requests: Counter[str] = Counter()
        """Requests by method, also those that were never forwarded."""
        super().__init__(upstream, port)

    def heal(self) -> None:
        """No rules any more."""
        self.rules = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = _Upstream(self)
        try:
            while (request := await read_request(reader)) is not None:
                self.requests[request.method] += 1
                rule = next((rule for rule in self.rules if rule.takes(request)), None)
                answer = await (upstream.ask(request) if rule is None else rule.action(request, upstream.ask_later))
                if not await write_answer(writer, request, answer):
                    return
        except (ResetError, asyncio.IncompleteReadError):
            abort(writer)
        finally:
            upstream.close()


class _Upstream:
    """The store's side of one client connection; opened when it is needed, and again when the store has closed it."""

    def __init__(self, proxy: HttpProxy) -> None:
        self._proxy = proxy
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def ask_later(self, request: Request) -> asyncio.Future[Answer]:
        return asyncio.ensure_future(self.ask(request))

    async def ask(self, request: Request) -> Answer:
        was_open = self._streams is not None
        try:
            return await self._ask(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            if not was_open:
                raise ResetError from None
            try:  # an idle connection that the store has closed meanwhile: the request never reached it
                return await self._ask(request)
            except (OSError, asyncio.IncompleteReadError):
                raise ResetError from None

    async def _ask(self, request: Request) -> Answer:
        if self._streams is None:
            self._streams = await self._proxy._connect()
        reader, writer = self._streams
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        writer.write(f"{request.method} {request.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + request.body)
        await writer.drain()
        answer = await read_answer(reader, request.method)
        if (header_of(answer.headers, "connection") or "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        if self._streams is not None:
            self._proxy._writers.discard(self._streams[1])
            self._streams[1].close()
            self._streams = None


# ---- HTTP/1.1 --------------------------------------------------------------------------------------------------------


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection, None when there is none."""
    first = await reader.readline()
    if not first:
        return None
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = await _read_headers(reader)
    return Request(method, target, headers, await _read_body(reader, headers, until_close=False))


async def read_answer(reader: asyncio.StreamReader, method: str) -> Answer:
    """One answer; what comes in chunks is given whole."""
    while True:
        first = await reader.readline()
        if not first:
            raise asyncio.IncompleteReadError(b"", None)
        status = int(first.decode("latin-1").split(" ", 2)[1])
        headers = await _read_headers(reader)
        if status >= 200:
            break
    announced = header_of(headers, "content-length")
    if method == "HEAD" or status in BODILESS:
        return Answer(status, headers, b"", None if announced is None else int(announced))
    body = await _read_body(reader, headers, until_close=True)
    kept = tuple((name, value) for name, value in headers if name.lower() != "transfer-encoding")
    return Answer(status, kept, body, len(body))


async def _read_headers(reader: asyncio.StreamReader) -> tuple[tuple[str, str], ...]:
    found = []
    while line := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
        name, _, value = line.partition(":")
        found.append((name, value.strip()))
    return tuple(found)


async def _read_body(reader: asyncio.StreamReader, headers: Sequence[tuple[str, str]], until_close: bool) -> bytes:
    if (header_of(headers, "transfer-encoding") or "").lower() == "chunked":
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await _read_headers(reader)  # trailers
        return body
    length = header_of(headers, "content-length")
    if length is None:
        return await reader.read() if until_close else b""
    return await reader.readexactly(int(length))


async def write_answer(writer: asyncio.StreamWriter, request: Request, answer: Answer) -> bool:
    """Send an answer; False when the connection ended with it: the body was shorter than announced."""
    announced = len(answer.body) if answer.announced_bytes is None else answer.announced_bytes
    headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
    if answer.status not in BODILESS:
        headers.append(("Content-Length", str(announced)))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    body = b"" if request.method == "HEAD" or answer.status in BODILESS else answer.body
    writer.write(f"HTTP/1.1 {answer.status} Faulty\r\n{head}\r\n".encode("latin-1") + body)
    await writer.drain()
    if request.method == "HEAD" or answer.status in BODILESS or len(body) == announced:
        return True
    with contextlib.suppress(OSError):
        writer.write_eof()
    return False


def with_body(answer: Answer, body: bytes) -> Answer:
    """The same answer with another body, announced as it is."""
    return replace(answer, body=body, announced_bytes=len(body))
