"""Fixtures: an in-memory stack, workers that settle a collection, and the mode of the library that reads schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from indexer.build_worker import BuildWorker
from indexer.embed_worker import EmbedWorker
from tests.indexer.conftest import eventually, running
from tests.memory_engines import memory_engines
from tests.system.accounts import read_checkpoint


@pytest.fixture
def engines() -> Iterator[Engines]:
    with memory_engines() as made:
        yield made


@pytest.fixture
def settle(engines: Engines) -> Callable[[CollectionRecord], None]:
    """Run an embed worker and a builder until everything in a collection's topic is committed."""

    def wait(record: CollectionRecord) -> None:
        heads = {partition: held.next_offset for partition, held in engines.log.bounds(record.source_topic).items()}
        workers = [EmbedWorker(engines, record, record.index(), None), BuildWorker(engines, record, record.index())]
        with running(*(worker.run for worker in workers)):
            eventually(lambda: all(read_checkpoint(engines, record, p) >= head for p, head in heads.items()), 30)

    return wait
