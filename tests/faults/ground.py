"""The ground that faults stand on: a Kafka and a MinIO of their own on free ports, and one query service that all faults share.

Takes: a folder. Gives: the environment of processes; servers that can be killed, stopped and started again. Owns: both servers and their data.
Never: touches the stack of `make stack`, or any other process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self
from unittest import mock

from deploy.local import services, stack
from deploy.local.processes import ProcessRecord, end, load_record
from deploy.local.services import HOST
from tests.system.processes import Process, role
from tests.system.sites import Site, free_port

CACHE = Path.home() / ".cache/headwater/stack"
BUCKET = "faults"


FAULTY_LINES = 4
"""Listeners of the broker that tell their clients to connect to a proxy (`tests.faults.lines`); one trial at a time uses each."""


def with_faulty_listeners(properties: str, ports: Mapping[str, int]) -> str:
    """A broker's ``server.properties`` with listeners at ports ``behind0`` ... that tell their clients to connect to ports ``faulty0`` ..."""
    numbers = range(FAULTY_LINES)
    more = {
        "listeners": "".join(f",FAULTY{n}://{HOST}:{ports[f'behind{n}']}" for n in numbers),
        "advertised.listeners": "".join(f",FAULTY{n}://{HOST}:{ports[f'faulty{n}']}" for n in numbers),
        "listener.security.protocol.map": "".join(f",FAULTY{n}:PLAINTEXT" for n in numbers),
    }
    return "".join(f"{line}{more.get(line.partition('=')[0], '')}\n" for line in properties.splitlines())


def _silent(line: str) -> None:
    """Progress of the servers' start, which a run does not show."""


class Ground:
    """Servers and their data under `folder`; a context."""

    def __init__(self, folder: Path, say: Callable[[str], None] = _silent) -> None:
        self.folder, self._say = folder, say
        self.ports: dict[str, int] = {}
        self.query: Process | None = None
        self.free_lines: SimpleQueue[int] = SimpleQueue()
        for number in range(FAULTY_LINES):
            self.free_lines.put(number)
        self._query_lock = threading.Lock()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("kafka", "minio", *(f"{side}{number}" for side in ("behind", "faulty") for number in range(FAULTY_LINES))):
            self.ports[name] = free_port()
        try:
            self.start()
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end_all()

    def end_query(self) -> None:
        """End the query service where it runs."""
        if self.query is not None:
            self.query.end()

    def _end_all(self) -> None:
        self.end_query()
        found = [record for name in ("kafka", "minio") if (record := load_record(self._run_dir, name)) is not None]
        for record in found:
            os.kill(record.pid, signal.SIGCONT)  # a stopped one would not hear SIGTERM
        end(found, self._run_dir)

    @property
    def _run_dir(self) -> Path:
        return self.folder / "run"

    def start(self) -> None:
        """Start what does not run, on the same ports, and wait until it serves; the broker has a second listener, for `tests.faults.lines`."""
        ordinary = services.kafka_properties
        with mock.patch.object(services, "kafka_properties", lambda *given: with_faulty_listeners(ordinary(*given), self.ports)):
            stack.start(self.folder, CACHE, self.ports, self._say)

    def server(self, name: str) -> ProcessRecord:
        """The running ``kafka`` or ``minio``."""
        record = load_record(self._run_dir, name)
        assert record is not None, f"{name} does not run"
        self.ports[name] = record.port
        return record

    def kill(self, name: str) -> None:
        """``kill -9`` a server, and wait until it is gone."""
        record = self.server(name)
        os.kill(record.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while record.is_running():
            assert time.monotonic() < deadline, f"{name} survived SIGKILL"
            time.sleep(0.02)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a server a signal, such as SIGSTOP."""
        os.kill(self.server(name).pid, number)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A server that takes connections and answers nothing, while the context lasts."""
        self.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(name, signal.SIGCONT)

    def environment(self) -> dict[str, str]:
        """``HEADWATER_*`` variables of processes on this ground."""
        found = dict(line.split("=", 1) for line in (self.folder / "stack.env").read_text().splitlines() if line)
        found["HEADWATER_STORE_URL"] = f"{found['HEADWATER_STORE_URL'].rpartition('/')[0]}/{BUCKET}"
        return found

    def site(self, folder: Path, **settings: object) -> Site:
        """Log and store of this ground as a site whose processes run in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        common = {"HEADWATER_CACHE_DIR": str(self.folder / "cache")} | {f"HEADWATER_{name.upper()}": str(value) for name, value in settings.items()}
        return Site("kafka", folder, self.environment() | common)

    def query_service(self) -> Process:
        """The query service of all collections, started where it does not run."""
        with self._query_lock:
            return self._query_service()

    def _query_service(self) -> Process:
        if self.query is not None and self.query.is_running():
            return self.query
        if self.query is None:
            self.query = role("query", self.site(self.folder / "query", query_poll_seconds=2.0, max_limit=100_000))
        else:
            self.query.end()
        self.query.start()
        self.query.wait_ready()
        return self.query
