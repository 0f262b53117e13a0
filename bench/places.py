"""Where a workload runs: `embedded` (one process, SQLite log, folder store) or `kafka` (three processes on Kafka and MinIO of `make stack`).

Takes: a temporary folder, deploy/local/stack.env. Gives: a running `Place`. Owns: its processes, its folder or its bucket; all of it goes afterwards.
Never: touches the bucket or topics of others, or stops the stack.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from minio import Minio

from bench.processes import BenchProcess, cli, cpu_seconds, free_port, wait_until
from contracts.errors import HeadwaterError
from contracts.settings import Settings, load_settings
from headwater.client import HeadwaterClient

ROOT = Path(__file__).resolve().parents[1]
STACK_ENV = ROOT / "deploy" / "local" / "stack.env"
STACK_RUN = ROOT / "deploy" / "local" / "run"
PLACES = ("embedded", "kafka")
RESTING_CPU_SHARE = 0.25


@dataclass(slots=True)
class Place:
    """Somewhere that Headwater can run.

    Parameters
    ----------
    name : str
        ``embedded`` or ``kafka``.
    folder : Path
        Temporary; processes run in it.
    values : Mapping of str to str
        Settings that differ from the defaults, for processes.
    settings : Settings
        The same, for this process.
    servers : Mapping of str to int
        Pids of broker and store.
    processes : list of BenchProcess
        The roles, once `running`.
    """

    name: str
    folder: Path
    values: Mapping[str, str]
    settings: Settings
    servers: Mapping[str, int] = field(default_factory=dict)
    processes: list[BenchProcess] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where the query service listens."""
        return f"http://127.0.0.1:{self.settings.query_port}"

    @contextmanager
    def running(self, roles: Sequence[str] = ("embed", "index", "query")) -> Iterator[None]:
        """Start the roles (embedded: all there are), and wait until the query service serves every collection that exists now."""
        commands = {"up": ["up"]} if self.name == "embedded" else {name: ["run", name] for name in roles}
        with ExitStack() as stack:
            self.processes = [stack.enter_context(BenchProcess(name, cli(*words), self.values, self.folder)) for name, words in commands.items()]
            with HeadwaterClient(self.url, timeout_seconds=5.0) as client:
                wait_until(client.ready, "readiness of the query service", self.processes)
            yield
        self.processes = []

    def settle(self, limit_seconds: float = 60.0) -> bool:
        """Wait until the roles have rested for three seconds in a row (models load behind the first requests); False when time is over."""
        rested, deadline = 0, time.monotonic() + limit_seconds
        while rested < 3 and time.monotonic() < deadline:
            before = [cpu_seconds(process.pid) or 0.0 for process in self.processes]
            time.sleep(1.0)
            for process in self.processes:
                process.check()
            spent = [(cpu_seconds(process.pid) or 0.0) - then for process, then in zip(self.processes, before, strict=True)]
            rested = rested + 1 if max(spent) < RESTING_CPU_SHARE else 0
        return rested == 3

    def cpu(self) -> dict[str, float]:
        """CPU-seconds so far of each role, and of broker and store."""
        pids = {process.name: process.pid for process in self.processes} | dict(self.servers)
        return {name: spent for name, pid in pids.items() if (spent := cpu_seconds(pid)) is not None}


def stack_values() -> dict[str, str] | None:
    """Settings of the local stack, by field name; None where `make stack` has not been run."""
    try:
        lines = STACK_ENV.read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.removeprefix("HEADWATER_").lower(): value for name, _, value in pairs}


@contextmanager
def open_place(name: str) -> Iterator[Place]:
    """Make a place; everything that was made in it goes when the context ends.

    Raises
    ------
    UnavailableError
        Kafka or MinIO do not answer.
    """
    with _folder() as folder, ExitStack() as stack:
        values = {"query_port": str(free_port()), "cache_dir": str(folder / "cache")}
        servers: dict[str, int] = {}
        if name == "embedded":
            values |= {"log_url": f"sqlite:///{folder / 'log.sqlite'}", "store_url": f"file:///{folder / 'store'}"}
        else:
            values |= stack.enter_context(_own_bucket(stack_values() or {}))
            records = [STACK_RUN / "kafka.json", STACK_RUN / "minio.json"]
            servers = {path.stem: int(json.loads(path.read_text())["pid"]) for path in records if path.exists()}
        yield Place(name, folder, values, load_settings(**values), servers)


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder; after a failure it stays, for its logs."""
    folder = Path(tempfile.mkdtemp(prefix="headwater-bench-"))
    try:
        yield folder
    except HeadwaterError as error:
        raise type(error)(error.message, hint=f"{error.hint}; logs are in {folder}") from error
    else:
        shutil.rmtree(folder, ignore_errors=True)  # SQLite may be taking its own files away


@contextmanager
def _own_bucket(stack: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The stack's settings with a bucket of our own: a query service serves every collection of its bucket."""
    host = stack["store_url"].removeprefix("s3://").partition("/")[0]
    bucket = f"headwater-bench-{uuid4().hex[:12]}"
    client = Minio(endpoint=host, access_key=stack["store_access_key"], secret_key=stack["store_secret_key"], secure=False)
    client.make_bucket(bucket_name=bucket)
    try:
        yield dict(stack) | {"store_url": f"s3://{host}/{bucket}"}
    finally:
        for entry in client.list_objects(bucket_name=bucket, recursive=True):
            client.remove_object(bucket_name=bucket, object_name=str(entry.object_name))
        client.remove_bucket(bucket_name=bucket)
