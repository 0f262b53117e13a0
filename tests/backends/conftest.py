"""Logs for the contract tests: one parametrised fixture, and the broker of the local stack."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.open_log import open_log
from contracts.log import Log, TopicSpec
from contracts.settings import Settings, load_settings

STACK_ENV = Path(__file__).resolve().parents[2] / "deploy" / "local" / "stack.env"


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python 3.0.12 reads its schemas with importlib.resources in a way that Python 3.11 and 3.12 call deprecated.
    config.addinivalue_line("filterwarnings", r"ignore:(read_text|open_text) is deprecated:DeprecationWarning")


@pytest.fixture(scope="session")
def kafka_url() -> str:
    """Address of the local stack's broker; the test is skipped where the stack does not run."""
    if not STACK_ENV.exists():
        pytest.skip("no broker: run `make stack`")
    lines = (line.partition("=") for line in STACK_ENV.read_text().splitlines())
    url = {name.strip(): value.strip() for name, _, value in lines}.get("HEADWATER_LOG_URL", "")
    host, _, port = url.removeprefix("kafka://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        pytest.skip("the broker of deploy/local/stack.env does not answer: run `make stack`")
    return url


@pytest.fixture(scope="session")
def kafka_settings(kafka_url: str) -> Settings:
    return load_settings(log_url=kafka_url, kafka_replication=1)


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    if request.param == "kafka":
        settings = request.getfixturevalue("kafka_settings")
    elif request.param == "sqlite":
        settings = load_settings(log_url=f"sqlite:///{tmp_path / 'folder' / 'log.sqlite'}")
    else:
        settings = load_settings(log_url="memory://")
    opened = open_log(settings)
    yield opened
    opened.close()


@pytest.fixture
def topic(log: Log) -> Iterator[str]:
    """A fresh topic of two partitions that keeps its records; deleted afterwards."""
    name = f"headwater-test.{uuid.uuid4().hex}"
    log.create_topic(TopicSpec(name, partitions=2, retention_ms=-1, max_record_bytes=8 * 1024 * 1024))
    yield name
    log.delete_topic(name)
