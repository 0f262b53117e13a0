"""Sites for system tests: one parametrised fixture, embedded and on the local stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.sites import Site, StackMissingError, open_site

SEAL_SECONDS = 2.0
STACK_MARKS = (pytest.mark.kafka, pytest.mark.minio)


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python 3.0.12 reads its schemas with importlib.resources in a way that Python 3.11 and 3.12 call deprecated.
    config.addinivalue_line("filterwarnings", r"ignore:(read_text|open_text) is deprecated:DeprecationWarning")


def site_of(kind: str, folder: Path) -> Iterator[Site]:
    try:
        with open_site(kind, folder, seal_seconds=SEAL_SECONDS) as site:
            yield site
    except StackMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=STACK_MARKS)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """SQLite log and folder store, then Kafka and MinIO."""
    yield from site_of(request.param, tmp_path)


@pytest.fixture
def stack_site(tmp_path: Path) -> Iterator[Site]:
    """Kafka and MinIO."""
    yield from site_of("kafka", tmp_path)


@pytest.fixture
def embedded_site(tmp_path: Path) -> Iterator[Site]:
    """SQLite log and folder store."""
    yield from site_of("sqlite", tmp_path)
