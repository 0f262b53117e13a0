"""Fixtures: an in-memory stack, workers that settle a collection, and the mode of the library that reads schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ulid import ULID

from backends.open_log import open_log
from backends.open_store import open_store
from contracts.collection import CollectionRecord
from contracts.engines import Engines
from contracts.settings import load_settings
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import eventually, running
from tests.system.accounts import read_checkpoint


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python 3.0.12 reads its schemas with importlib.resources in a way that Python 3.11 and 3.12 call deprecated.
    config.addinivalue_line("filterwarnings", r"ignore:(read_text|open_text) is deprecated:DeprecationWarning")


@pytest.fixture
def engines() -> Iterator[Engines]:
    name = str(ULID())
    settings = load_settings(log_url=f"memory://{name}", store_url=f"memory://{name}", seal_seconds=0.1, embed_watchdog_seconds=0.2)
    made = Engines(settings, open_log(settings), open_store(settings))
    yield made
    made.log.close()
    made.store.close()


@pytest.fixture
def settle(engines: Engines) -> Callable[[CollectionRecord], None]:
    """Run an embed worker and a builder until everything in a collection's topic is committed."""

    def wait(record: CollectionRecord) -> None:
        heads = {partition: held.next_offset for partition, held in engines.log.bounds(record.source_topic).items()}
        workers = [EmbedWorker(engines, record, record.index(), None), BuildWorker(engines, record, record.index())]
        with running(*(worker.run for worker in workers)):
            eventually(lambda: all(read_checkpoint(engines, record, p) >= head for p, head in heads.items()), 30)

    return wait
