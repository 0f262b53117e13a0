"""The Python client of the query service.

Takes: the service's URL. Gives: hits, points, counts, media. Owns: the mapping of HTTP errors to `contracts.errors`.
Never: reads the store or the log itself; needs neither torch nor faiss.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import urllib3

from contracts.errors import (
    CorruptError,
    DataLossError,
    FencedError,
    HeadwaterError,
    NotFoundError,
    SettingsError,
    SnapshotError,
    UnavailableError,
)

DEFAULT_URL = "http://127.0.0.1:8080"
_POLL_SECONDS = 0.05
_BY_CODE: dict[str, type[HeadwaterError]] = {
    kind.code: kind for kind in (CorruptError, DataLossError, FencedError, NotFoundError, SettingsError, SnapshotError, UnavailableError)
}


@dataclass(frozen=True, slots=True)
class Freshness:
    """How fresh an answer is.

    `offsets` maps a partition to the media offset that this node has seen; passed on as `min_offsets`, it makes reads monotonic. `versions` maps a
    partition to its manifest; `coverage` is the share of partitions that answered; `staleness_ms` how far the answer is behind the log.
    """

    offsets: Mapping[int, int] = field(default_factory=dict)
    versions: Mapping[int, int] = field(default_factory=dict)
    staleness_ms: float | None = None
    coverage: float | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Freshness:
        """Read the ``freshness`` object of an answer; a key is a partition, alone or after the last ``/``."""
        numbers = {
            name: {int(str(key).rpartition("/")[2]): int(number) for key, number in (value.get(name) or {}).items()}
            for name in ("offsets", "versions")
        }
        return cls(numbers["offsets"], numbers["versions"], value.get("staleness_ms"), value.get("coverage"))

    def reached(self, offsets: Mapping[int, int]) -> bool:
        """Tell whether this node has seen everything below `offsets`."""
        return all(self.offsets.get(partition, 0) >= offset for partition, offset in offsets.items())


@dataclass(frozen=True, slots=True)
class Hit:
    """One point of an answer; a larger score is better, None where nothing was scored."""

    id: str
    score: float | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, point: Mapping[str, Any]) -> Hit:
        """Read one element of ``result.points``."""
        return cls(str(point["id"]), point.get("score"), point.get("payload") or {}, point.get("lineage"))


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Hits, best first, how fresh they are, and the seconds that the service took."""

    hits: Sequence[Hit]
    freshness: Freshness
    service_seconds: float


class HeadwaterClient:
    """Speaks to one query service over kept-alive connections. Thread-safe; a context.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8080``.
    timeout_seconds : float
        Longest wait for one answer.

    Examples
    --------
    >>> with HeadwaterClient("http://127.0.0.1:8080") as client:              # doctest: +SKIP
    ...     client.search("photos", text="a red bicycle", limit=5).hits[0].id
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_seconds: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise SettingsError(f"{url[:100]!r} is not the URL of a query service", hint=f"write it as {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._timeout = urllib3.Timeout(connect=min(5.0, timeout_seconds), read=timeout_seconds)
        # every call reads, so one more attempt is harmless where the service closed an idle connection
        self._pool = urllib3.PoolManager(maxsize=8, retries=urllib3.Retry(total=1, connect=0, read=1, redirect=0, allowed_methods=None))

    # ---- searching -------------------------------------------------------------------------------------------

    def search(
        self,
        collection: str,
        text: str | None = None,
        *,
        image: bytes | Path | None = None,
        vector: Sequence[float] | None = None,
        item_id: str | None = None,
        using: str | None = None,
        limit: int = 10,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - the word of the HTTP interface
        min_offsets: Mapping[int, int] | None = None,
        with_lineage: bool = False,
    ) -> SearchAnswer:
        """Search by text, picture, text and picture, vector, or the id of an indexed item.

        Parameters
        ----------
        collection : str
            Which collection.
        text, image, vector, item_id
            What to search for; text and image may come together, the others alone. `image` is an encoded picture or its path.
        using : str, optional
            Vector field; the service chooses where there is none.
        limit : int
            Most hits.
        filter : Mapping, optional
            Such as ``{"must": [{"key": ..., "match": {"value": ...}}]}``; docs/filters.md lists the conditions.
        min_offsets : Mapping of int to int, optional
            Answer only from a state that has seen these media offsets.
        with_lineage : bool
            Tell where each hit came from.

        Raises
        ------
        NotFoundError
            The collection, field or item does not exist.
        SettingsError
            The request is not valid.
        UnavailableError
            The service does not answer, or is not ready.
        """
        body: dict[str, Any] = {"query": _query(text, image, vector, item_id), "limit": limit, "with_payload": True}
        optional = {"using": using, "filter": filter, "with_lineage": with_lineage or None}
        body |= {name: value for name, value in optional.items() if value is not None}
        if min_offsets:
            body["consistency"] = {"min_offsets": {str(partition): offset for partition, offset in min_offsets.items()}}
        answer = self._post(f"{_path(collection)}/points/query", body)
        return SearchAnswer([Hit.of(point) for point in answer["result"]["points"]], _freshness(answer), float(answer.get("time", 0.0)))

    def count(self, collection: str, filter: Mapping[str, Any] | None = None) -> int:  # noqa: A002 - as in `search`
        """Number of live items, of those that pass the filter."""
        body = {} if filter is None else {"filter": filter}
        return int(self._post(f"{_path(collection)}/points/count", body)["result"]["count"])

    def scroll(
        self,
        collection: str,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - as in `search`
        page_size: int = 100,
    ) -> Iterator[Hit]:
        """Every live item that passes the filter, a page at a time."""
        offset: Any = None
        while True:
            body: dict[str, Any] = {"limit": page_size, "with_payload": True}
            body |= {name: value for name, value in (("offset", offset), ("filter", filter)) if value is not None}
            result = self._post(f"{_path(collection)}/points/scroll", body)["result"]
            yield from (Hit.of(point) for point in result["points"])
            offset = result.get("next_page_offset")
            if offset is None:
                return

    def point(self, collection: str, item_id: str) -> Hit:
        """One item by its id; NotFoundError where it is not live."""
        return Hit.of(self._json("GET", self._point_path(collection, item_id))["result"])

    def media(self, collection: str, item_id: str) -> bytes:
        """Bytes of an item's media as they were produced."""
        return self._request("GET", f"{self._point_path(collection, item_id)}/media").data

    def thumbnail(self, collection: str, item_id: str) -> bytes:
        """Small JPEG of an item's picture."""
        return self._request("GET", f"{self._point_path(collection, item_id)}/thumbnail").data

    # ---- state -----------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """Names of the collections that the service knows."""
        return [str(entry["name"]) for entry in self._json("GET", "/collections")["result"]["collections"]]

    def ready(self) -> bool:
        """Tell whether the service serves every collection."""
        try:
            return self._request("GET", "/readyz").status == 200
        except UnavailableError:
            return False

    def freshness(self, collection: str) -> Freshness:
        """How far the service has read the collection's media log."""
        return _freshness(self._post(f"{_path(collection)}/points/count", {}))

    def wait_for(self, collection: str, offsets: Mapping[int, int], timeout_seconds: float = 60.0) -> Freshness:
        """Wait until everything below `offsets` (such as `MediaProducer.next_offsets`) is searchable.

        Raises
        ------
        UnavailableError
            It is not in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self.freshness_or_nothing(collection)
            if found.reached(offsets):
                return found
            if time.monotonic() >= deadline:
                behind = sum(max(0, offset - found.offsets.get(partition, 0)) for partition, offset in offsets.items())
                raise UnavailableError(
                    f"{behind} records of {collection!r} are not searchable after {timeout_seconds:g} s",
                    hint="look at the logs of the embed and index roles, or wait longer",
                )
            time.sleep(_POLL_SECONDS)

    def freshness_or_nothing(self, collection: str) -> Freshness:
        """As `freshness`; a service finds a new collection a moment after it was made: until then it has seen nothing of it."""
        try:
            return self.freshness(collection)
        except NotFoundError:
            return Freshness()

    # ---- HTTP ------------------------------------------------------------------------------------------------

    @staticmethod
    def _point_path(collection: str, item_id: str) -> str:
        return f"{_path(collection)}/points/{quote(item_id, safe='')}"

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("POST", path, json.dumps(body).encode())

    def _json(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        response = self._request(method, path, body)
        try:
            answer = json.loads(response.data)
        except ValueError:
            raise UnavailableError(f"{self.url} did not answer as a query service does", hint="check the URL") from None
        if not isinstance(answer, dict) or "result" not in answer:
            raise UnavailableError(f"{self.url} did not answer as a query service does", hint="check the URL")
        return answer

    def _request(self, method: str, path: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse:
        headers = {"accept": "application/json, */*"} | ({} if body is None else {"content-type": "application/json"})
        try:
            response = self._pool.request(method, self.url + path, body=body, headers=headers, timeout=self._timeout)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise UnavailableError(
                f"the query service at {self.url} does not answer ({type(reason).__name__})",
                hint="start it with `headwater run query`, or give --url",
            ) from None
        if response.status >= 400:
            raise _error_of(response, self.url)
        return response

    def close(self) -> None:
        """Let go of connections."""
        self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _path(collection: str) -> str:
    return f"/collections/{quote(collection, safe='')}"


def _freshness(answer: Mapping[str, Any]) -> Freshness:
    return Freshness.of(answer.get("freshness") or {})


def _query(text: str | None, image: bytes | Path | None, vector: Sequence[float] | None, item_id: str | None) -> Any:
    given = [value is not None for value in (vector, item_id)] + [text is not None or image is not None]
    if sum(given) != 1:
        raise SettingsError("search takes a text and/or an image, or a vector, or an id", hint="give exactly one of them")
    if vector is not None:
        return [float(number) for number in vector]
    if item_id is not None:
        return item_id
    query: dict[str, Any] = {} if text is None else {"text": text}
    if image is not None:
        try:
            data = image.read_bytes() if isinstance(image, Path) else image
        except OSError as error:
            raise SettingsError(f"{image!s}: cannot be read: {error.strerror}", hint="name a readable picture") from None
        query["image"] = base64.b64encode(data).decode("ascii")
    return query


def _error_of(response: urllib3.BaseHTTPResponse, url: str) -> HeadwaterError:
    """Error of an answer: ``{"status": {"error": {"code", "message", "hint"}}}``, else by its status."""
    try:
        error = json.loads(response.data)["status"]["error"]
        code, message, hint = str(error.get("code") or ""), str(error.get("message") or ""), str(error.get("hint") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message, hint = "", "", ""
    kind = _BY_CODE.get(code) or _by_status(response.status)
    return kind(message or f"{url} answered {response.status}", hint=hint, code=code or None)


def _by_status(status: int) -> type[HeadwaterError]:
    if status == 404:
        return NotFoundError
    if status == 409:
        return SnapshotError
    if status in (408, 429, 502, 503, 504):
        return UnavailableError
    return SettingsError if status < 500 else HeadwaterError
