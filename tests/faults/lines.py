"""Lines between one role and the log or the store that a fault may spoil; everybody else has lines of their own.

Takes: a trial. Gives: proxies, the settings of a role that goes through them, and a supervisor. Owns: the proxies' end, which is the trial's.
Never: touches the line of the load or of the checker: the oracle meets no fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tests.faults.ground import BUCKET
from tests.faults.http_proxy import HttpProxy, Rule
from tests.faults.tcp_proxy import HOST, Proxy, TcpProxy
from tests.faults.trial import Trial
from tests.system.processes import Process, until

P = TypeVar("P", bound=Proxy)

RESTART_SECONDS = 1.0
"""What a supervisor waits before it starts an ended role again."""


LINE_SECONDS = 600.0
"""How long a trial may wait until another has given its line to the broker back."""


def log_line(trial: Trial) -> TcpProxy:
    """A line to the broker: it listens where one of the broker's listeners ``FAULTY`` tells its clients to connect."""
    ground = trial.ground
    number = ground.free_lines.get(timeout=LINE_SECONDS)
    trial.stack.callback(ground.free_lines.put, number)
    return trial.stack.enter_context(ended(TcpProxy((HOST, ground.ports[f"behind{number}"]), ground.ports[f"faulty{number}"])))


def store_line(trial: Trial) -> TcpProxy:
    """A line to the store that knows nothing of HTTP."""
    return trial.stack.enter_context(ended(TcpProxy((HOST, trial.ground.ports["minio"]))))


def store_proxy(trial: Trial, *rules: Rule) -> HttpProxy:
    """A line to the store with rules."""
    proxy = trial.stack.enter_context(ended(HttpProxy((HOST, trial.ground.ports["minio"]))))
    proxy.rules = list(rules)
    return proxy


@contextmanager
def ended(proxy: P) -> Iterator[P]:
    try:
        yield proxy
    finally:
        proxy.close()


def through(*, log: TcpProxy | None = None, store: Proxy | None = None) -> dict[str, Any]:
    """Settings of a role that uses these lines."""
    found: dict[str, Any] = {}
    if log is not None:
        found["log_url"] = f"kafka://{log.address}"
    if store is not None:
        found["store_url"] = f"s3://{store.address}/{BUCKET}"
    return found


@contextmanager
def supervised(trial: Trial, most: int | None = None) -> Iterator[list[str]]:
    """Start ended roles again, as systemd or Kubernetes would, while the context lasts; gives the ends that it saw.

    Afterwards all roles run and are ready. More than `most` ends are a crash loop, and a failure.
    """
    seen: list[str] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            for process in list(trial.roles.values()):
                with suppress(AssertionError):  # it is being replaced by the fault itself
                    code = process.has_died()
                    if code is not None:
                        seen.append(f"{process.name} ended with {code}: {last_error(process.stderr())}")
                        is_over.wait(RESTART_SECONDS)
                        process.start()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
        until(lambda: all(process.is_running() for process in trial.roles.values()), 30, "all roles run again")
        for process in trial.roles.values():
            wait_ready(process)
    finally:
        is_over.set()
        thread.join(30)
    if seen:
        trial.note(f"{len(seen)} restarts: {'; '.join(sorted(set(seen)))[:600]}")
    assert most is None or len(seen) <= most, f"{len(seen)} restarts: {seen[-3:]}"


def wait_ready(process: Process, seconds: float = 90.0) -> None:
    """Wait until a process that may be started again meanwhile is ready; a query node is never, while another trial's collection is damaged."""
    is_node = "HEADWATER_QUERY_PORT" in process.variables
    deadline = time.monotonic() + seconds
    while not (process.is_running() if is_node else process._is_ready()):
        assert time.monotonic() < deadline, f"{process.name} is not ready within {seconds:g} s"
        time.sleep(0.1)


def last_error(stderr: str) -> str:
    """The line with which a command says why it ended."""
    errors = [line for line in stderr.splitlines() if line.startswith(("error: ", "MemoryError", "OSError"))]
    return errors[-1][:300] if errors else ""
