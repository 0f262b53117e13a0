"""Where a system test runs: a SQLite log with a folder store, or the Kafka and MinIO of `make stack`, each with names of its own.

Takes: a kind and a temporary folder. Gives: the environment of the processes, engines for the test itself. Owns: topics and buckets that it made.
Never: touches a topic or bucket of anybody else, or stops the stack.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minio import Minio
from minio.error import S3Error

from backends.catalog.admin import delete_collection
from backends.catalog.collections import CollectionCatalog
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.errors import NotFoundError
from contracts.log import TopicSpec
from contracts.settings import Settings, load_settings
from headwater.wiring import open_engines

STACK_ENV = Path(__file__).resolve().parents[2] / "deploy" / "local" / "stack.env"
KINDS = ("sqlite", "kafka")


class StackMissingError(Exception):
    """Kafka and MinIO of `make stack` do not answer."""


@dataclass
class Site:
    """A log and a store for one test. `environment` holds the ``HEADWATER_*`` variables that processes are started with."""

    kind: str
    folder: Path
    environment: dict[str, str]
    topics: list[str] = field(default_factory=list)

    def settings(self) -> Settings:
        """The settings as the test's own process reads them."""
        return load_settings(**{name.removeprefix("HEADWATER_").lower(): value for name, value in self.environment.items()})

    @contextmanager
    def engines(self) -> Iterator[Engines]:
        with open_engines(self.settings()) as engines:
            yield engines

    def collection(self, name: str) -> CollectionRecord:
        with self.engines() as engines:
            return CollectionCatalog(engines.store).get(name)

    def new_topic(self, partitions: int) -> str:
        """A fresh topic that belongs to no collection."""
        name = f"system-test.{uuid.uuid4().hex[:12]}"
        with self.engines() as engines:
            engines.log.create_topic(TopicSpec(name, partitions, retention_ms=-1))
        self.topics.append(name)
        return name


def unique(name: str) -> str:
    """A collection name that nobody else uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stack_environment() -> dict[str, str]:
    """Variables of `make stack`; StackMissingError where broker or store do not answer."""
    if not STACK_ENV.exists():
        raise StackMissingError("no Kafka and MinIO: run `make stack`")
    found = dict(line.split("=", 1) for line in STACK_ENV.read_text().splitlines() if line)
    for url in (found["HEADWATER_LOG_URL"], found["HEADWATER_STORE_URL"]):
        host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except OSError as error:
            raise StackMissingError(f"{host}:{port} does not answer: run `make stack`") from error
    return found


def cache_of_run(folder: Path) -> Path:
    """One cache for all tests of a pytest run: converting `lite`'s networks takes a minute of a busy core, and each site would do so anew."""
    base = next((parent for parent in folder.parents if re.fullmatch(r"pytest-\d+", parent.name)), folder)
    return base / "cache"


@contextmanager
def open_site(kind: str, folder: Path, **settings: object) -> Iterator[Site]:
    """A site with its own file and folder, or its own bucket; what it made in the stack is deleted at the end.

    Parameters
    ----------
    kind : {"sqlite", "kafka"}
        SQLite log and folder store, or Kafka and MinIO.
    folder : Path
        For data and caches.
    settings
        More settings, by name.
    """
    common = {"HEADWATER_CACHE_DIR": str(cache_of_run(folder))} | {f"HEADWATER_{name.upper()}": str(value) for name, value in settings.items()}
    if kind == "sqlite":
        urls = {"HEADWATER_LOG_URL": f"sqlite:///{folder / 'log.sqlite'}", "HEADWATER_STORE_URL": f"file:///{folder / 'store'}"}
        yield Site(kind, folder, urls | common)
        return
    found = stack_environment()
    store = found["HEADWATER_STORE_URL"]
    found["HEADWATER_STORE_URL"] = f"{store.rpartition('/')[0]}/headwater-system-{uuid.uuid4().hex[:12]}"
    site = Site(kind, folder, found | common)
    try:
        yield site
    finally:
        _clean(site)


def _clean(site: Site) -> None:
    with site.engines() as engines:
        names: Sequence[str] = [record.name for record in CollectionCatalog(engines.store).list()]
        for name in names:
            try:
                delete_collection(engines, name)
            except NotFoundError:
                continue
        for topic in site.topics:
            engines.log.delete_topic(topic)
    settings = site.settings()
    endpoint, _, bucket = settings.store_url.partition("://")[2].partition("/")
    client = Minio(endpoint, settings.store_access_key, settings.store_secret_key.get_secret_value(), secure=False)
    for found in client.list_objects(bucket, recursive=True):
        client.remove_object(bucket, str(found.object_name))
    try:
        client.remove_bucket(bucket)
    except S3Error as error:
        if error.code != "BucketNotEmpty":  # an object of a process that ended a moment ago
            raise
