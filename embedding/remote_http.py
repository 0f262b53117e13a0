"""One server that speaks `/v1/embeddings`: requests with limits, retries, and a key that only it gets.

Takes: a name, settings. Gives: the bytes of an answer, or an error by what is to be done. Owns: time-outs, back-off, the size of an answer.
Never: follows a redirect, reads more than an answer may have, shows the key, or takes "not now" for "never".
"""

from __future__ import annotations

import json
import logging
import random
import re
import ssl
import threading

import certifi
import urllib3
from urllib3.exceptions import HTTPError

from contracts.clock import Clock, SystemClock
from contracts.errors import SettingsError, UnavailableError
from contracts.settings import Settings
from embedding.remote_name import RemoteName

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
MAX_ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2
MOST_PAUSE_SECONDS = 5.0
_CHUNK_BYTES = 65_536
_SHOWN_CHARACTERS = 200
_REFUSALS = frozenset({400, 413, 414, 415, 422})
"""Answers that may be about the input; the caller finds out whether they are."""
_PASSING = frozenset({402, 408, 409, 425, 429})
"""Answers below 500 after which the same request may succeed later; 402 is an account that waits for money."""


class RefusedError(Exception):
    """The server refuses this request with a 4xx that may be about its input."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.reason = reason
        """What the server says, shortened; it may quote the input."""


class EmbeddingServer:
    """POSTs to one server; thread-safe.

    Parameters
    ----------
    name : RemoteName
        Where it is.
    settings : Settings
        ``encoder_keys``, ``encoder_timeout_seconds``, ``encoder_requests``.
    clock : Clock, optional
        Times the pauses between attempts.

    Raises
    ------
    SettingsError
        A key in ``encoder_keys`` stands under something that is no origin.
    """

    def __init__(self, name: RemoteName, settings: Settings, clock: Clock | None = None) -> None:
        self.where = f"{name.url}/embeddings"
        self._clock = clock or SystemClock()
        self._seconds = settings.encoder_timeout_seconds
        self._key = _key_for(name, settings)
        tls = {"ssl_context": _tls_context()} if name.url.startswith("https:") else {}
        self._pool = urllib3.connection_from_url(name.url, maxsize=settings.encoder_requests, block=False, retries=False, **tls)
        self._path = urllib3.util.parse_url(self.where).request_uri

    def post(self, body: bytes, most_bytes: int) -> bytes:
        """Send one request, again after what passes; give the body of its answer.

        Raises
        ------
        RefusedError
            The server refuses the request, perhaps for its input.
        SettingsError
            The key, path or model is refused, or the server redirects.
        UnavailableError
            It does not answer, or not with an answer, after `MAX_ATTEMPTS`.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            try:
                status, data, asked_pause = self._once(body, most_bytes)
            except (HTTPError, OSError) as error:
                cause = type(error).__name__
            else:
                if status == 200:
                    return data
                self._raise_for(status, data)
                cause, pause = f"HTTP {status}", max(pause, asked_pause)
            if attempt < MAX_ATTEMPTS:
                logger.debug("remote encoder is asked again", extra={"url": self.where, "cause": cause, "attempt": attempt})
                self._clock.wait(threading.Event(), min(pause, MOST_PAUSE_SECONDS))
        raise UnavailableError(f"the remote encoder {self.where} does not answer ({cause})", hint="check the server; the request is sent again later")

    def _once(self, body: bytes, most_bytes: int) -> tuple[int, bytes, float]:
        """Status, body and the pause that the server asks for, of one request on the wire."""
        headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        ends_at = self._clock.monotonic_seconds() + self._seconds
        timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_SECONDS, self._seconds), read=self._seconds)
        response = self._pool.urlopen(
            "POST",
            self._path,
            body=body,
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=timeout,
        )
        try:
            data = self._read(response, most_bytes, ends_at)
        except BaseException:
            response.close()  # what is left of the answer is not waited for
            raise
        response.release_conn()
        asked = response.headers.get("retry-after", "")
        return response.status, data, float(asked) if asked.isdecimal() and len(asked) < 6 else 0.0

    def _read(self, response: urllib3.BaseHTTPResponse, most_bytes: int, ends_at: float) -> bytes:
        data = bytearray()
        while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
            data += chunk
            if len(data) > most_bytes:
                raise UnavailableError(
                    f"the remote encoder {self.where} answers with more than {most_bytes} bytes", hint="check what serves this URL"
                )
            if self._clock.monotonic_seconds() > ends_at:
                raise UnavailableError(f"the remote encoder {self.where} takes longer than {self._seconds:g} s", hint="raise encoder_timeout_seconds")
        return bytes(data)

    def _raise_for(self, status: int, data: bytes) -> None:
        """Raise for what no second attempt can change; return for what passes."""
        if status in _REFUSALS:
            raise RefusedError(status, self._shown(data))
        if status in _PASSING or status >= 500:
            return
        if status in (401, 403):
            given = "the key of HEADWATER_ENCODER_KEYS for it" if self._key else "no key"
            raise SettingsError(f"the remote encoder {self.where} refuses {given} (HTTP {status})", hint="set HEADWATER_ENCODER_KEYS for its origin")
        if 300 <= status < 400:
            raise SettingsError(f"the remote encoder {self.where} redirects (HTTP {status})", hint="name the final URL; redirects are not followed")
        raise SettingsError(
            f"the remote encoder {self.where} answers HTTP {status}: {self._shown(data) or 'nothing'}",
            hint="check path and model; the URL ends before /embeddings, often in /v1",
        )

    def _shown(self, data: bytes) -> str:
        """What an error's body says, shortened, printable and without the key."""
        text = data[:4096].decode("utf-8", "replace")
        try:
            said = json.loads(data)
            error = said.get("error", said)
            text = str(error.get("message") or error.get("detail") or text) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        if self._key:
            text = text.replace(self._key, "***")
        return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN_CHARACTERS]


def _key_for(name: RemoteName, settings: Settings) -> str:
    """The key for the server's origin; an origin is compared whole, so that a key never goes to another host or port."""
    for origin in settings.encoder_keys:
        if not re.fullmatch(r"https?://[^/?#@\s]+/?", origin):
            raise SettingsError(
                "encoder_keys has a key under something that is no origin", hint='write {"https://HOST[:PORT]": "KEY"}, without a path'
            )
    found = {origin.rstrip("/").lower(): key for origin, key in settings.encoder_keys.items()}.get(name.origin.lower())
    return "" if found is None else found.get_secret_value()


def _tls_context() -> ssl.SSLContext:
    """The system's certificate authorities; certifi's where a slim image has none."""
    paths = ssl.get_default_verify_paths()
    has_system = paths.cafile is not None or paths.capath is not None
    return ssl.create_default_context(cafile=None if has_system else certifi.where())
