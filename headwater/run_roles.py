"""Runs roles as threads of one process: `up`, `demo`, and `run` with its single role.

Takes: engines, role names. Gives: running roles. Owns: their threads, the stop event, signals while it waits.
Never: lets a role die unnoticed: the first fatal error stops the others and is raised.
"""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType, TracebackType
from typing import Literal, Self

from prometheus_client import start_http_server

from contracts.engines import Engines
from contracts.errors import HeadwaterError, SettingsError, UnavailableError

logger = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter while others wait; Python's own 5 ms is what each of a small record's many short calls into
Arrow, SQLite or torch then waits for (measured embedded at 250 one-row records a second with a busy reader: docs/benchmarks.md), and a query, which
needs the interpreter four times on its way, beside whatever loads segments."""

RoleName = Literal["embed", "index", "archive", "maintain", "query"]
Role = Callable[[threading.Event], None]


def role(
    name: RoleName,
    engines: Engines,
    collections: Sequence[str] | None = None,
    on_ready: Callable[[int], None] | None = None,
    *,
    is_alone: bool = False,
) -> Role:
    """Function that runs a role until its event is set.

    Parameters
    ----------
    name : {"embed", "index", "archive", "maintain", "query"}
        Which role.
    engines : Engines
        What it works with.
    collections : Sequence of str, optional
        Which collections; all of them, new ones too, where it is None. The query role always serves all.
    on_ready : callable, optional
        The query role calls it with its port once it listens.
    is_alone : bool
        The process has no other role: all but query end with an error once every collection is stopped.

    Raises
    ------
    SettingsError
        The packages of this role are not installed.
    """
    try:
        if name == "embed":
            from indexer.embed_role import run_embed

            return lambda stop: run_embed(engines, collections, stop, is_alone=is_alone)
        if name == "index":
            from indexer.index_role import run_index

            return lambda stop: run_index(engines, collections, stop, is_alone=is_alone)
        if name == "archive":
            from indexer.archive_role import run_archive

            return lambda stop: run_archive(engines, collections, stop, is_alone=is_alone)
        if name == "maintain":
            from indexer.maintain_role import run_maintain

            return lambda stop: run_maintain(engines, collections, stop, is_alone=is_alone)
        from query.query_role import run_query

        return lambda stop: run_query(engines, stop, on_ready)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("indexer", "query", "embedding", "vectors", "backends", "contracts"):
            raise  # a module of our own is missing: a broken installation, not a missing extra
        extra = "query" if name == "query" else "indexer"
        raise SettingsError(f"role {name} needs the package {error.name}", hint=f"pip install 'headwater[{extra}]'") from error


class RoleRunner:
    """A set of roles, each in its thread. A context: leaving it stops them.

    Parameters
    ----------
    roles : Mapping of str to Role
        Functions by name; a role that returns before it is told to stop counts as failed.
    stop_seconds : float
        How long the roles may take to stop.
    """

    def __init__(self, roles: Mapping[str, Role], stop_seconds: float) -> None:
        self._stop_seconds = stop_seconds
        self._stop = threading.Event()
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()  # unlike Event.set, its put may be called in a signal handler
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(name, run), name=f"role-{name}", daemon=True) for name, run in roles.items()]

    def _run(self, name: str, run: Role) -> None:
        try:
            run(self._stop)
            if not self._stop.is_set():
                raise HeadwaterError(f"role {name} ended although nobody stopped it", hint="look at its log")
        except BaseException as error:  # noqa: BLE001 - kept for the caller's thread, which raises it
            self._errors.append(error)
            logger.info("role failed", extra={"role": name, "error": str(error)})
        finally:
            self._ended.put(name)

    def __enter__(self) -> Self:
        sys.setswitchinterval(SWITCH_SECONDS)
        for thread in self._threads:
            thread.start()
        return self

    def check(self) -> None:
        """Raise the first error of any role."""
        if self._errors:
            raise self._errors[0]

    def wait(self) -> None:
        """Block until SIGINT or SIGTERM comes or a role fails; raises the role's error. Call it in the main thread."""
        with self._signals():
            while True:
                try:
                    self._ended.get(timeout=1.0)
                except queue.Empty:
                    continue
                self.check()
                return

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._ended.put(signal.Signals(number).name)
            signal.signal(number, before[signal.Signals(number)])  # a second one ends the process at once

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        late, deadline = [], monotonic() + self._stop_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                late.append(thread.name.removeprefix("role-"))
        if kind is not None:
            return
        self.check()
        if late:
            raise HeadwaterError(
                f"roles {', '.join(late)} did not stop within {self._stop_seconds:g} s",
                hint="what they had not committed is done again at the next start; raise HEADWATER_STOP_SECONDS",
            )


@contextmanager
def served_metrics(engines: Engines) -> Iterator[int | None]:
    """Serve ``/metrics`` on ``settings.metrics_port`` while the context lasts; gives the port, or None where no port is set."""
    settings = engines.settings
    if settings.metrics_port is None:
        yield None
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, engines.metrics.registry)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot listen on {settings.metrics_host}:{settings.metrics_port}: {error.strerror}",
            hint="set HEADWATER_METRICS_PORT to a free port",
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
