"""The query role as a process of its own over a collection of own vectors, and a caller that keeps its connection.

The log is an SQLite file and the store a folder, so that segments, manifests and notices are written here while the role serves there.

Takes: a generation. Gives: `Served`, `Caller`. Owns: the process, its folder. Never: parses an answer inside of what is timed.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.own_rows import OwnRows
from bench.places import Place, open_place
from bench.processes import BenchProcess, cli, wait_until
from contracts.errors import UnavailableError
from contracts.generation import Generation
from headwater.client import HeadwaterClient
from headwater.wiring import open_engines

REST_SECONDS = 3.0
"""After the role is ready: what it does once, behind the first answers (a graph over the centroids)."""


@dataclass(slots=True)
class Served:
    """A collection, and where it is served; `process` is there while it is."""

    rows: OwnRows
    place: Place
    process: BenchProcess | None = None

    @property
    def pids(self) -> list[int]:
        """Of the role, while it runs."""
        return [] if self.process is None else [self.process.pid]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the query role until the context ends; it has loaded everything that was committed."""
        with BenchProcess("query", cli("run", "query"), self.place.values, self.place.folder) as self.process:
            with HeadwaterClient(self.place.url, timeout_seconds=5.0) as client:
                wait_until(client.ready, "readiness of the query service", [self.process])
            time.sleep(REST_SECONDS)
            yield
        self.process = None

    def caller(self) -> Caller:
        """A new connection."""
        return Caller(self.place.settings.query_port, self.rows.record.name)


@contextmanager
def served_rows(generation: Generation) -> Iterator[Served]:
    """A collection with a generation (`bench.trained`); all of it is gone when the context ends."""
    with open_place("embedded") as place, open_engines(place.settings) as engines:
        yield Served(OwnRows(engines, generation, {}), place)


def body_of(query: NDArray[np.float32], limit: int, **params: Any) -> bytes:
    """Bytes of a request for the closest points of a vector, shape (d,)."""
    return json.dumps({"query": query.tolist(), "limit": limit} | ({"params": params} if params else {})).encode()


class Caller:
    """One kept-alive connection; not thread-safe."""

    def __init__(self, port: int, collection: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._path = f"/collections/{collection}/points/query"

    def ask(self, body: bytes) -> bytes:
        """The answer's bytes; UnavailableError where the service refused."""
        self._connection.request("POST", self._path, body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise UnavailableError(f"the query service answered {response.status}: {data[:300]!r}", hint="look at its log")
        return data

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
