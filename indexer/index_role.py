"""The index role: a `BuildWorker` per index of a collection.

Takes: engines, collection names. Gives: running builders. Owns: nothing. Never: builds itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from contracts.collection import CollectionRecord
from contracts.engines import Engines
from indexer.build_worker import BuildWorker
from indexer.role import run_collections


def run_index(engines: Engines, collections: Sequence[str] | None, stop: threading.Event, *, is_alone: bool = False) -> None:
    """Run the index role until `stop` is set; a process in which it `is_alone` ends with its error once no collection is left to work on.

    Raises
    ------
    HeadwaterError
        What cannot be mended by trying again.
    """

    def make(collection: CollectionRecord) -> BuildWorker:
        return BuildWorker(engines, collection, collection.index())

    run_collections(engines, collections, stop, make, stage="index", ends_without_work=is_alone, each_index=True)
